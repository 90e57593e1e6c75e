"""An exercise with what calibration does: one step of GPTQ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from autoquant.notebook.exercises.base import ROUND, Exercise, Function, Mistake

# gptq_step(weights, inverse): weights


def gptq_step(
    weights: Any,
    inverse: Any,
    sign: float = -1.0,
    divide: bool = True,
    finish: Function = lambda column: np.clip(np.round(column), -4, 3),
) -> Any:
    """The weights after column 0 was rounded to -4 … 3 and its error spread over the others.
    weights: [rows, columns], in steps; inverse: [columns, columns], of the Hessian.
    """
    after = np.array(weights, dtype=np.float64)
    after[:, 0] = finish(weights[:, 0])
    error = weights[:, 0] - after[:, 0]
    after[:, 1:] += sign * np.outer(error, inverse[0, 1:]) / (inverse[0, 0] if divide else 1)
    return after


def _step_with(**other: Any) -> Function:
    return lambda weights, inverse: gptq_step(weights, inverse, **other)


def _gptq_cases() -> Iterator[tuple[Any, Any]]:
    random = np.random.default_rng(7)
    for rows, columns in ((2, 3), (4, 6)):
        inputs = random.normal(size=(40, columns)) + random.normal(size=(40, 1))
        weights = random.normal(0, 1.5, size=(rows, columns))
        weights[:2, 0] = 5.3, -4.2  # beyond the largest code and the smallest
        yield weights, np.linalg.inv(inputs.T @ inputs)


def _read_gptq(answer: Any) -> Any:
    try:
        read = np.asarray(answer, dtype=np.float64)
    except (TypeError, ValueError):
        read = np.zeros(0)
    if read.ndim != 2:
        raise ValueError("Return all weights after the step, in the shape they came in.")
    return read


CLIP = "Codes of 3 bits are −4 … 3: clip what is rounded (np.clip)."
GPTQ = Exercise(
    cases=tuple(_gptq_cases()),
    right=gptq_step,
    unlike=None,
    mistakes=(
        Mistake(
            "The wrong sign: the other weights must make up for the error, not repeat it.",
            _step_with(sign=1.0),
        ),
        Mistake(
            "Divide the error by inverse[0, 0] before you spread it.",
            _step_with(divide=False),
        ),
        Mistake(
            CLIP,
            _step_with(finish=np.round),
        ),
        Mistake(
            CLIP,
            _step_with(finish=lambda column: np.clip(np.round(column), -4, 4)),
        ),
        Mistake(
            CLIP,
            _step_with(finish=lambda column: np.clip(np.round(column), -3, 3)),
        ),
        Mistake(
            ROUND,
            _step_with(finish=lambda column: np.clip(column, -4, 3)),
        ),
        Mistake("Column 0 is rounded; now spread its error over the others.", _step_with(sign=0.0)),
        Mistake(
            "Only column 0 is rounded in this step; the turn of the others comes later.",
            lambda weights, inverse: np.clip(np.round(gptq_step(weights, inverse)), -4, 3),
        ),
        Mistake(
            "The others are right. Column 0 must be what it was rounded to.",
            lambda weights, inverse: np.column_stack(
                [weights[:, 0], gptq_step(weights, inverse)[:, 1:]]
            ),
        ),
    ),
    read=_read_gptq,
    same=lambda answer, expected: (
        answer.shape == expected.shape and np.allclose(answer, expected, rtol=1e-4, atol=1e-6)
    ),
)
