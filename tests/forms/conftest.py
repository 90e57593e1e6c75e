"""Forms: the cell, the widgets and the method's own function are one declaration."""

from __future__ import annotations

from typing import Any

import pytest

from autoquant.methods import METHODS
from autoquant.notebook import forms

each = pytest.mark.parametrize("name", METHODS)


@pytest.fixture
def widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a Jupyter notebook's kernel, where forms are widgets."""
    monkeypatch.setattr(forms, "in_notebook", lambda: True)


def settings_of(name: str) -> dict[str, Any]:
    """The variables that a form's cells set."""
    space: dict[str, Any] = {}
    exec(forms.cell(name), space)  # as a kernel runs it
    exec(forms.more(name), space)
    space.pop("__builtins__")
    return space
