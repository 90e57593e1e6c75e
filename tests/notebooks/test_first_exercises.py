"""The exercises of notebook 01 that are answered with code: right answers, and a hint for each
mistake, in both languages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import nbformat
import numpy as np
import pytest

from autoquant.core import language as languages
from autoquant.core.errors import InputError
from autoquant.notebook import exercises, lesson
from autoquant.notebook.exercises import spending
from tests.notebooks.running import FOLDER

check = exercises.check
EXERCISES = {name: one for name, one in exercises.EXERCISES.items() if "." not in name}
FUNCTIONS = {"3": "absmax", "6": "pack4", "7": "gptq_step", "8": "spend"}
EVERY = [(name, i) for name, exercise in EXERCISES.items() for i in range(len(exercise.mistakes))]


@pytest.fixture(params=["en", "tr"])
def language(request: pytest.FixtureRequest) -> Iterator[str]:
    languages.use(request.param)
    yield request.param
    languages.use("en")


def absmax(weights: Any, bits: int) -> Any:
    """As a beginner writes it."""
    largest = max(abs(one) for one in weights.ravel())
    scale = largest / (2 ** (bits - 1) - 1) if largest else 1
    return [[round(float(one) / scale) for one in row] for row in np.atleast_2d(weights)], scale


def pack4(codes: Any) -> Any:
    return bytes(int(low) + 16 * int(high) for low, high in zip(codes[::2], codes[1::2]))  # noqa: B905


def gptq_step(weights: Any, inverse: Any) -> Any:
    weights[:, 0], error = (rounded := np.rint(weights[:, 0]).clip(-4, 3)), weights[:, 0] - rounded
    for j in range(1, weights.shape[1]):
        weights[:, j] -= error / inverse[0, 0] * inverse[0, j]
    return weights


def spend(damage: Any, size: Any, budget: float) -> Any:
    """Not all choices, but the best step for a byte, again and again."""
    return spending._upgraded(damage, size, budget, per_byte=True)


@pytest.mark.parametrize(("name", "function"), [("6", pack4), ("7", gptq_step), ("8", spend)])
def test_a_right_answer_may_be_written_in_another_way(
    name: str, function: Callable[..., Any]
) -> None:
    assert check(name, EXERCISES[name].right).right is True
    assert repr(check(name, function)) == f"✓ {name}"


@pytest.mark.parametrize("folder", ["", "tr"])
def test_the_answers_in_the_notebook_are_right(folder: str) -> None:
    path = FOLDER / folder / "01_Introduction_to_Quantization.ipynb"
    last = nbformat.read(path, as_version=4).cells[-1].source
    named: dict[str, Any] = {"np": np}
    exec(last.split("```python\n")[1].split("```")[0], named)
    assert [check(name, named[FUNCTIONS[name]]).right for name in EXERCISES] == [True] * 4


def test_absmax_keeps_the_shape() -> None:
    flat: Callable[..., Any] = lambda w, bits: (absmax(w, bits)[0][0], absmax(w, bits)[1])  # noqa: E731
    both: Callable[..., Any] = lambda w, bits: (absmax if w.ndim == 2 else flat)(w, bits)  # noqa: E731
    assert check("3", both).right is True
    assert check("3", absmax).right is False, "a row became a matrix"


@pytest.mark.parametrize(("name", "number"), EVERY)
def test_each_mistake_gets_its_hint(name: str, number: int, language: str) -> None:
    mistake = EXERCISES[name].mistakes[number]
    hint, said = mistake.hint, check(name, mistake.gives)
    assert said.right is False
    assert said.hint == (hint if language == "en" else languages.table("tr")[hint])


@pytest.mark.parametrize(
    ("name", "function", "hint"),
    [
        (
            "3",
            lambda w, bits: np.round(w),
            "Return two things: first the codes, then the scale.",
        ),
        (
            "3",
            lambda w, bits: absmax(w, bits)[::-1],
            "Return two things: first the codes, then the scale.",
        ),
        ("6", lambda codes: "bytes", "Return the bytes as one array."),
        (
            "6",
            lambda codes: [int(a) + 16 * int(b) for a, b in zip(codes[::2], codes[1::2])],  # noqa: B905
            "The numbers are right, but each takes more than one byte: add .astype(np.uint8).",
        ),
        (
            "7",
            lambda weights, inverse: weights[:, 0],
            "Return all weights after the step, in the shape they came in.",
        ),
        ("8", lambda damage, size, budget: [4], "Return a dictionary: bits for each part."),
        (
            "8",
            lambda damage, size, budget: dict.fromkeys([*damage][1:], 2),
            "Return a dictionary: bits for each part.",
        ),
        (
            "8",
            lambda damage, size, budget: dict.fromkeys(damage, 6),
            "Your choice takes more bytes than the budget has.",
        ),
    ],
)
def test_answers_of_another_form(
    name: str, function: Callable[..., Any], hint: str, language: str
) -> None:
    assert check(name, function).hint == (hint if language == "en" else languages.table("tr")[hint])


@pytest.mark.parametrize("name", list(EXERCISES))
def test_nothing_stops_a_notebook(name: str, language: str) -> None:
    unanswered = check(name, lambda *_: None)
    assert unanswered.right is None
    assert (
        repr(unanswered) == f"… {languages.say('exercise {name} is not answered yet', name=name)}"
    )
    stopped = check(name, lambda *_: 1 / 0)
    assert stopped.right is False
    assert "ZeroDivisionError: division by zero" in stopped.hint
    assert check(name, lambda: None).right is False, "takes no arguments"
    other = check("3", lambda w, bits: (w * 0 + 1, 2))
    assert "[ 2. -7. 0. 5.], 0.1314" in other.hint, "what it should be"


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="no exercise '2'; there are: 3, 6"):
        check("2", absmax)
    with pytest.raises(InputError, match="language: 'fr': there are en, tr"):
        languages.use("fr")


@pytest.mark.parametrize("number", list(lesson.WRONG))
def test_numbers_that_show_what_went_wrong_get_a_hint(number: int, language: str) -> None:
    for given, hint in lesson.WRONG[number].items():
        answer = lesson.check(number, given)
        assert answer.right is False
        assert answer.hint == (hint if language == "en" else languages.table("tr")[hint])


@pytest.mark.parametrize(
    ("number", "given"),
    [(1, 40), (1, 300), (1, "39375"), (2, [1, 2, 3, 4]), (4, 65), (4, 0), (5, 5), (5, 4)],
)
def test_any_other_wrong_number_is_told_how_to_get_there(
    number: int, given: object, language: str
) -> None:
    answer = lesson.check(number, given)
    assert answer.right is False
    hint = lesson.HINTS[number]
    assert answer.hint == (hint if language == "en" else languages.table("tr")[hint])


@pytest.mark.parametrize("folder", ["", "tr"])
def test_each_cell_checks_the_exercise_that_its_text_asks(folder: str) -> None:
    """And says its number, not its function, while it is not answered."""
    path = FOLDER / folder / "01_Introduction_to_Quantization.ipynb"
    cells = {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}
    for number in range(1, 9):
        asked = re.findall(r'check\("?(\d)"?, ', cells[f"ex{number}"])
        assert asked == [str(number)]
        assert re.match(rf"\*\*\w+ {number}[.,]", cells[f"ex{number}-text"])
