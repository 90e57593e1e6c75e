"""Several runs' plans in one table, with what they need together."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from autoquant.core.language import say, told
from autoquant.core.plans import Plan, PlanItem
from autoquant.display import html, tables
from autoquant.methods import METHODS

HEAD = ("model", "method", "type", "bits/weight", "size", "note")


class Plans:
    """Plans of runs that come one after the other, and keep their files. Prints as a table, in a
    notebook too; a single one as itself.
    """

    def __init__(self, plans: Iterable[Plan]) -> None:
        self.plans = tuple(plans)

    @property
    def download(self) -> int:
        """Bytes to download; each model once."""
        return sum({one.source.id: one.download for one in self.plans}.values())

    @property
    def disk_needed(self) -> int:
        """Bytes of what is downloaded, all files, and what the largest run writes in between."""
        made = [_made(one) for one in self.plans]
        between = (
            one.disk_needed - one.download - own for one, own in zip(self.plans, made, strict=True)
        )
        return self.download + sum(made) + max(0, *between)

    @property
    def seconds(self) -> dict[str, float]:
        """How long all of it takes here, by what is done, as far as that is known."""
        total: dict[str, float] = {}
        loaded = set[str]()
        for one in self.plans:
            for doing, value in one.seconds.items():
                if doing != "download" or one.source.id not in loaded:
                    total[doing] = total.get(doing, 0.0) + value
            loaded.add(one.source.id)
        return total

    def _table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Head, rows, and what is said below them; without columns that say nothing."""
        notes = list(
            dict.fromkeys(filter(None, (_note(i) for one in self.plans for i in one.items)))
        )
        marks = {note: f"[{i}]" for i, note in enumerate(notes, 1)}
        body = [
            (
                one.source.id,
                METHODS[one.method].title,
                item.type,
                "–" if item.impossible else f"{item.bits_per_weight:.2f}",
                "–" if item.impossible else tables.size(item.bytes),
                marks.get(_note(item), ""),
            )
            for one in self.plans
            for item in one.items
        ]
        kept = [i for i in range(len(HEAD)) if any(row[i] for row in body)]
        below = [f"{mark} {told(note)}" for note, mark in marks.items()]
        said = dict.fromkeys(note for one in self.plans for note in one.notes)
        below += [told(f"note: {note}") for note in said]
        return [HEAD[i] for i in kept], [[row[i] for i in kept] for row in body], below

    def _needs(self) -> list[str]:
        """What all of them need, in words."""
        first = self.plans[0]
        disk, free = tables.size(self.disk_needed), tables.size(first.disk_free)
        memory = tables.size(max(one.memory_needed for one in self.plans))
        available = tables.size(min(one.memory_available for one in self.plans))
        return [
            *([f"to download: {tables.size(self.download)}"] if self.download else []),
            f"disk while working: about {disk} (free: {free})",
            f"memory while working: about {memory} (available: {available})",
            *([tables.time_here(self.seconds)] if self.seconds else []),
        ]

    @property
    def verdict(self) -> tuple[bool, str]:
        """Whether all can be done here, and that in words."""
        for one in self.plans:
            good, said = one.verdict
            if not good:
                return False, f"{METHODS[one.method].title} ({one.source.id}): {told(said)}"
        if self.disk_needed > self.plans[0].disk_free:
            return False, say("all of it does NOT fit: ask for fewer or smaller types")
        return True, say("all of it fits")

    def __str__(self) -> str:
        if len(self.plans) == 1:
            return tables.plan(self.plans[0])
        head, body, below = self._table()
        lines = [*below, "", *map(told, self._needs()), self.verdict[1]]
        return "\n".join([tables.table(head, body, left=3), *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if len(self.plans) == 1:
            return html.plan(self.plans[0], METHODS[self.plans[0].method].title)
        head, body, below = self._table()
        lines = [*below, *map(told, self._needs())]
        said = "".join(f"<div>{escape(line)}</div>" for line in lines)
        verdict = html.verdict_line(*self.verdict)
        return f"<div>{html.table(head, body, left=3)}{said}{verdict}</div>"


def _made(plan: Plan) -> int:
    return sum(item.bytes for item in plan.items if not item.impossible)


def _note(item: PlanItem) -> str:
    if item.impossible:
        return f"cannot be made: {item.impossible}"
    needs = ["needs an importance matrix"] if item.needs_imatrix else []
    return "; ".join(filter(None, [*needs, item.note]))
