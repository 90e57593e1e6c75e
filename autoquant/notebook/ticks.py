"""Tick boxes: a list of names as one widget, and what fits on a device as a table to choose of."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from autoquant.core.language import say, told
from autoquant.core.options import split
from autoquant.display import tables
from autoquant.notebook.page import tooltip
from autoquant.sizing.advice import Advice
from autoquant.sizing.choices import Choice

HIDDEN, SHOWN = "none", ""  # of a layout's display
FITS = {"whole": "fits", "no": "does not fit"}


class Ticks:
    """A tick box for each of some names, which are ``offered`` with what they are for; ``value`` is
    the text of those that are ticked, as a field for a list has it.
    """

    def __init__(self, name: str, offered: Mapping[str, str], value: str) -> None:
        import ipywidgets

        ticked, self._watchers = split(value.lower()), list[Callable[[Any], None]]()
        self.description = name
        self.boxes: dict[str, Any] = {}
        for one, about in offered.items():
            box = ipywidgets.Checkbox(
                value=one in ticked,
                description=one,
                indent=False,
                layout={"width": "10em", "margin": "0 4px 0 0"},
            )
            tooltip(box, told(about))
            box.observe(self._changed, "value")
            self.boxes[one] = box
        label = ipywidgets.HTML(
            f'<div style="text-align:right;width:13em;padding-right:.5em">{html.escape(name)}</div>'
        )
        rows = ipywidgets.Box(
            list(self.boxes.values()), layout={"flex_flow": "row wrap", "flex": "1 1 24em"}
        )
        self.box = ipywidgets.HBox([label, rows], layout={"width": "38em", "flex": "0 1 38em"})
        # what is typed that no box stands for, so that it can be refused
        self._unknown = [one for one in ticked if one not in offered]

    @property
    def value(self) -> str:
        """The ticked names, with commas between them."""
        ticked = [one for one, box in self.boxes.items() if box.value]
        return ",".join([*ticked, *self._unknown])

    @value.setter
    def value(self, text: str) -> None:
        """Tick the names in a text."""
        wanted = split(text.lower())
        before = self.value
        self._unknown = [one for one in wanted if one not in self.boxes]
        for one, box in self.boxes.items():
            if box.value != (one in wanted):
                box.unobserve(self._changed, "value")
                box.value = one in wanted
                box.observe(self._changed, "value")
        if self.value != before:
            self._changed(None)

    @property
    def disabled(self) -> bool:
        """Whether it is greyed out."""
        return all(box.disabled for box in self.boxes.values())

    @disabled.setter
    def disabled(self, off: bool) -> None:
        """Grey it out, or not."""
        for box in self.boxes.values():
            box.disabled = off

    def observe(self, watcher: Callable[[Any], None], _: str) -> None:
        """Have ``watcher`` called when what is ticked changes."""
        self._watchers.append(watcher)

    def _changed(self, _: Any) -> None:
        for watcher in self._watchers:
            watcher(SimpleNamespace(owner=self, new=self.value))


def table(
    said: Advice, ticked: Callable[[Choice], bool], take: Callable[[Choice, bool], None]
) -> Any:
    """All that was looked at for a device, each with a tick box; ``take`` is told what is ticked
    and what no more.
    """
    import ipywidgets

    size = tables.size
    columns = "9em 12em 7em 8em 11em 1fr"
    titles = ("take", "type", "fits?", "file", "memory in use", "quality")
    head = ipywidgets.HTML(_row(columns, *map(told, titles), bold=True))
    rows, boxes = [], list[tuple[Choice, Any]]()

    def changed(choice: Choice, new: bool) -> None:
        take(choice, new)
        for other, box in boxes:  # of one method another may have taken its place
            if box.value != ticked(other):
                box.unobserve_all("value")
                box.value = ticked(other)
                box.observe(lambda change, one=other: changed(one, change.new), "value")

    for one in said.choices:
        box = ipywidgets.Checkbox(
            value=ticked(one), description=one.method, indent=False, layout={"width": "9em"}
        )
        tooltip(box, say("make {what}", what=f"{one.method} {one.type}"))
        box.observe(lambda change, one=one: changed(one, change.new), "value")
        boxes.append((one, box))
        fits = told(FITS.get(one.fits, f"{one.layers} layers"))
        cells = ipywidgets.HTML(
            _row(
                columns.partition(" ")[2],
                one.type,
                fits,
                ("" if one.exact else "≈ ") + size(one.weights),
                size(one.memory),
                told(one.quality) or "–",
            ),
            layout={"flex": "1 1 auto", "height": "auto"},
        )
        rows.append(ipywidgets.HBox([box, cells], layout={"align_items": "center"}))
    return ipywidgets.VBox([head, *rows], layout={"max_height": "26em", "overflow": "auto"})


def _row(columns: str, *cells: str, bold: bool = False) -> str:
    style = f"display:grid;grid-template-columns:{columns};gap:0 8px;line-height:1.3"
    weight = ";font-weight:bold" if bold else ""
    cut = "white-space:nowrap;overflow:hidden;text-overflow:ellipsis"  # rows have one line
    said = [html.escape(one) for one in cells]
    inside = "".join(f'<span style="{cut}" title="{one}">{one}</span>' for one in said)
    return f'<div style="{style}{weight}">{inside}</div>'
