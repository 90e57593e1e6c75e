"""A table that a lesson fills row by row, so that each idea stands beside those before it."""

from __future__ import annotations

from collections.abc import Sequence

from autoquant.core.language import say
from autoquant.display import html, tables


class Growing:
    """Relative errors in percent, a row for each way of quantizing, a column for each layer. Shows
    itself in a notebook. ``title`` stands over the rows' names: "error of the output" if none is
    given.
    """

    def __init__(self, columns: Sequence[str], title: str = "") -> None:
        self.columns, self.title = tuple(columns), title or say("error of the output")
        self.rows: dict[str, tuple[str, ...]] = {}

    def add(self, name: str, errors: Sequence[float], note: str = "") -> Growing:
        """Add a row, or replace the one of this name, for cells are run again. ``errors``: one a
        column, as fractions (0.01 is shown as 1.00 %).
        """
        if len(errors) != len(self.columns):
            raise ValueError(f"{name}: {len(errors)} errors for {len(self.columns)} columns")
        self.rows[name] = (name, *(f"{100 * one:.2f} %" for one in errors), note)
        return self

    def _parts(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        return (self.title, *self.columns, say("note")), list(self.rows.values())

    def __repr__(self) -> str:
        return tables.table(*self._parts())

    def _repr_html_(self) -> str:
        return html.table(*self._parts())
