"""Exercises of notebook 01 that are answered with code: ``check(name, function)`` runs the function
on cases that the notebook does not show.

What people get wrong is written down as functions that get it wrong: a hint is given to an answer
that is what such a function gives.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from autoquant.core.errors import InputError
from autoquant.core.language import say
from autoquant.notebook.first_exercises import codes, gptq, spending
from autoquant.notebook.first_exercises.base import Function
from autoquant.notebook.lesson import Answer

EXERCISES = {
    "absmax": codes.ABSMAX,
    "pack4": codes.PACK4,
    "gptq_step": gptq.GPTQ,
    "spend": spending.SPEND,
}


def _short(value: Any) -> str:
    """A value or the arguments of a case, in one line."""
    if isinstance(value, tuple):
        return ", ".join(_short(one) for one in value)
    if isinstance(value, np.ndarray):
        return " ".join(np.array2string(value, precision=3, threshold=12).split())
    if isinstance(value, dict):  # a table would fill the page
        return "{" + ", ".join(f"{k!r}: {_short(v)}" for k, v in value.items()) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _copy(case: tuple[Any, ...]) -> Iterator[Any]:
    """Arguments that a function may change."""
    for one in case:
        yield one.copy() if isinstance(one, np.ndarray) else one


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without NumPy's warnings: a division by zero has a hint of its own."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def check(name: str, function: Function) -> Answer:
    """Look at a function that answers an exercise: ✓, or ✗ with a hint. While it returns None it is
    not answered yet.
    """
    if name not in EXERCISES:
        raise InputError(f"there is no exercise {name!r}; there are: {', '.join(EXERCISES)}")
    exercise = EXERCISES[name]
    with _quiet():
        for case in exercise.cases:
            try:
                given = function(*_copy(case))
            except Exception as error:  # noqa: BLE001
                # whatever a student's function does wrong is for the student to read
                said = say(
                    "for {case} your function stopped with {error}",
                    case=_short(case),
                    error=f"{type(error).__name__}: {error}",
                )
                return Answer(name, False, said)
            if given is None or given is ...:
                return Answer(name, None)
            try:
                answer = exercise.read(given)
            except ValueError as form:
                return Answer(name, False, say(str(form)))
            hint = exercise.objection(answer, *case)
            if hint:
                return Answer(name, False, say(hint))
            expected = exercise.read(exercise.right(*_copy(case)))
            if exercise.same(answer, expected):
                continue
            for hint, mistake in exercise.mistakes:
                if exercise.same(answer, exercise.read(mistake(*_copy(case)))):
                    return Answer(name, False, say(hint))
            said = say(
                "for {case} it should be {expected}, not {answer}",
                case=_short(case),
                expected=_short(expected),
                answer=_short(answer),
            )
            return Answer(name, False, said)
    return Answer(name, True)
