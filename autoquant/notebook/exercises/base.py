"""How an exercise that asks for a function is checked: the function is called on hidden cases, and
what it gives is compared with what is right and with what the usual mistakes give.
"""

from __future__ import annotations

import copy
import html
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoquant.core.language import say

TOLERANCE = 1e-4  # of the largest right value: float32 will do
COLORS = {None: "#5f5f5f", True: "#2e7d32", False: "#b00020"}
SIGNS = {None: "…", True: "✓", False: "✗"}


@dataclass(frozen=True)
class Mistake:
    """A usual mistake: ``gives`` takes what the exercise's function takes and makes it."""

    hint: str
    gives: Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """What is asked: ``right`` gives it, for each of the hidden ``cases`` (arguments). An answer
    that is right but holds more than ``room`` times the largest argument's bytes in memory is told
    so, by ``cramped``.
    """

    right: Callable[..., Any]
    cases: tuple[tuple[Any, ...], ...]
    mistakes: tuple[Mistake, ...]
    room: float = 0  # 0: as much as it likes
    cramped: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right (None: not answered yet), and if not, a hint. Shows itself."""

    name: str
    right: bool | None
    hint: str = ""

    def __repr__(self) -> str:
        if self.right is None:
            return f"{SIGNS[None]} {say('exercise {name} is not answered yet', name=self.name)}"
        return f"{SIGNS[self.right]} {self.name}" + (f": {self.hint}" if self.hint else "")

    def _repr_html_(self) -> str:
        mark, _, after = repr(self).partition(": ")
        said = f" &nbsp; {html.escape(after)}" if after else ""
        color = COLORS[self.right]
        return f"<b style='color:{color};font-size:120%'>{html.escape(mark)}</b>{said}"


def judge(name: str, exercise: Exercise, function: Callable[..., Any]) -> Verdict:
    """Call the function on every case. One that gives None is not answered yet; one that raises
    gets what it raised; a wrong one the hint of the mistake that gives the same on all cases.
    """
    given = []
    for case in exercise.cases:
        try:
            given.append(_parts(function(*copy.deepcopy(case))))
        except Exception as error:  # noqa: BLE001 - whatever a student's function raises is shown
            stopped = say("your function stopped with {error}", error=_said(error))
            return Verdict(name, False, stopped)
    if all(len(one) == 1 and one[0].dtype == object and one[0].item() is None for one in given):
        return Verdict(name, None)
    right = [_parts(exercise.right(*copy.deepcopy(case))) for case in exercise.cases]
    if _same(given, right):
        if exercise.room and _memory(exercise, function) > exercise.room:
            return Verdict(name, False, say(exercise.cramped))
        return Verdict(name, True)
    for mistake in exercise.mistakes:
        made = [_parts(mistake.gives(*copy.deepcopy(case))) for case in exercise.cases]
        if _same(given, made):
            return Verdict(name, False, say(mistake.hint))
    return Verdict(name, False, _difference(given, right))


def _memory(exercise: Exercise, function: Callable[..., Any]) -> float:
    """What a function allocates at its peak on the largest case, by the bytes of the largest
    argument. NumPy reports its arrays to tracemalloc.
    """
    size, case = max(
        ((max(np.asarray(part).nbytes for part in one), one) for one in exercise.cases),
        key=lambda pair: pair[0],
    )
    arguments = copy.deepcopy(case)
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1] / size
    finally:
        tracemalloc.stop()


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _parts(value: Any) -> tuple[np.ndarray[Any, Any], ...]:
    """A result as arrays: one, or for a tuple one for each of its parts."""
    parts = value if isinstance(value, tuple) else (value,)
    return tuple(
        np.asarray(part.detach().cpu() if hasattr(part, "detach") else part) for part in parts
    )


def _same(given: list[Any], wanted: list[Any]) -> bool:
    return all(
        len(one) == len(other) and all(map(_close, one, other))
        for one, other in zip(given, wanted, strict=True)
    )


def _close(one: Any, other: Any) -> bool:
    if one.shape != other.shape:
        return False
    if not _numbers(one) or not _numbers(other):
        return bool(np.array_equal(one, other))
    least = TOLERANCE * float(np.abs(other).max(initial=0))
    return bool(np.allclose(one.astype(float), other.astype(float), rtol=0, atol=least))


def _numbers(array: Any) -> bool:
    return array.dtype.kind in "iufb"


def _difference(given: list[Any], right: list[Any]) -> str:
    """What can be said of a wrong answer that is no usual mistake; not the right one itself."""
    for number, (one, other) in enumerate(zip(given, right, strict=True), 1):
        if len(one) != len(other):
            said = say(
                "your function gives {given} value(s), {wanted} are asked for",
                given=len(one),
                wanted=len(other),
            )
        else:
            pairs = zip(one, other, strict=True)
            said = next(filter(None, (_wrong(mine, wanted) for mine, wanted in pairs)), "")
        if said:
            where = say("in hidden case {number} of {all}", number=number, all=len(right))
            return f"{where} {said}"
    raise AssertionError("nothing differs")


def _wrong(mine: Any, wanted: Any) -> str:
    """What is wrong with one array; empty if nothing is."""
    if mine.shape != wanted.shape:
        return say(
            "the shape is {given}, {wanted} is asked for", given=mine.shape, wanted=wanted.shape
        )
    if _numbers(wanted) and not _numbers(mine):
        return say("numbers are asked for, and your function gives something else")
    if _close(mine, wanted):
        return ""
    if not _numbers(wanted):
        count = int((mine != wanted).sum())
        return say("{count} of {all} are wrong", count=count, all=wanted.size)
    if not np.isfinite(mine.astype(float)).all():
        return say("the result is not finite: is something divided by zero?")
    return say(
        "a value is off by {off}; the largest right one is {largest}",
        off=f"{float(np.abs(mine.astype(float) - wanted.astype(float)).max()):.3g}",
        largest=f"{float(np.abs(wanted).max()):.3g}",
    )
