"""What an exercise is that is answered with a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Function = Callable[..., Any]
ROUND = "Codes are whole numbers: round them."


@dataclass(frozen=True)
class Exercise:
    """An exercise: its cases (the arguments of each); a function that is right, and ones that are
    wrong with what to say to them; how an answer is read (ValueError with what to say if it has
    another form); whether two answers are the same; and what else is wrong with an answer to a
    case, if anything.
    """

    cases: tuple[tuple[Any, ...], ...]
    right: Function
    mistakes: tuple[tuple[str, Function], ...]
    read: Function
    same: Callable[[Any, Any], bool]
    objection: Function = lambda answer, *case: ""
