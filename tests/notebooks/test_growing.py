"""The table that lessons fill row by row: what a reader sees of it."""

from __future__ import annotations

import re

import pytest

from autoquant.notebook import lesson, moving
from autoquant.notebook.growing import Growing


def names(table: Growing, new: bool = False) -> list[str]:
    cells = re.findall(r"<tr><td ([^>]*)>(.*?)</td>", table._repr_html_())
    return [name for style, name in cells if not new or "background:rgba" in style]


def test_rows_that_came_since_the_table_was_shown_are_tinted_and_a_line_says_so() -> None:
    table = Growing(["x"])
    table.add("one", [0.01]).add("two", [0.02])
    assert names(table, new=True) == [], "all are new: nothing stands out"
    assert "new in this table" not in table._repr_html_()
    table.add("three", [0.03])
    assert names(table, new=True) == ["three"]
    assert names(table, new=True) == ["three"], "shown twice"
    table.add("one", [0.5])  # its cell was run again
    assert names(table, new=True) == ["one"]
    assert "new in this table" in table._repr_html_()
    assert "<b>" not in table._repr_html_(), "bold would be read as best"
    assert names(table) == ["one", "two", "three"]
    assert "50.00 %" in repr(table)
    assert table.errors == {"one": (0.5,), "two": (0.02,), "three": (0.03,)}


def test_a_row_may_stand_behind_another() -> None:
    table = Growing(["x"]).add("one", [0.01]).add("two", [0.02])
    assert names(table.add("like one", [0.03], after="one")) == ["one", "like one", "two"]
    assert names(table.add("like one", [0.04], after="one")) == ["one", "like one", "two"]
    assert names(table.add("last", [0.05], after="nobody"))[-1] == "last"
    with pytest.raises(ValueError, match="2 errors for 1 columns"):
        table.add("wide", [0.1, 0.2])


def test_notes_begin_below_each_other_and_go_where_there_are_none() -> None:
    table = Growing(["x"]).add("one", [0.01]).add("two", [0.02])
    assert "note" not in repr(table) + table._repr_html_()
    table.add("three", [0.03], "a long note").add("four", [0.04], "short")
    lines = repr(table).splitlines()
    assert len({lines[0].index("note"), lines[4].index("a long"), lines[5].index("short")}) == 1
    assert re.search(
        r"<td style='text-align:left(;background:[^']*)?'>short</td>", table._repr_html_()
    )
    named = Growing(["x"], title="format", notes="bits").add("one", [0.01], "4.5")
    assert repr(named).splitlines()[0].split() == ["format", "x", "bits"]


def test_columns_of_bits_are_named_and_no_line_runs_through_a_number() -> None:
    head = re.findall(r"<th [^>]*>(.*?)</th>", lesson.Bits(0.1)._repr_html_())
    assert head == ["format", "bits", "stored value", "error"]
    body, _ = lesson.memory_slider(8.0).frames[moving.MODELS.index(8)]
    for number in ("8.0 GB", "32.0 GB"):
        before = body[: body.index(number)]
        assert "<rect" in before[before.rindex("/>") - 90 :], "a ground of its own"
        assert "<path" not in body[body.index(number) :], "lines are drawn before"
