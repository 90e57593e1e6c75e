"""What an exercise is that is answered with a function, and how answers that are arrays are
compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoquant.core.language import say

Function = Callable[..., Any]
ROUND = "Codes are whole numbers: round them."
TOLERANCE = 1e-4  # of the largest right value: float32 will do


@dataclass(frozen=True)
class Mistake:
    """A usual mistake: ``gives`` takes what the exercise's function takes and makes it."""

    hint: str
    gives: Function


def parts(value: Any) -> tuple[np.ndarray[Any, Any], ...]:
    """An answer as arrays: one, or for a tuple one for each of its parts."""
    several = value if isinstance(value, tuple) else (value,)
    return tuple(
        np.asarray(part.detach().cpu() if hasattr(part, "detach") else part) for part in several
    )


def alike(answer: Any, expected: Any) -> bool:
    """Whether two answers are the same arrays, as far as float32 goes."""
    return len(answer) == len(expected) and all(map(_close, answer, expected))


def difference(answer: Any, expected: Any) -> str:
    """What is wrong with arrays that make no usual mistake; not what is right."""
    if len(answer) != len(expected):
        return say(
            "your function gives {given} value(s), {wanted} are asked for",
            given=len(answer),
            wanted=len(expected),
        )
    pairs = zip(answer, expected, strict=True)
    return next(filter(None, (_wrong(mine, wanted) for mine, wanted in pairs)), "")


@dataclass(frozen=True)
class Exercise:
    """An exercise: ``right`` gives what is asked for, for each of the hidden ``cases`` (arguments).

    ``read`` turns an answer into what ``same`` compares (ValueError with what to say if it has
    another form); ``objection`` says what else is wrong with an answer to a case, if anything. A
    wrong answer that is no usual mistake is described by ``unlike``; without it, the case is so
    small that it is shown, with what it should be. An answer that is right but holds more than
    ``room`` times the largest argument's bytes in memory (0: no limit) is told so, by ``cramped``.
    """

    right: Function
    cases: tuple[tuple[Any, ...], ...]
    mistakes: tuple[Mistake, ...]
    read: Function = parts
    same: Callable[[Any, Any], bool] = alike
    objection: Function = lambda answer, *case: ""
    unlike: Callable[[Any, Any], str] | None = difference
    room: float = 0
    cramped: str = ""


def _numbers(array: Any) -> bool:
    return array.dtype.kind in "iufb"


def _close(one: Any, other: Any) -> bool:
    if one.shape != other.shape:
        return False
    if not _numbers(one) or not _numbers(other):
        return bool(np.array_equal(one, other))
    least = TOLERANCE * float(np.abs(other).max(initial=0))
    return bool(np.allclose(one.astype(float), other.astype(float), rtol=0, atol=least))


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
    if not np.isfinite(mine.astype(float)).all():
        return say("the result is not finite: is something divided by zero?")
    return say(
        "a value is off by {off}; the largest right one is {largest}",
        off=f"{float(np.abs(mine.astype(float) - wanted.astype(float)).max()):.3g}",
        largest=f"{float(np.abs(wanted).max()):.3g}",
    )
