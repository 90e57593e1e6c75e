"""The exercises of 09 to 11: the answers that docs/teaching.md gives are right, as they stand there
and, folded, in the notebooks; every usual mistake gets its own hint.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from typing import Any

import nbformat
import numpy as np
import pytest

from autoquant.core.errors import InputError
from autoquant.notebook import exercises
from autoquant.notebook.exercises import check
from tests.notebooks.running import FOLDER, ROOT

EXERCISES = {name: one for name, one in exercises.EXERCISES.items() if "." in name}
LESSONS = ("09_Outliers", "10_Formats", "11_Serving")
MISTAKES = [
    pytest.param(name, number, id=f"{name}-{number}")
    for name, exercise in EXERCISES.items()
    for number in range(len(exercise.mistakes))
]


def cells(name: str) -> list[Any]:
    """The cells of the lesson that an exercise is in."""
    (path,) = FOLDER.glob(f"{int(name.split('.')[0]):02}_*.ipynb")
    return list(nbformat.read(path, as_version=4).cells)


def defined(name: str) -> dict[str, Any]:
    """The functions that the lesson defines (but for exercises), with numpy as np."""
    names: dict[str, Any] = {"np": np}
    for cell in cells(name):
        if cell.cell_type == "code" and not cell.id.startswith("ex"):
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.FunctionDef):
                    exec(compile(ast.unparse(node), cell.id, "exec"), names)
    return names


def written(name: str) -> str:
    """The code that docs/teaching.md answers an exercise with."""
    text = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    found = re.search(rf"^\*\*{re.escape(name)}\*\*\n\n```python\n(.*?)^```", text, re.M | re.S)
    assert found, f"docs/teaching.md has no answer to {name}"
    return found[1].strip()


def answer(name: str) -> Callable[..., Any]:
    """The function that docs/teaching.md answers an exercise with."""
    names, source = defined(name), written(name)
    exec(source, names)
    return names[ast.parse(source).body[-1].name]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_answers_of_the_docs_are_right(name: str) -> None:
    assert str(check(name, answer(name))) == f"✓ {name}"


@pytest.mark.parametrize("name", EXERCISES)
def test_each_is_asked_once_with_a_function_that_is_not_answered_yet(name: str) -> None:
    asked = [cell for cell in cells(name) if f'check("{name}"' in cell.source]
    assert len(asked) == 1
    tree = ast.parse(asked[0].source)
    names: dict[str, Any] = {"np": np}
    exec(ast.unparse(tree.body[0]), names)
    function = names[tree.body[0].name]  # type: ignore[attr-defined]
    assert str(check(name, function)) == f"… exercise {name} is not answered yet"
    taken = ast.parse(re.sub(r"\n.*", "", asked[0].source) + "\n    pass").body[0].args.args  # type: ignore[attr-defined]
    assert len(taken) == len(EXERCISES[name].cases[0]), "it takes what the cases have"


@pytest.mark.parametrize(("name", "number"), MISTAKES)
def test_each_usual_mistake_gets_its_own_hint(name: str, number: int) -> None:
    mistake = EXERCISES[name].mistakes[number]
    verdict = check(name, mistake.gives)
    assert verdict.right is False
    assert verdict.hint == mistake.hint


@pytest.mark.parametrize("folder", ["", "tr"])
@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_has_its_answers_and_a_hint_to_begin_with_folded(lesson: str, folder: str) -> None:
    """A classroom may have no network: a link to the docs is no answer."""
    found = nbformat.read(FOLDER / folder / f"{lesson}.ipynb", as_version=4).cells
    mine = [name for name in EXERCISES if int(name.split(".")[0]) == int(lesson[:2])]
    by_id = {cell.id: cell.source for cell in found}
    given = by_id["next"].split("```python\n")[1].split("```")[0].strip()
    assert given == "\n\n".join(map(written, mine))
    for number, name in enumerate(mine, 1):
        text = by_id[f"ex{number}-text"]
        assert f"{name}.**" in text
        hint = text.split("<details><summary>")[1].split("</summary>")[1]
        assert hint.startswith("\n\n"), "a blank line, or Markdown is not rendered there"
        assert hint.endswith("\n\n</details>")
        assert "\n\ndef " not in hint


@pytest.mark.parametrize("name", EXERCISES)
def test_no_cell_above_has_the_answer_already(name: str) -> None:
    """What is asked for may not stand there to be copied: none of the lesson's own functions that
    take as much is right.
    """
    count = len(EXERCISES[name].cases[0])
    for one in (one for one in defined(name).values() if inspect.isfunction(one)):
        if len(inspect.signature(one).parameters) == count:
            assert check(name, one).right is not True, one.__name__


def test_what_raises_or_has_another_shape_or_is_not_finite_is_said() -> None:
    def raising(weights: Any, codes: Any, importance: Any) -> Any:
        return weights / {}

    def told(value: Callable[..., Any]) -> str:
        return check("10.4", value).hint

    assert "stopped with TypeError: unsupported operand" in check("10.3", raising).hint
    assert "stopped with TypeError" in told(lambda: 1), "too few arguments"
    assert "the shape is (3,), (24, 32) is asked for" in told(lambda w: np.ones(3))
    assert "gives 2 value(s), 1 are asked" in told(lambda w: (w, w))
    assert "not finite" in told(lambda w: np.full(w.shape, np.inf))
    assert "numbers are asked for" in told(lambda w: np.full(w.shape, "x"))
    assert "off by" in told(np.ones_like)


def test_right_to_four_digits_is_right_and_inputs_may_be_changed() -> None:
    def rough(weights: Any) -> Any:
        found = EXERCISES["10.4"].right(weights).astype(np.float32)
        weights[:] = 0
        return found

    assert check("10.4", rough).right
    assert check("10.4", lambda *case: 1.01 * EXERCISES["10.4"].right(*case)).right is False


def by_loops(x: Any) -> Any:
    """The rotation in plain Python, as lists."""
    x, n, apart = [float(one) for one in x], len(x), 1
    while apart < n:
        for i in range(n):
            if not i & apart:
                x[i], x[i + apart] = x[i] + x[i + apart], x[i] - x[i + apart]
        apart *= 2
    return [one / n**0.5 for one in x]


def by_a_matrix(x: Any) -> Any:
    matrix = np.ones((1, 1))
    while len(matrix) < len(x):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix @ x / np.sqrt(len(x))


def polynomial(weights: Any, codes: Any, importance: Any) -> Any:
    scale, height = np.polyfit(codes, weights, 1, w=np.sqrt(importance))
    return scale, -height


def test_other_ways_to_the_same_answer_are_right_but_not_a_large_matrix() -> None:
    assert check("9.3", by_loops).right is True
    assert check("10.3", polynomial).right is True
    large = check("9.3", by_a_matrix)
    assert large.right is False
    assert "a matrix of n × n numbers was made" in large.hint


def test_a_verdict_shows_itself_without_running_what_a_function_said() -> None:
    def rude(*_: Any) -> Any:
        raise ValueError("<script>")

    shown = check("9.3", rude)._repr_html_()
    assert "✗ 9.3" in shown
    assert "<script>" not in shown
    with pytest.raises(InputError, match=r"no exercise '9\.9'.*9\.1"):
        check("9.9", rude)
