"""The plot of size against quality."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoquant.core.records import COMPARED, Artifact, RunRecord
from autoquant.display.tables import reference_name
from autoquant.runtime import trace

PLOT = "size-against-quality.png"
STOCK = "llama.cpp's own types"  # what files whose types were chosen are compared with
GREY = "#6c757d"
COLORS = (
    "#2a6f97",
    "#e07a1f",
    "#5f8f3e",
    "#8e5aa8",
    "#b23a48",
    "#4d4d4d",
    "#1fa2a6",
    "#c2a500",
    "#d16ba5",
    "#7a5230",
)


def write(result: RunRecord, path: Path) -> None:
    """Size against perplexity and against KL divergence, one point per file, as a PNG. Nothing if
    fewer than one was measured.
    """
    scratch = path.with_name(f".{path.name}.part")
    if draw({result.source.id: result}, scratch):
        scratch.replace(path)


def draw(results: Mapping[str, RunRecord], target: Path | io.BytesIO) -> bool:
    """Draw the measured artifacts of one or several results into a PNG; False if there are none."""
    with trace.library("plot"):
        drawn = figure(results)
        if drawn is not None:
            drawn.savefig(target, format="png")
    return drawn is not None


def figure(results: Mapping[str, RunRecord]) -> Any:
    """The plot as matplotlib's Figure: perplexity left, KL divergence right; None if nothing was
    measured.
    """
    measured: dict[str, list[Artifact]] = {}
    for name, one in results.items():
        for own in (True, False) if one.reference is not None else ():
            found = [a for a in one.artifacts if a.evaluation and own == (COMPARED not in a.facts)]
            if found:
                key = name if own else f"{STOCK}{f' ({name})' * (len(results) > 1)}"
                measured[key] = sorted(found, key=lambda a: a.bytes)
    if not measured:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9.6, 4.2), layout="constrained", dpi=120)
    FigureCanvasAgg(drawn)
    left, right = drawn.subplots(1, 2)
    largest = max(artifacts[-1].bytes for artifacts in measured.values())
    unit, scale = ("GB", 1e9) if largest >= 1e9 else ("MB", 1e6)
    sizes = [a.bytes / scale for artifacts in measured.values() for a in artifacts]
    every = [
        a.evaluation.kl_mean for artifacts in measured.values() for a in artifacts if a.evaluation
    ]
    for axis, label in (
        (left, "perplexity (lower is better)"),
        (right, "mean KL divergence, nats per token"),
    ):
        axis.set_xlabel(f"size, {unit}")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        axis.margins(x=0.16, y=0.16)
    for i, (name, artifacts) in enumerate(measured.items()):
        stock = all(COMPARED in a.facts for a in artifacts)
        color = GREY if stock else COLORS[i % len(COLORS)]
        x = [a.bytes / scale for a in artifacts]
        evaluations = [a.evaluation for a in artifacts if a.evaluation]
        for axis, values in (
            (left, [e.perplexity for e in evaluations]),
            (right, [e.kl_mean for e in evaluations]),
        ):
            if not stock:
                axis.plot(x, values, "-", color=color, alpha=0.3, linewidth=1, zorder=1)
            axis.scatter(x, values, color=color, zorder=2, label=name)
            for artifact, at, value in zip(artifacts, x, values, strict=True):
                right_half = at > (min(sizes) + max(sizes)) / 2
                axis.annotate(
                    artifact.type,
                    (at, value),
                    xytext=(-5 if right_half else 5, 5),
                    textcoords="offset points",
                    ha="right" if right_half else "left",
                    fontsize=8,
                )
    # nearly the same: some bytes more are not to look like a difference
    if max(sizes) < 1.1 * min(sizes):
        for axis in (left, right):
            axis.set_xlim(0.9 * min(sizes), 1.1 * max(sizes))
    models = {one.source.id: one.reference for one in results.values() if one.reference is not None}
    names = {one.source.id: reference_name(one.source) for one in results.values()}
    # before the limits are set: however far from the points, the line is to be seen
    for row in models.values():
        left.axhline(row.perplexity, color="#a4161a", linewidth=1, linestyle="--")
    low, high = left.get_ylim()
    left.set_ylim(low - 0.06 * (high - low), high)  # room for the label below the line
    for model, row in models.items():
        left.annotate(
            f"{model.rsplit('/', 1)[-1]} {names[model]}" if len(models) > 1 else names[model],
            (1, row.perplexity),
            xycoords=("axes fraction", "data"),
            xytext=(-4, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            color="#a4161a",
        )
    if all(value > 0 for value in every) and max(every) > 20 * min(every):
        right.set_yscale("log")
    if len(measured) > 1:
        left.legend(fontsize=8)
    thin_out(drawn, (left, right))
    drawn.suptitle(f"{' and '.join(models)}: size against quality", fontsize=11)
    return drawn


def thin_out(figure: Any, axes: Sequence[Any]) -> None:
    """Take labels of points away that would lie on another one: such points are close together
    here, and the table has them.
    """
    figure.canvas.draw()
    for axis in axes:
        kept: list[Any] = []
        for text in axis.texts:
            box = text.get_window_extent()
            if any(box.overlaps(other) for other in kept):
                text.set_visible(False)
            else:
                kept.append(box)
