"""What a form would make, in a line: what Colab shows, whose form is the cell above."""

from __future__ import annotations

import html
from typing import Any, Protocol

from autoquant.core.language import say, told
from autoquant.methods import METHODS
from autoquant.notebook import choosing
from autoquant.notebook.cells import plain
from autoquant.notebook.form_options import OTHERS
from autoquant.notebook.page import in_colab


class Form(Protocol):
    """What a summary needs of a form (notebook.forms.Form)."""

    name: str
    cls: Any

    @property
    def model(self) -> str:
        """The model that is asked for."""
        ...

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are named."""
        ...

    @property
    def options(self) -> Any:
        """All values, checked."""
        ...

    def raw(self) -> dict[str, Any]:
        """All values as they stand there."""
        ...


def of(form: Form) -> str:
    """What a form would make, and with which options, in HTML."""
    now, defaults = form.raw(), form.cls.model_fields
    different = {
        one: value
        for one, value in now.items()
        if value != plain(defaults[one].default) and one != "model"
    }
    rest = ", ".join(f"{one} = {value}" for one, value in different.items()) or say("the defaults")
    if form.name in OTHERS:
        what = form.options.subject()
    else:
        titles = ", ".join(METHODS[one].title for one in form.methods)
        device = told(now.get("device") or choosing.HERE)
        best = say("the best GGUF file for {device}", device=device)
        what = say("{what} of {model}", what=titles or best, model=form.model)
    options_of = say("options: {options}.", options=rest)
    hint = say("Change them in the form above and rerun from there.") if in_colab() else ""
    said = html.escape(f"{options_of} {hint}".rstrip())
    return f"<b>{html.escape(what)}</b>, {said}"
