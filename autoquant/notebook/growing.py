"""A table that a lesson fills row by row, so that each idea stands beside those before it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from autoquant.core.language import say
from autoquant.display import tables

TINT = "rgba(42, 111, 151, .18)"  # of the colours' blue, over a light page or a dark one


class Growing:
    """Relative errors in percent, a row for each way of quantizing, a column for each layer. Shows
    itself in a notebook, with the rows that came since it was shown last on a tinted ground: bold
    would be read as best. ``title`` stands over the rows' names: "error of the output" if none is
    given, and ``notes`` over what is noted of each: "note". ``errors`` has them as fractions, by
    the rows' names.
    """

    def __init__(self, columns: Sequence[str], title: str = "", notes: str = "") -> None:
        self.columns, self.title = tuple(columns), title or say("error of the output")
        self.notes = notes or say("note")
        self.rows: dict[str, tuple[str, ...]] = {}
        self.errors: dict[str, tuple[float, ...]] = {}
        self._new: set[str] = set()
        self._shown = False

    def add(
        self, name: str, errors: Sequence[float], note: str = "", *, after: str = ""
    ) -> Growing:
        """Add a row at the end, or behind the one called ``after``; or replace the one of this
        name, for cells are run again. ``errors``: one a column, as fractions (0.01 is shown as
        1.00 %). Raises ValueError if there is not one error a column.
        """
        if len(errors) != len(self.columns):
            raise ValueError(f"{name}: {len(errors)} errors for {len(self.columns)} columns")
        if self._shown:
            self._new, self._shown = set(), False
        self._new.add(name)
        self.errors[name] = tuple(map(float, errors))
        row = (name, *(f"{100 * one:.2f} %" for one in errors), note)
        if after in self.rows and name not in self.rows:
            names = list(self.rows)
            names.insert(names.index(after) + 1, name)
            self.rows = {one: self.rows.get(one, row) for one in names}
        self.rows[name] = row
        return self

    def _parts(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Head and body; without the notes where there are none."""
        rows, width = list(self.rows.values()), len(self.columns) + 1
        if not any(row[-1] for row in rows):
            return (self.title, *self.columns), [row[:width] for row in rows]
        return (self.title, *self.columns, self.notes), rows

    def __repr__(self) -> str:
        head, body = self._parts()
        if len(head) > len(self.columns) + 1:  # notes begin below each other
            longest = max(len(row[-1]) for row in (head, *body))
            head, *body = [(*row[:-1], row[-1].ljust(longest)) for row in (head, *body)]
        return tables.table(head, body)

    def _repr_html_(self) -> str:
        self._shown = True
        head, body = self._parts()
        new = self._new if len(self._new & {*self.rows}) < len(self.rows) else set[str]()

        def line(cells: Sequence[str], tag: str, tinted: bool = False) -> str:
            drawn = []
            for i, cell in enumerate(cells):
                note = i > len(self.columns)  # which may be broken, unlike names and numbers
                style = f"text-align:{'left' if i == 0 or note else 'right'}"
                if tag == "td" and not note:
                    style += ";white-space:nowrap"
                style += f";background:{TINT}" if tinted else ""
                drawn.append(f"<{tag} style='{style}'>{escape(cell)}</{tag}>")
            return f"<tr>{''.join(drawn)}</tr>"

        lines = "".join(line(row, "td", row[0] in new) for row in body)
        shown = f"<table><thead>{line(head, 'th')}</thead><tbody>{lines}</tbody></table>"
        if not new:
            return shown
        ground = f"<span style='background:{TINT}'>&emsp;</span>"
        return (
            f"{shown}<div style='font-size:90%'>{ground} {escape(say('new in this table'))}</div>"
        )
