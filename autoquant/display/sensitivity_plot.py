"""The picture of a model's sensitivities: where its weights matter, and what a size costs."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from autoquant.core.language import say
from autoquant.core.records import COMPARED, Artifact
from autoquant.display.colors import BLUE, GREY, ORANGE
from autoquant.display.plot import FONT, LINE, SMALL, STOCK, thin_out
from autoquant.display.sensitivities import Grid, Point
from autoquant.display.tables import size
from autoquant.runtime import trace

SHADES = ("#dbe8f0", "#8fb1c7", BLUE, "#12344a")  # from light to dark
NOTHING = "#ffffff"  # where a layer has no such tensor
RANGE = 1e4  # of shades; what matters less is as light as the least
TICKS = 12  # numbers below the layers, at most


def draw(
    model: str,
    grid: Grid,
    frontier: Sequence[Point],
    stock: Sequence[Point],
    measured: Sequence[Artifact] = (),
) -> bytes:
    """The picture as a PNG. ``measured`` are files that were made of the model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with trace.library("plot"):
        figure = Figure(figsize=(7.2, 8.4), layout="constrained", dpi=160)
        FigureCanvasAgg(figure)
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.1, 1), hspace=0.03)
        upper, lower = parts
        _matters(upper, grid)
        labelled = _sizes(lower, frontier, stock, measured)
        title = say("{model}: where bits matter, and what a size costs", model=model)
        figure.suptitle(textwrap.fill(title, LINE), fontsize=FONT)
        thin_out(figure, (labelled,))
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
    return drawn.getvalue()


def described(grid: Grid, frontier: Sequence[Point]) -> str:
    """What is seen on the picture, in words: its axes, and where the most and the least is."""
    cells = {
        f"{kind}, layer {i}": lost for kind, by in grid.layers.items() for i, lost in by.items()
    }
    cells |= grid.outside
    ordered = sorted((lost, name) for name, lost in cells.items() if lost > 0)
    said = "Above, kinds of tensor by layers, shaded by the nats that a million weights lose"
    if ordered:
        (least, light), (most, dark) = ordered[0], ordered[-1]
        said += f" at {grid.type}: from {least:.2g} ({light}) to {most:.2g} ({dark})"
    small, large = frontier[0], frontier[-1]
    return (
        f"{said}. Below, size on the x axis against predicted KL divergence of the best files, nats"
        f" per token: from {small.nats:.2g} at {size(small.bytes)} to {large.nats:.2g} at"
        f" {size(large.bytes)}, beside llama.cpp's own types."
    )


def _matters(figure: Any, grid: Grid) -> None:
    """Layers by kinds of matrix, and below them what lies outside the layers."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    layers = max((max(by_layer) for by_layer in grid.layers.values()), default=-1) + 1
    inside = [
        [by_layer.get(i, math.nan) for i in range(layers)] for by_layer in grid.layers.values()
    ]
    outside = [[lost] for lost in grid.outside.values()]
    every = [one for row in (*inside, *outside) for one in row if one > 0]
    most = max(every, default=1.0)
    shades = LinearSegmentedColormap.from_list("sensitive", SHADES).with_extremes(bad=NOTHING)
    least = max(min(every, default=most / 10), most / RANGE)
    scale = LogNorm(least, most * 1.0001, clip=True)
    parts = [
        (inside, list(grid.layers)) if inside else None,
        (outside, list(grid.outside)) if outside else None,
    ]
    shown = [part for part in parts if part]
    axes = figure.subplots(
        len(shown), 1, squeeze=False, height_ratios=[len(rows) for rows, _ in shown]
    )[:, 0]
    image = None
    for axis, (rows, names) in zip(axes, shown, strict=True):
        values = [[one if one > 0 else math.nan for one in row] for row in rows]
        image = axis.imshow(values, cmap=shades, norm=scale, aspect="auto", interpolation="none")
        axis.set_yticks(range(len(names)), names, fontsize=SMALL)
        axis.set_xticks([])
        axis.tick_params(length=0)
        for edge in axis.spines.values():
            edge.set_visible(False)
    if inside:
        step = math.ceil(layers / TICKS)
        axes[0].set_xticks(range(0, layers, step), range(0, layers, step), fontsize=SMALL)
        axes[0].set_xlabel(say("layer"))
    if image is not None:
        bar = figure.colorbar(image, ax=list(axes), pad=0.02, aspect=30)
        label = say("predicted nats per million weights at {type}", type=grid.type)
        bar.set_label(label, fontsize=SMALL)
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 100 * least else (1,)))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        bar.ax.tick_params(labelsize=SMALL)


def _sizes(
    figure: Any, frontier: Sequence[Point], stock: Sequence[Point], measured: Sequence[Artifact]
) -> Any:
    """Size against predicted KL divergence; the axis, which has the labels of points."""
    axis = figure.subplots()
    largest = max(point.bytes for point in (*frontier, *stock))
    unit, scale = ("GB", 1e9) if largest >= 1e9 else ("MB", 1e6)
    seen = [one for one in measured if one.evaluation and one.evaluation.kl_mean > 0]
    own = [one for one in seen if COMPARED not in one.facts]
    theirs = [one for one in seen if COMPARED in one.facts]
    # first what must not lose its label
    for files, color, name in (
        (own, ORANGE, say("measured")),
        (theirs, GREY, say("{files}, measured", files=say(STOCK))),
    ):
        if files:
            x = [one.bytes / scale for one in files]
            y = [one.evaluation.kl_mean for one in files if one.evaluation]
            axis.scatter(x, y, color=color, marker="D", s=42, zorder=4, label=name)
            _label(axis, [one.type for one in files], x, y, color, weight="bold")
    points = [one for one in frontier if one.nats > 0]
    axis.plot(
        [one.bytes / scale for one in points],
        [one.nats for one in points],
        "o-",
        color=BLUE,
        markersize=4,
        linewidth=1.5,
        zorder=3,
        label=say("the best file of each size, predicted"),
    )
    shown = [one for one in stock if one.nats > 0 and one.bytes <= 1.05 * points[-1].bytes]
    x, y = [one.bytes / scale for one in shown], [one.nats for one in shown]
    predicted = say("{files}, predicted", files=say(STOCK))
    axis.scatter(x, y, color=GREY, s=22, zorder=2, label=predicted)
    _label(axis, [one.type for one in shown], x, y, GREY)
    axis.set_yscale("log")
    axis.set_xlabel(say("size, {unit}", unit=unit))
    axis.set_ylabel(say("KL divergence, nats per token"))
    axis.grid(alpha=0.25)
    axis.margins(x=0.1, y=0.08)
    handles, names = axis.get_legend_handles_labels()
    first = {say("the best file of each size, predicted"), predicted}
    order = sorted(range(len(names)), key=lambda i: names[i] not in first)
    axis.legend([handles[i] for i in order], [names[i] for i in order], fontsize=SMALL)
    return axis


def _label(
    axis: Any, names: Sequence[str], x: Sequence[float], y: Sequence[float], color: str, **how: Any
) -> None:
    for name, at, value in zip(names, x, y, strict=True):
        axis.annotate(
            name,
            (at, value),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=SMALL,
            color=color,
            **how,
        )
