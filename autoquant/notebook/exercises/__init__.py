"""Exercises of the lessons that ask for a function. ``check("9.1", split)`` looks at an answer.

The cases lie here and not in the notebooks, so that no function can be written to fit them alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autoquant.core.errors import InputError
from autoquant.notebook.exercises import formats, outliers, serving
from autoquant.notebook.exercises.base import Exercise, Verdict, judge

EXERCISES: dict[str, Exercise] = {**outliers.EXERCISES, **formats.EXERCISES, **serving.EXERCISES}


def check(name: str, function: Callable[..., Any]) -> Verdict:
    """Call the function on hidden cases. ✓ right; ✗ with a hint; … not answered yet, while it
    returns None.
    """
    if name not in EXERCISES:
        raise InputError(f"there is no exercise {name!r}; there are: {', '.join(EXERCISES)}")
    return judge(name, EXERCISES[name], function)
