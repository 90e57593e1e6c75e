"""How the answer to an exercise is checked: the function is called on hidden cases, and what it
gives is compared with what is right and with what the usual mistakes give.
"""

from __future__ import annotations

import contextlib
import copy
import tracemalloc
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from autoquant.core.language import say
from autoquant.notebook.exercises.base import Exercise, Function
from autoquant.notebook.lesson import Answer


def judge(name: str, exercise: Exercise, function: Function) -> Answer:
    """Call the function case by case, up to the first that is wrong. One that gives None is not
    answered yet; one that raises gets what it raised; a wrong one the hint of the first mistake
    that gives the same there.
    """
    with _quiet():
        for number, case in enumerate(exercise.cases, 1):
            try:
                given = function(*copy.deepcopy(case))
            except Exception as error:  # noqa: BLE001
                # whatever a student's function does wrong is for the student to read
                return Answer(name, False, _stopped(exercise, case, error))
            if given is None or given is ...:
                return Answer(name, None)
            hint = _hint(exercise, number, case, given)
            if hint:
                return Answer(name, False, hint)
        if exercise.room and _memory(exercise, function) > exercise.room:
            return Answer(name, False, say(exercise.cramped))
    return Answer(name, True)


def _hint(exercise: Exercise, number: int, case: tuple[Any, ...], given: Any) -> str:
    """What is wrong with an answer to one case; empty if nothing is."""
    try:
        answer = exercise.read(given)
    except ValueError as form:
        return say(str(form))
    objection = exercise.objection(answer, *case)
    if objection:
        return say(objection)
    expected = exercise.read(exercise.right(*copy.deepcopy(case)))
    if exercise.same(answer, expected):
        return ""
    for mistake in exercise.mistakes:
        if exercise.same(answer, exercise.read(mistake.gives(*copy.deepcopy(case)))):
            return say(mistake.hint)
    if exercise.unlike is None:
        return say(
            "for {case} it should be {expected}, not {answer}",
            case=_short(case),
            expected=_short(expected),
            answer=_short(answer),
        )
    where = say("in hidden case {number} of {all}", number=number, all=len(exercise.cases))
    return f"{where} {exercise.unlike(answer, expected)}"


def _stopped(exercise: Exercise, case: tuple[Any, ...], error: Exception) -> str:
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    if exercise.unlike is None:
        return say("for {case} your function stopped with {error}", case=_short(case), error=said)
    return say("your function stopped with {error}", error=said)


def _short(value: Any) -> str:
    """A value or the arguments of a case, in one line."""
    if isinstance(value, tuple):
        return ", ".join(_short(one) for one in value)
    if isinstance(value, np.ndarray):
        return " ".join(np.array2string(value, precision=3, threshold=12).split())
    if isinstance(value, dict):  # a table would fill the page
        return "{" + ", ".join(f"{k!r}: {_short(v)}" for k, v in value.items()) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without NumPy's warnings: a division by zero has a hint of its own."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _memory(exercise: Exercise, function: Function) -> float:
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
