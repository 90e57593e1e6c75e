"""The notebook of many models: its form's options, and the batch that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from autoquant.backends.llamacpp.types import parse
from autoquant.core.language import say
from autoquant.core.options import MethodOptions, UploadOptions, option
from autoquant.methods import METHODS
from autoquant.notebook.page import LARGER, SMALLER, drive, reachable_all


class BatchOptions(UploadOptions):
    """What the notebook of many models asks for."""

    main: ClassVar[tuple[str, ...]] = ("models", "methods", "gguf_types", "owner", "where", "spend")

    models: tuple[str, ...] = option(
        (SMALLER, LARGER),
        "models on the Hugging Face Hub as owner/name, or folders, with commas between",
        metavar="OWNER/NAME,…",
        min_length=1,
    )
    methods: tuple[str, ...] = option(
        ("gguf", "hqq"),
        f"what to make of each, one or several of {', '.join(METHODS)}",
        metavar="METHOD,…",
        min_length=1,
    )
    gguf_types: tuple[str, ...] = option(
        ("Q8_0", "Q4_K_M"), "if gguf is named: its types", metavar="TYPE,…", min_length=1
    )
    owner: str = option(
        "",
        "your name on the Hub: each result goes to OWNER/<model>-<METHOD>; empty: nothing is"
        " uploaded",
        metavar="OWNER",
    )
    where: Literal["here", "hf-jobs"] = option(
        "here",
        "where the jobs run: here, one after the other; or as Hugging Face Jobs, which cost money"
        " and need an owner",
    )
    spend: bool = option(
        False, "start Hugging Face Jobs, for at most what the plan says that they cost"
    )
    evaluate: Literal["auto", "on", "off"] = MethodOptions.model_fields["evaluate"]  # type: ignore[assignment]
    eval_chunks: int = MethodOptions.model_fields["eval_chunks"]  # type: ignore[assignment]
    out: str = option(
        "autoquant-batch", "folder that has a folder for each job", metavar="FOLDER|drive"
    )

    @field_validator("methods")
    @classmethod
    def _methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        asked = tuple(dict.fromkeys(one.lower() for one in value))
        for one in asked:
            if one not in METHODS:
                raise ValueError(f"no method is called {one!r}; there are: {', '.join(METHODS)}")
        return asked

    @field_validator("gguf_types")
    @classmethod
    def _types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(parse(name) for name in value))

    def subject(self) -> str:
        """What is made, in words."""
        models, methods = ", ".join(self.models), ", ".join(self.methods)
        return say("{models}, each by {methods}", models=models, methods=methods)

    def runs(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The runs to plan: method, model and options."""
        gguf = {"gguf": {"types": self.gguf_types}}
        return [(one, model, gguf.get(one, {})) for model in self.models for one in self.methods]


BatchOptions.applies = {**UploadOptions.applies, "spend": "where=hf-jobs", "private": "owner"}


def jobs(asked: BatchOptions) -> list[dict[str, Any]]:
    """What the form asks for, as a batch has it (:func:`autoquant.batch`)."""
    entry: dict[str, Any] = {
        "models": reachable_all(asked.models),
        "methods": list(asked.methods),
        "evaluate": asked.evaluate,
        **({"eval_chunks": asked.eval_chunks} if asked.evaluate != "off" else {}),
    }
    if "gguf" in asked.methods:
        entry["gguf"] = {"types": list(asked.gguf_types)}
        if asked.evaluate != "off":  # all jobs stand in one table
            entry["gguf"]["eval_by_weights"] = True
    if asked.owner:
        entry["upload"] = f"{asked.owner}/{{model}}-{{METHOD}}"
        entry["private"] = asked.private
    return [entry]


def folder(asked: BatchOptions) -> Path:
    """Where the batch writes; Google Drive is mounted if that is asked for."""
    return drive() / "AutoQuant" / "batch" if asked.out == "drive" else Path(asked.out)


def toml(entries: Sequence[dict[str, Any]], out: str | Path) -> str:
    """A batch as a file's text, for `autoquant batch FILE`."""
    lines = [f"out = {_value(str(out))}"]
    for entry in entries:
        lines += ["", "[[jobs]]", *(f"{name} = {_value(value)}" for name, value in entry.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_value(one)}" for name, one in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
