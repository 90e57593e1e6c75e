"""The lessons' exercises: the answers that docs/teaching.md gives are right, as they stand there,
and every usual mistake gets its own hint.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

import nbformat
import numpy as np
import pytest

from autoquant.core.errors import InputError
from autoquant.notebook.exercises import EXERCISES, check
from tests.notebooks.running import FOLDER, ROOT

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


def answer(name: str) -> Callable[..., Any]:
    """The function that docs/teaching.md answers an exercise with."""
    text = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    found = re.search(rf"^\*\*{re.escape(name)}\*\*\n\n```python\n(.*?)^```", text, re.M | re.S)
    assert found, f"docs/teaching.md has no answer to {name}"
    names = defined(name)
    exec(found[1], names)
    return names[ast.parse(found[1]).body[-1].name]  # type: ignore[attr-defined]


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
    assert str(check(name, function)) == f"… {name}: not answered yet"
    taken = ast.parse(re.sub(r"\n.*", "", asked[0].source) + "\n    pass").body[0].args.args  # type: ignore[attr-defined]
    assert len(taken) == len(EXERCISES[name].cases[0]), "it takes what the cases have"


@pytest.mark.parametrize(("name", "number"), MISTAKES)
def test_each_usual_mistake_gets_its_own_hint(name: str, number: int) -> None:
    mistake = EXERCISES[name].mistakes[number]
    verdict = check(name, mistake.gives)
    assert verdict.right is False
    assert verdict.hint == mistake.hint


def test_what_raises_or_has_another_shape_or_is_not_finite_is_said() -> None:
    def raising(activations: Any, weights: Any, alpha: float) -> Any:
        return activations / {}

    def told(value: Callable[..., Any]) -> str:
        return check("9.2", value).hint

    assert "stopped with TypeError: unsupported operand" in told(raising)
    assert "stopped with TypeError" in told(lambda x: x), "too few arguments"
    assert "the shape is (16, 32), (32,) is asked for" in told(lambda x, w, a: w)
    assert "gives 2 value(s), 1 are asked" in told(lambda x, w, a: (x, w))
    assert "not finite" in told(lambda x, w, a: np.full(32, np.inf))
    assert "numbers are asked for" in told(lambda x, w, a: np.full(32, "x"))
    assert "off by" in told(lambda x, w, a: np.ones(32))


def test_right_to_four_digits_is_right_and_inputs_may_be_changed() -> None:
    def rough(activations: Any, weights: Any, alpha: float) -> Any:
        found = EXERCISES["9.2"].right(activations, weights, alpha).astype(np.float32)
        activations[:] = 0
        weights[:] = 0
        return found

    assert check("9.2", rough).right
    assert check("9.2", lambda *case: 1.01 * EXERCISES["9.2"].right(*case)).right is False


def test_a_verdict_shows_itself_without_running_what_a_function_said() -> None:
    def rude(*_: Any) -> Any:
        raise ValueError("<script>")

    shown = check("9.3", rude)._repr_html_()
    assert "✗ 9.3" in shown
    assert "<script>" not in shown
    with pytest.raises(InputError, match=r"no exercise '9\.9'.*9\.1"):
        check("9.9", rude)
