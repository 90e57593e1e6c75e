"""Figures of the lessons, so that their cells are left with the arithmetic. Each is shown when it
is called; labels are in the language chosen.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from autoquant.core.language import say
from autoquant.display.colors import BLUE, COLORS, ORANGE, RED
from autoquant.notebook.growing import Growing

LIGHT = "#9cc3dd"  # bars behind a line
LAYERS = (BLUE, COLORS[4], COLORS[9])  # as in the figure of SmoothQuant
SHOWN = 0.35  # how far from 0 weights are drawn: nearly all lie within
HIGHEST = 5.2  # times the unquantized perplexity: one curve's end would flatten all others


def before_and_after(weights: Any, widths: Sequence[int]) -> None:
    """The density of weights (any shape) and of what absmax with one scale for all makes of them,
    a panel for each number of bits.
    """
    _, axes = plt.subplots(1, len(widths), figsize=(8.5, 2.8), sharey=True, layout="constrained")
    for axis, n in zip(axes, widths, strict=True):
        step = np.abs(weights).max() / (2 ** (n - 1) - 1)
        values, counts = np.unique(np.round(weights / step) * step, return_counts=True)
        heights = counts / weights.size / step
        axis.bar(values, heights, 0.85 * step, color=LIGHT, label="s · q")
        axis.hist(
            weights.ravel(),
            150,
            density=True,
            histtype="step",
            linewidth=1.5,
            color=ORANGE,
            label="w",
        )
        axis.set(title=say("{n} bits: {used} values used", n=n, used=len(values)))
        axis.set(xlabel=say("weight"), xlim=(-SHOWN, SHOWN))
    axes[0].set(ylabel=say("density"))
    axes[0].legend()
    plt.show()


def codes_used(zero_point: Any, symmetric: Any) -> None:
    """How many values have each code of 8 bits: codes with a zero point, 0 … 255, and those of
    absmax, -127 … 127, on one logarithmic axis.
    """
    _, axis = plt.subplots(figsize=(8.5, 2.6), layout="constrained")
    edges, label = np.arange(257) - 0.5, say("absmax: −127 … 127 (drawn 127 to the right)")
    axis.hist(symmetric + 127, edges, log=True, color=ORANGE, alpha=0.7, label=label)
    label = say("zero point: 0 … 255")
    axis.hist(zero_point, edges, log=True, histtype="step", linewidth=1.5, color=BLUE, label=label)
    axis.legend(fontsize=8, loc="upper right")
    axis.set(xlabel=say("code"), ylabel=say("values"))
    plt.show()


def bits_and_words(
    widths: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    unquantized: float,
    prompt: str,
    written: Mapping[str, str],
) -> None:
    """Left: perplexity against bits, a curve for each way of rounding, beside the unquantized
    model's, up to ``HIGHEST`` times that one: of a curve that leaves the figure the end is written
    where it does. Right: the first two lines of each text that follows ``prompt``, by its name.
    """
    _, (left, right) = plt.subplots(
        1, 2, figsize=(11, 3.6), width_ratios=(4, 5), layout="constrained"
    )
    top = HIGHEST * unquantized
    for i, (scheme, values) in enumerate(curves.items()):
        left.plot(widths, values, "o-", markersize=4, color=COLORS[i], label=scheme)
        if values[-1] > top > values[-2]:  # on a logarithmic axis
            share = np.log(top / values[-2]) / np.log(values[-1] / values[-2])
            at = (widths[-2] + share * (widths[-1] - widths[-2]), top)
            left.annotate(
                f"{values[-1]:.0f} ↑", at, (6, -4), textcoords="offset points", va="top",
                color=COLORS[i], fontsize=10,
            )  # fmt: skip
    left.axhline(
        unquantized, color="#333333", linestyle="--", linewidth=1, label=say("unquantized")
    )
    left.set(xlabel=say("bits"), ylabel=say("perplexity (lower is better)"), yscale="log")
    ticks = [
        tick for tick in (10, 20, 50, 75, 100, 150, 200, 500) if 0.9 * unquantized < tick < top
    ]
    left.set(ylim=(0.93 * unquantized, top), yticks=ticks, yticklabels=map(str, ticks))
    left.minorticks_off()
    left.legend(fontsize=10, loc="upper right")
    right.axis("off")
    title = say("What follows “{prompt}”, by bits (groups of 32)", prompt=prompt)
    right.set_title(title, loc="left")
    look: dict[str, Any] = {"fontsize": 10, "va": "top", "transform": right.transAxes}
    for i, (name, words) in enumerate(written.items()):
        lines = "\n".join(textwrap.wrap(words.strip(), 56)[:2])
        right.text(0, 0.9 - 0.21 * i, name, weight="bold", **look)
        right.text(0.24, 0.9 - 0.21 * i, lines + " …", family="serif", **look)
    plt.show()


def columns(activations: Mapping[str, Any]) -> None:
    """Of each column of some layers' activations [tokens, columns] the largest magnitude and the
    root mean square, on a logarithmic axis, a panel for each layer.
    """
    figure, axes = plt.subplots(
        1, len(activations), figsize=(8.5, 3), layout="constrained", sharey=True
    )
    for axis, (name, x) in zip(axes, activations.items(), strict=True):
        axis.plot(np.abs(x).max(0), color=RED, linewidth=1, label=say("largest |x|"))
        rms = np.sqrt(np.square(x).mean(0))
        axis.plot(rms, color=BLUE, linewidth=1, label=say("root mean square"))
        axis.set(title=name, xlabel=say("input (column of X)"), yscale="log")
    axes[0].set_ylabel(say("magnitude"))
    legend = axes[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=2, fontsize=9)
    plt.show()


def remedies(table: Growing, names: Sequence[str], goal: str) -> None:
    """Some rows of a table as bars, a panel for each of its columns, and the row called ``goal`` as
    a dashed line.
    """
    figure, axes = plt.subplots(
        1, len(table.columns), figsize=(9, 0.8 + 0.35 * len(names)), sharey=True, sharex=True,
        layout="constrained",
    )  # fmt: skip
    for i, (axis, column) in enumerate(zip(axes, table.columns, strict=True)):
        errors = [100 * table.errors[name][i] for name in names]
        axis.axvline(100 * table.errors[goal][i], color="#333333", linestyle="--", linewidth=1)
        axis.barh(names, errors, color=LAYERS[i % len(LAYERS)], height=0.7)
        for y, error in enumerate(errors):  # the number to the right of bar and line
            x = max(error, 100 * table.errors[goal][i])
            axis.annotate(
                f"{error:.2f} %", (x, y), (4, 0), textcoords="offset points", va="center",
                fontsize=9,
            )  # fmt: skip
        axis.set_title(column, fontsize=10)
    widest = max(100 * error for name in names for error in table.errors[name])
    axes[0].set(xlim=(0, 1.35 * widest))
    axes[0].invert_yaxis()
    figure.supxlabel(say("error of the output in % (dashed: {goal})", goal=goal), fontsize=9)
    plt.show()
