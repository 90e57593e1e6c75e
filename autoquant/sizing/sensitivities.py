"""How sensitive a model is, as users hold it: a table, a picture, what files of any size lose."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from autoquant.core.language import told
from autoquant.core.records import RunRecord
from autoquant.display import html, sensitivities, sensitivity_plot, tables
from autoquant.display.sensitivities import Point
from autoquant.fisher import summary
from autoquant.methods.gguf.measured import Measured

WIDE = 118  # columns of text below the table


class Frontier(tuple[Point, ...]):
    """The best files of several sizes, predicted, the smallest first if no sizes were named. Prints
    as a table, in a notebook too.
    """

    stock: Mapping[str, Point]

    @classmethod
    def of(cls, points: Sequence[Point], stock: Mapping[str, Point]) -> Frontier:
        """Points beside llama.cpp's own types."""
        made = cls(points)
        made.stock = stock
        return made

    def __str__(self) -> str:
        return tables.table(*sensitivities.frontier(self, self.stock))

    __repr__ = __str__  # what a Python prompt shows

    def _repr_html_(self) -> str:
        return html.table(*sensitivities.frontier(self, self.stock))


@dataclass(frozen=True, repr=False)
class Sensitivities(Measured):
    """What each tensor of a model would lose by each type. Prints as a table by kind of tensor, the
    most sensitive first; in a notebook it shows itself with the picture.

    ``table`` has the figures tensor by tensor, ``path`` is their file. ``result`` is a run whose
    measured files the picture has too (see :meth:`beside`).
    """

    result: RunRecord | None = None

    @classmethod
    def of(cls, measured: Measured) -> Sensitivities:
        """What a run found, as one that shows itself."""
        return cls(
            **{one.name: getattr(measured, one.name) for one in dataclasses.fields(measured)}
        )

    def __str__(self) -> str:
        parts = summary.parts(self.table)
        head, body = sensitivities.parts(parts, summary.types(self.table))
        below = (textwrap.fill(told(line), WIDE, break_long_words=False) for line in self._below())
        return "\n".join(
            [f"{self.source.id}: {told(self._how())}", "", tables.table(head, body), "", *below]
        )

    __repr__ = __str__  # what a Python prompt shows

    def _repr_html_(self) -> str:
        parts = summary.parts(self.table)
        shown = html.table(*sensitivities.parts(parts, summary.types(self.table)))
        below = "".join(f"<div>{escape(told(line))}</div>" for line in self._below())
        seen = sensitivity_plot.described(summary.grid(self.table), self.points())
        picture = html.picture(self.png(), seen, wide=True)
        how = f"<b>{escape(self.source.id)}</b>: {escape(told(self._how()))}"
        return f"<div><p>{how}</p>{picture}{shown}{below}</div>"

    def frontier(self, sizes: Sequence[str | int] | str | int | None = None) -> Frontier:
        """The best files of these sizes, and the KL divergence that is predicted for each: nothing
        is made.

        sizes: as ``size`` of GGUF takes them ("4.5bpw", "5.5GB", "Q4_K_M"), or numbers of bytes;
            default a ladder of up to 24 from the smallest file to Q8_0's. A point's ``types`` are
            what each tensor gets. Raises InputError for a size that cannot be reached.
        """
        asked = [sizes] if isinstance(sizes, (str, int)) else sizes
        return Frontier.of(self.points(asked), self.stock)

    def beside(self, result: RunRecord) -> Sensitivities:
        """The same, with the measured files of a run of this model in the picture."""
        return dataclasses.replace(self, result=result)

    def png(self) -> bytes:
        """The picture: above what a million weights of each tensor lose, below size against
        predicted KL divergence, with llama.cpp's own types.
        """
        measured = self.result.artifacts if self.result is not None else ()
        return sensitivity_plot.draw(
            self.source.id,
            summary.grid(self.table),
            self.points(),
            list(self.stock.values()),
            measured,
        )

    def write_picture(self, path: str | Path) -> Path:
        """Write the picture as a PNG; its path."""
        target = Path(path)
        target.write_bytes(self.png())
        return target

    def _how(self) -> str:
        about = self.table.about
        return (
            f"sensitivities by squared gradients on {about.get('chunks', '?')} chunks of"
            f" {about.get('tokens in a chunk', '?')} tokens, {about.get('text', 'unknown text')}"
        )

    def _below(self) -> list[str]:
        return [
            sensitivities.ABOUT.format(type=summary.common(self.table)),
            f"table: {self.path}",
        ]
