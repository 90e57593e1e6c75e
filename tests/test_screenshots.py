"""Which notebooks are filed as pictures of a finished run."""

from __future__ import annotations

import runpy
from typing import Any

import nbformat
import pytest

from tests.notebooks.running import ROOT


@pytest.fixture(scope="module")
def wrong() -> Any:
    return runpy.run_path(str(ROOT / "tools" / "screenshots.py"))["wrong"]


def notebook(*ends: str) -> Any:
    """One with a cell for each end: "ok", an error's name, or "" for a cell that did not run."""
    cells = [nbformat.v4.new_markdown_cell("words", id="words")]
    for name, end in zip(("plan", "run", "look"), ends, strict=True):
        cell = nbformat.v4.new_code_cell("1", id=name, execution_count=1 if end else None)
        if end not in ("", "ok"):
            cell.outputs = [nbformat.v4.new_output("error", ename=end, evalue="it broke")]
        cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.parametrize(
    ("name", "ends", "said"),
    [
        ("03_GPTQ", ("ok", "ok", "ok"), ""),
        ("03_GPTQ", ("ok", "InputError", ""), "03_GPTQ: cell run raised InputError: it broke"),
        ("03_GPTQ", ("ok", "ok", ""), "03_GPTQ: cell look did not run"),
        ("04_EXL2", ("ok", "InputError", ""), ""),
        ("04_EXL2", ("NameError", "", ""), "04_EXL2: cell plan raised NameError: it broke"),
        ("04_EXL2", ("ok", "ok", "NameError"), "04_EXL2: cell look raised NameError: it broke"),
    ],
)
def test_what_raised_is_named(wrong: Any, name: str, ends: tuple[str, ...], said: str) -> None:
    assert wrong(notebook(*ends), name) == said
