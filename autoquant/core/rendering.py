"""What is rendered from the options' one declaration: command line, signatures, help, tables."""

from __future__ import annotations

import argparse
import inspect
import typing
from collections.abc import Sequence
from typing import Any, Literal

from autoquant.core.options import (
    MethodOptions,
    O,
    UploadOptions,
    allowed_in_words,
    build,
    default_text,
    ordered,
)


def add_arguments(
    parser: argparse.ArgumentParser, cls: type[UploadOptions], *, without: Sequence[str] = ()
) -> None:
    """Add one ``--option`` for each declared option but ``without``. Values stay strings:
    :func:`build` turns and checks them.
    """
    for name, field in ordered(cls):
        if name in without:
            continue
        flag = "--" + name.replace("_", "-")
        text = f"{field.description} (default: {default_text(field.default)})".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(
                flag,
                dest=name,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=text,
            )
        else:
            extra = field.json_schema_extra
            declared = str(extra.get("metavar") or "") if isinstance(extra, dict) else ""
            metavar = declared or ("N" if field.annotation is int else name.upper())
            if typing.get_origin(field.annotation) is Literal:
                metavar = "|".join(typing.get_args(field.annotation))
            parser.add_argument(
                flag, dest=name, default=argparse.SUPPRESS, help=text, metavar=metavar
            )


def from_arguments(namespace: argparse.Namespace, cls: type[O]) -> O:
    """The options from a parsed command line."""
    return build(cls, given(namespace, cls))


def given(namespace: argparse.Namespace, cls: type[UploadOptions]) -> dict[str, Any]:
    """What a parsed command line says of the options."""
    return {name: getattr(namespace, name) for name in cls.model_fields if hasattr(namespace, name)}


def signature(cls: type[MethodOptions], leading: list[inspect.Parameter]) -> inspect.Signature:
    """A real signature for a method's public function, so that help() and tab completion show the
    options.
    """
    own = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation
        )
        for name, field in ordered(cls)
    ]
    return inspect.Signature([*leading, *own])


def help_lines(cls: type[MethodOptions]) -> str:
    """The options as indented lines for a docstring."""
    return "\n".join(
        f"    {name}: {field.description}; default {default_text(field.default)}; allowed:"
        f" {allowed_in_words(cls, name)}"
        for name, field in ordered(cls)
    )


def markdown_table(cls: type[MethodOptions]) -> str:
    """The options as a Markdown table for docs/methods.md."""
    rows = ["| option | default | allowed | what it is |", "| --- | --- | --- | --- |"]
    for name, field in ordered(cls):
        cells = (
            f"`{name}`",
            f"`{default_text(field.default)}`",
            allowed_in_words(cls, name),
            str(field.description),
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)
