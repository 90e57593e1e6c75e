"""What is seen on plots: every file, its error, labels that can be read; and words for those who do
not see them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import autoquant
from autoquant.core.records import COMPARED
from autoquant.display import plot
from autoquant.display.colors import COLORS
from autoquant.display.sensitivities import nats
from autoquant.publish import card
from autoquant.result import Result

PACKAGE = Path(autoquant.__file__).parent
NOTEBOOKS = PACKAGE.parent / "notebooks"
# no text and no line: shades of an area that has darker ones, an area without a value, a frame
# around a form, thin lines and bars behind marks
AREAS = {"#9cc3dd", "#dbe8f0", "#8fb1c7", "#ffffff", "#ccc", "#dddddd"}


def contrast(color: str) -> float:
    """A colour's contrast against white; https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio."""
    digits = color.lstrip("#")
    whole = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(whole[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)


def test_contrast_by_hand() -> None:
    assert contrast("#000000") == pytest.approx(21)
    assert contrast("#fff") == pytest.approx(1)
    assert contrast("#777777") == pytest.approx(4.48, abs=0.005)


def test_every_colour_of_text_or_lines_can_be_read_on_white() -> None:
    sources = list(PACKAGE.rglob("*.py")) + sorted(NOTEBOOKS.glob("0[02-7]*.ipynb"))
    found = {
        (path.name, color.lower())
        for path in sources
        for color in re.findall(
            r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})(?=[\"';)\\])", path.read_text(encoding="utf-8")
        )
    }
    assert {color for _, color in found} >= {*COLORS, "#2e7d32", "#b00020"}, "they are found"
    faint = {one: round(contrast(one[1]), 2) for one in found if one[1] not in AREAS}
    assert {one: ratio for one, ratio in faint.items() if ratio < 4.5} == {}
    assert len(set(COLORS)) == len(COLORS) == 10


def only(run: Result, *types: str) -> Result:
    return dataclasses.replace(
        run, artifacts=tuple(one for one in run.artifacts if one.type in types), extras=()
    )


def test_files_of_one_run_that_are_compared_are_called_by_their_kinds(demo: Result) -> None:
    """Where types were chosen, the model's name would not say which file is which."""
    beside = [
        dataclasses.replace(one, facts={**one.facts, COMPARED: True} if one.type == "Q2_K" else {})
        for one in only(demo, "Q4_K_M", "Q2_K").artifacts
    ]
    run = dataclasses.replace(demo, artifacts=tuple(beside))
    drawn = plot.figure({run.source.id: run})
    assert [one.get_text() for one in drawn.legends[0].get_texts()] == [
        "AutoQuant's mixture",
        "llama.cpp's own types",
    ]


def test_no_label_lies_on_another_point() -> None:
    """It would seem to name that one."""
    drawn = Figure(figsize=(4, 3), dpi=100)
    FigureCanvasAgg(drawn)
    axis = drawn.subplots()
    at = [(0.0, 0.0), (1.0, 0.2), (1.3, 0.3), (1.6, 0.4), (10.0, 10.0)]
    axis.scatter(*zip(*at, strict=True))
    for i, one in enumerate(at):
        axis.annotate(f"point {i}", one, xytext=(5, 5), textcoords="offset points")
    plot.thin_out(drawn, [axis])
    shown = [text for text in axis.texts if text.get_visible()]
    assert {text.get_text() for text in shown} > {"point 4"}
    for text in shown:
        places = {one: axis.transData.transform(one) for one in at}
        box = text.get_window_extent()
        gaps = {
            one: math.dist(np.clip(place, box.min, box.max), place) for one, place in places.items()
        }
        assert min(gaps, key=gaps.__getitem__) == text.xy


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0.0000"),
        (0.5, "0.5000"),
        (0.0028, "0.0028"),
        (4.21e-4, "0.00042"),
        (4.2e-6, "0.0000042"),
    ],
)
def test_predicted_divergences_have_one_notation(value: float, said: str) -> None:
    assert nats(value) == said


def test_one_file_is_not_drawn(demo: Result, tmp_path: Path) -> None:
    single = dataclasses.replace(only(demo, "Q4_K_M"), folder=tmp_path)
    assert not plot.png({"a": single})
    path = tmp_path / plot.PLOT
    path.write_bytes(b"of two files, once")
    plot.write(single, path)
    assert not path.exists()
    assert ".png" not in card.text(single), "no link to what is not there"
    assert "model card in" in str(single)
    assert "<img" not in single._repr_html_()
    both = dataclasses.replace(only(demo, "Q4_K_M", "Q2_K"), folder=tmp_path)
    plot.write(both, path)
    assert f"](./{plot.PLOT})" in card.text(both)
    assert "<img" in both._repr_html_()
    assert "model card and plot in" in str(demo)


def test_a_divergence_just_below_zero_is_drawn(demo: Result) -> None:
    """Rounding of logits gives that to a file that loses nothing."""
    first, *rest = demo.artifacts
    assert first.evaluation is not None
    nothing = dataclasses.replace(first.evaluation, kl_mean=-1e-9, kl_error=1e-8)
    files = (dataclasses.replace(first, evaluation=nothing), *rest)
    assert plot.figure({"demo": dataclasses.replace(demo, artifacts=files)}) is not None


@pytest.mark.parametrize("models", [1, 2])
def test_points_have_errors_that_tell_them_apart(demo: Result, models: int) -> None:
    """Files of one model that of their difference from the unquantized one; files of several models
    that of their table.
    """
    other = dataclasses.replace(demo, source=dataclasses.replace(demo.source, id="another"))
    figure = plot.figure({"a": demo, "b": other} if models == 2 else {"a": demo})
    files = sorted(demo.artifacts, key=lambda one: one.bytes)
    for axis, value, error in zip(
        figure.axes, ("perplexity", "kl_mean"), ("perplexity_error", "kl_error"), strict=True
    ):
        bars, *_ = [one for one in axis.containers if type(one).__name__ == "ErrorbarContainer"]
        (lines,) = bars[2]
        for segment, one in zip(lines.get_segments(), files, strict=True):
            (_, low), (_, high) = segment
            assert one.evaluation is not None
            middle, half = getattr(one.evaluation, value), getattr(one.evaluation, error)
            if value == "perplexity" and models == 1:
                half = middle * demo.difference(one.type).error
            if value == "kl_mean" and middle <= plot.NOTHING:
                assert low == high == axis.get_ylim()[0] / 0.8, "it lies on the axis"
                continue
            assert high == pytest.approx(middle + half, rel=1e-6)
            assert low == pytest.approx(middle - min(half, 0.9 * middle), rel=1e-6)
            assert half > 0
    old = [
        dataclasses.replace(
            one,
            evaluation=dataclasses.replace(one.evaluation, kl_error=None, difference_error=None),
        )
        for one in demo.artifacts
        if one.evaluation is not None
    ]
    assert plot.png({"a": dataclasses.replace(demo, artifacts=tuple(old))})


@pytest.mark.parametrize("name", ["Q8_0", "4bit-128g-autoround-desc", 60 * "x"])
def test_labels_stay_inside(demo: Result, name: str) -> None:
    """Those of points in their axes, titles in the figure."""
    source = dataclasses.replace(demo.source, id="owner/" + 9 * "a-model-with-a-long-name-")
    files = tuple(
        dataclasses.replace(one, type=name if one.type == "Q8_0" else one.type)
        for one in demo.artifacts
    )
    figure = plot.figure({"a": dataclasses.replace(demo, artifacts=files, source=source)})
    figure.canvas.draw()

    def inside(text: Any, box: Any) -> bool:
        own, outer = text.get_window_extent(), box.padded(0.5)  # half a pixel
        return bool(
            outer.x0 <= own.x0 and own.x1 <= outer.x1 and outer.y0 <= own.y0 and own.y1 <= outer.y1
        )

    for axis in figure.axes:
        shown = [text for text in axis.texts if text.get_visible()]
        assert len(shown) >= 2
        assert all(inside(text, axis.get_window_extent()) for text in shown)
    assert inside(figure._suptitle, figure.bbox)


def test_letters_are_large_enough_at_600_pixels(demo: Result) -> None:
    figure = plot.figure({"a": demo})
    figure.canvas.draw()
    shown = [t for axis in figure.axes for t in (*axis.texts, axis.xaxis.label, axis.yaxis.label)]
    shown += [label for axis in figure.axes for label in axis.get_xticklabels()]
    pixels = 600 / figure.get_figwidth() / 72
    assert min(text.get_fontsize() for text in shown) * pixels >= 10


def test_the_picture_in_words_names_axes_best_and_worst(demo: Result) -> None:
    said = plot.described({"a": demo})
    rows = {one.type: one.evaluation for one in demo.artifacts}
    worst = max(rows, key=lambda name: rows[name].kl_mean if rows[name] else 0)  # type: ignore[union-attr]
    row = rows[worst]
    assert row is not None
    assert "two plots of 5 files" in said
    assert "perplexity (left, lower is better) from " in said
    assert f" to {row.kl_mean:.4g} ({worst}, " in said
    assert said in card.text(demo)
    assert said in demo._repr_html_()
    assert "]" not in said, "it stands in a link of Markdown"
    assert plot.described({"a": dataclasses.replace(demo, reference=None)}) == ""
