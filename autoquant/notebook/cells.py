"""The ``# @param`` cell of a form: what Colab draws as a form, and papermill fills in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from autoquant.core import options
from autoquant.core.language import say, told
from autoquant.methods import METHODS
from autoquant.notebook.form_options import PRESETS, TITLES, entries


def about(name: str, field: FieldInfo) -> str:
    """One line of help. Notebooks upload in a cell of their own, after the checks."""
    if name == "upload":
        return say(
            "repository on the Hugging Face Hub, yourname/model: the Upload cell sends the finished"
            " files there; empty: nothing is sent"
        )
    return told(str(field.description))


def plain(value: Any) -> Any:
    """A default as a literal of one line: lists are texts with commas."""
    return ",".join(value) if isinstance(value, tuple) else value


def cell(name: str, changed: Mapping[str, Any] | None = None) -> str:
    """The ``# @param`` cell of a form, with what it asks for at first: plain assignments that Colab
    draws as a form and papermill fills in. ``changed``: other defaults of this notebook.
    """
    titled = TITLES.get(name)
    title = say(titled) if titled else _options_of(METHODS[name].title)
    return _cell(title, entries(name)[0], changed or {})


def _options_of(method: str) -> str:
    return say("Model and options of {method}", method=method)


def more(name: str, changed: Mapping[str, Any] | None = None) -> str:
    """The same with the options that are folded."""
    return _cell(say("More options (the defaults are sensible)"), entries(name)[1], changed or {})


def _cell(title: str, fields: list[tuple[str, FieldInfo]], changed: Mapping[str, Any]) -> str:
    lines = [f'# @title {title} {{ display-mode: "form" }}']
    for one, field in fields:
        value = changed.get(one, plain(field.default))
        literal = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
        lines += [
            f"# @markdown **{one}**: {about(one, field)}",
            f"{one} = {literal}  # @param {_kind(one, field)}",
        ]
    return "\n".join(lines)


def _kind(name: str, field: FieldInfo) -> str:
    """How Colab draws an option."""
    if field.annotation is bool:
        return '{type:"boolean"}'
    offered, free = options.choices(field)
    if name == "device":
        offered = list(PRESETS)
    if offered and field.annotation is int and not free:
        return json.dumps(offered) + ' {type:"raw"}'
    if offered:
        return json.dumps(offered) + (" {allow-input: true}" if free else "")
    kinds: dict[Any, str] = {int: "integer", float: "number"}
    return f'{{type:"{kinds.get(field.annotation, "string")}"}}'
