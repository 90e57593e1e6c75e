"""The plot of size against quality."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoquant.core import language
from autoquant.core.language import say, told
from autoquant.core.records import COMPARED, Artifact, Evaluation, RunRecord
from autoquant.display import engines, tables
from autoquant.display.colors import COLORS, GREY, RED
from autoquant.display.tables import reference_name
from autoquant.runtime import trace

PLOT = tables.PLOT
STOCK = "llama.cpp's own types"  # what files whose types were chosen are compared with
MIXTURE = "AutoQuant's mixture"  # what those files are called beside them
FONT, SMALL = 10, 9  # points: ten pixels and more where the picture is 600 pixels wide
LINE, SHORT = 78, 16  # letters of a title, and of a name that stands at its point
MARK = 3  # points from the middle of a mark to its edge
NOTHING = 1e-5  # nats per token: a file that loses nothing, by another order of sums


def write(result: RunRecord, path: Path) -> None:
    """Size against perplexity and against KL divergence, one point per file, as a PNG; none of
    fewer than two files, and an older one is then removed. It goes to the Hub, so it is English.
    """
    scratch = path.with_name(f".{path.name}.part")
    with language.spoken(language.ENGLISH):
        drawn = png({result.source.id: result})
    if drawn:
        scratch.write_bytes(drawn)
        scratch.replace(path)
    else:
        path.unlink(missing_ok=True)


def png(results: Mapping[str, RunRecord]) -> bytes:
    """The measured artifacts of one or several results as a PNG; empty if there are fewer than
    two: the table says what one point would.
    """
    made = io.BytesIO()
    with trace.library("plot"):
        drawn = figure(results)
        if drawn is not None:
            drawn.savefig(made, format="png")
    return made.getvalue()


def described(results: Mapping[str, RunRecord]) -> str:
    """What is seen on the plot, in words: its axes, and the best and the worst file on each."""
    files = [
        (f"{name} {a.type}" if len(results) > 1 else a.type, a.bytes, a.evaluation)
        for name, artifacts in _measured(results).items()
        for a in artifacts
        if a.evaluation is not None
    ]
    if not files:
        return ""
    said = [f"Size on the x axes of two plots of {len(files)} files"]
    for axis, kind in (
        ("perplexity (left, lower is better)", "perplexity"),
        ("mean KL divergence (right, nats per token)", "kl_mean"),
    ):
        ordered = sorted(files, key=lambda one: getattr(one[2], kind))
        best, worst = (
            f"{getattr(row, kind):.4g} ({name}, {tables.size(bytes)})"
            for name, bytes, row in (ordered[0], ordered[-1])
        )
        said.append(f"{axis} from {best} to {worst}")
    models = {one.source.id: one.reference for one in results.values() if one.reference is not None}
    said += [
        f"dashed line: {name} unquantized, {row.perplexity:.4g}" for name, row in models.items()
    ]
    return "; ".join(said) + "."


def _measured(results: Mapping[str, RunRecord]) -> dict[str, list[Artifact]]:
    """The measured artifacts by what the legend calls them, the smallest first; with what ran them
    where that is not the same for all.
    """
    measured: dict[str, list[Artifact]] = {}
    mixed = engines.mixed(a.evaluation for one in results.values() for a in one.artifacts)
    for name, one in results.items():
        for own in (True, False) if one.reference is not None else ():
            found = [a for a in one.artifacts if a.evaluation and own == (COMPARED not in a.facts)]
            if found:
                # of one run the names of its kinds, which the model's name would not tell apart
                both = any(COMPARED in a.facts for a in one.artifacts)
                key = say(MIXTURE) if both and len(results) == 1 else name
                key = key if own else f"{say(STOCK)}{f' ({name})' * (len(results) > 1)}"
                if mixed:
                    key = say("{name}, by {engine}", name=key, engine=_engines(found))
                measured[key] = sorted(found, key=lambda a: a.bytes)
    return measured


def _engines(artifacts: Sequence[Artifact]) -> str:
    return " + ".join(dict.fromkeys(engines.by(one.evaluation) for one in artifacts))


def figure(results: Mapping[str, RunRecord]) -> Any:
    """The plot as matplotlib's Figure: perplexity left, KL divergence right, each with one standard
    error (of the perplexity see :func:`_errors`); None if fewer than two files were measured.
    """
    measured = _measured(results)
    if sum(map(len, measured.values())) < 2:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    drawn = Figure(figsize=(7.2, 3.7 + 0.2 * (len(measured) > 1)), layout="constrained", dpi=160)
    around = [withStroke(linewidth=2.5, foreground="white")]  # readable on lines
    FigureCanvasAgg(drawn)
    left, right = drawn.subplots(1, 2)
    largest = max(artifacts[-1].bytes for artifacts in measured.values())
    unit, scale = ("GB", 1e9) if largest >= 1e9 else ("MB", 1e6)
    sizes = [a.bytes / scale for artifacts in measured.values() for a in artifacts]
    every = [
        a.evaluation.kl_mean for artifacts in measured.values() for a in artifacts if a.evaluation
    ]
    # what loses nothing but the rounding of sums would press the rest together: it lies on the axis
    told_apart = [value for value in every if value > NOTHING]
    log = bool(told_apart) and max(every) > 20 * max(NOTHING, min(every))
    floor = 0.5 * min(told_apart) if log and min(every) <= NOTHING else -math.inf
    for axis, label in (
        (left, say("perplexity (lower is better)")),
        (right, say("KL divergence, nats per token")),
    ):
        axis.set_xlabel(say("size, {unit}", unit=unit), fontsize=FONT)
        axis.set_ylabel(label, fontsize=FONT)
        axis.tick_params(labelsize=SMALL)
        axis.grid(alpha=0.25)
        axis.margins(x=0.16, y=0.16)
    # one file each: a point is called by what the legend would say
    named = len(measured) > 1 and all(
        len(artifacts) == 1 and len(name) <= SHORT for name, artifacts in measured.items()
    )
    paired = _paired(results)
    for i, (name, artifacts) in enumerate(measured.items()):
        stock = all(COMPARED in a.facts for a in artifacts)
        color = GREY if stock else COLORS[i % len(COLORS)]
        x = [a.bytes / scale for a in artifacts]
        evaluations = [a.evaluation for a in artifacts if a.evaluation]
        for axis, values, errors in (
            (
                left,
                [e.perplexity for e in evaluations],
                _errors(evaluations, paired=paired),
            ),
            (
                right,
                [max(floor, e.kl_mean) for e in evaluations],
                [e.kl_error or 0 if e.kl_mean > floor else 0 for e in evaluations],
            ),
        ):
            if not stock:
                axis.plot(x, values, "-", color=color, linewidth=0.6, zorder=1)
            # on a logarithmic axis an error as large as the value would reach down without end; a
            # divergence of nothing may come out just below zero
            pairs = zip(errors, values, strict=True)
            down = [max(0.0, min(error, 0.9 * value)) for error, value in pairs]
            axis.errorbar(
                x, values, (down, errors), fmt="none", ecolor=color, elinewidth=1, alpha=0.5
            )
            axis.scatter(x, values, color=color, s=28, zorder=2, label=name)
            for artifact, at, value in zip(artifacts, x, values, strict=True):
                right_half = at > (min(sizes) + max(sizes)) / 2
                axis.annotate(
                    (name if named else artifact.type) + ("" if value > floor else " (≈ 0)"),
                    (at, value),
                    xytext=(-5 if right_half else 5, 5),
                    textcoords="offset points",
                    ha="right" if right_half else "left",
                    fontsize=SMALL,
                    color=color if len(measured) > 1 else "black",
                    path_effects=around,
                )
    # nearly the same: some bytes more are not to look like a difference
    if max(sizes) < 1.1 * min(sizes):
        for axis in (left, right):
            axis.set_xlim(0.9 * min(sizes), 1.1 * max(sizes))
    models = {one.source.id: one.reference for one in results.values() if one.reference is not None}
    names = {one.source.id: told(reference_name(one.source)) for one in results.values()}
    # before the limits are set: however far from the points, the line is to be seen
    for row in models.values():
        left.axhline(row.perplexity, color=RED, linewidth=1, linestyle="--")
    perplexities = [
        a.evaluation.perplexity for group in measured.values() for a in group if a.evaluation
    ]
    if max(perplexities) > 20 * min(perplexities):
        left.set_yscale("log")  # one destroyed file would press the others together
    else:
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
            fontsize=SMALL,
            color=RED,
            path_effects=around,
        )
    if log:
        right.set_yscale("log")
        if floor > 0:
            right.set_ylim(bottom=0.8 * floor)
    if len(measured) > 1 and not named:
        _legend(drawn, left)
    title = say(
        "{models}: size against quality (bars: one standard error of the difference from the"
        " unquantized model)"
        if paired
        else "{models}: size against quality (± one standard error)",
        models=say(" and ").join(models),
    )
    drawn.suptitle(textwrap.fill(title, LINE), fontsize=FONT)
    thin_out(drawn, (left, right))
    points = [text for axis in (left, right) for text in axis.texts if text.xycoords == "data"]
    if named and not all(text.get_visible() for text in points):  # some fit nowhere
        for text in points:
            text.set_visible(True)
        _legend(drawn, left)
        drawn.set_figheight(drawn.get_figheight() + 0.2 * math.ceil(len(measured) / 2))
        thin_out(drawn, (left, right))
    return drawn


def _legend(figure: Any, axis: Any) -> None:
    """Below the axes: inside it would lie on points or their errors."""
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside lower center", fontsize=SMALL, ncols=2
    )


def _paired(results: Mapping[str, RunRecord]) -> bool:
    """Whether the errors of perplexities are those of their differences from one unquantized model:
    of several models these would say nothing of one model beside the other.
    """
    measured = [a.evaluation for one in results.values() for a in one.artifacts if a.evaluation]
    return (
        len({one.source.id for one in results.values()}) == 1
        and len({(one.text_sha256, one.tokens) for one in measured}) == 1
        and all(one.difference_error is not None for one in measured)
    )


def _errors(evaluations: Sequence[Evaluation], *, paired: bool) -> list[float]:
    """The errors of perplexities: of the perplexity itself, or, ``paired``, of its difference from
    the unquantized model's on the same tokens, to first order. Files of one model stumble over the
    same tokens, so that the former overlap even where the files differ for certain.
    """
    return [
        one.perplexity * (one.difference_error or 0) if paired else one.perplexity_error
        for one in evaluations
    ]


def thin_out(figure: Any, axes: Sequence[Any]) -> None:
    """Move labels of points into their axes, and to another side of their points where they would
    lie on another one, or nearer to another point, which they would seem to name; take those away
    that fit nowhere: the table has them.
    """
    for axis in axes:
        for text in axis.texts:
            text.set_in_layout(False)  # a long one would take the axes' room
    figure.canvas.draw()
    for axis in axes:
        kept: list[Any] = []
        points = {
            text: axis.transData.transform(text.xy)
            for text in axis.texts
            if text.xycoords == "data"
        }
        around = MARK * figure.dpi / 72
        # names of lines first: a point's name stands in the table too
        for text in sorted(axis.texts, key=lambda text: text.xycoords == "data"):
            others = [at for other, at in points.items() if other is not text]
            x, y = text.get_position()
            side = text.get_ha()
            other = {"left": "right", "right": "left"}.get(side, side)
            sides = [((x, y), side), ((x, -y), side), ((-x, y), other), ((-x, -y), other)]
            sides += [((0, y), "center"), ((0, -y), "center")]
            # a line's name may stand at its other end, or in the middle
            ends = [text.xy[0]] if text in points else [1, 0, 0.5]
            for end, (place, toward) in itertools.product(ends, sides):
                text.xy = (end, text.xy[1])
                text.set_position(place)
                text.set_ha(toward)
                text.set_va("bottom" if place[1] > 0 else "top")
                _into(axis, text)
                box, room = text.get_window_extent(), axis.get_window_extent().padded(0.5)
                within = room.contains(*box.min) and room.contains(*box.max)
                own = _gap(box, points[text]) if text in points else 0.0
                astray = any(_gap(box, at) < max(around, own) for at in others)
                if within and not astray and not any(box.overlaps(one) for one in kept):
                    kept.append(box)
                    break
            else:
                text.set_visible(False)


def _gap(box: Any, at: tuple[float, float]) -> float:
    """How far a point is from a box, in pixels; 0 inside."""
    x, y = at
    return math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))


def _into(axis: Any, text: Any) -> None:
    """Move a label that would leave its axes: along them, and to the other side of its point."""
    box, room = text.get_window_extent(), axis.get_window_extent()
    x, y = text.get_position()
    points = 72 / axis.figure.dpi  # of a pixel
    x += points * (max(0, room.x0 - box.x0) - max(0, box.x1 - room.x1))
    if box.y1 > room.y1 or box.y0 < room.y0:
        text.set_va("top" if box.y1 > room.y1 else "bottom")
        y = -abs(y) if box.y1 > room.y1 else abs(y)
    text.set_position((x, y))
