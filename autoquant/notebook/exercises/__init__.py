"""Exercises of the lessons that ask for a function: ``check("9.1", threshold)`` runs it on cases
that the notebook does not show, so that none can be written to fit them alone.

What people get wrong is written down as functions that get it wrong: a hint is given to an answer
that is what such a function gives.
"""

from __future__ import annotations

from autoquant.core.errors import InputError
from autoquant.notebook.exercises import codes, formats, gptq, outliers, serving, spending
from autoquant.notebook.exercises.base import Exercise, Function
from autoquant.notebook.exercises.judging import judge
from autoquant.notebook.lesson import Answer

EXERCISES: dict[str, Exercise] = {
    "3": codes.ABSMAX,
    "6": codes.PACK4,
    "7": gptq.GPTQ,
    "8": spending.SPEND,
    **outliers.EXERCISES,
    **formats.EXERCISES,
    **serving.EXERCISES,
}


def check(name: str, function: Function) -> Answer:
    """Look at a function that answers an exercise: ✓, or ✗ with a hint. While it returns None it is
    not answered yet. Raises InputError for an exercise that there is not.
    """
    if name not in EXERCISES:
        raise InputError(f"there is no exercise {name!r}; there are: {', '.join(EXERCISES)}")
    return judge(name, EXERCISES[name], function)
