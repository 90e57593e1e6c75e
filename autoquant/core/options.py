"""The base of every method's options, and everything derived from their one declaration.

A method's parameters are declared once, as a frozen pydantic model. The Python keyword arguments,
the command line, the docs table and the card's settings table are rendered from it here, so that
they cannot drift apart.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from autoquant.core import licenses
from autoquant.core.errors import InputError

O = TypeVar("O", bound="UploadOptions")
SEPARATORS = re.compile(r"\s*[,;]\s*|\s+(?!(?:[mg]i?b|b|bpw)\b)", re.IGNORECASE)


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    metavar: str = "",
    accepts: str = "",
    **constraints: Any,
) -> Any:
    """Declare one option: its default, one line of help, the unit of its value, how the command
    line names a value, what Python takes for one if not what the annotation says, and pydantic's
    constraints (``ge``, ``le`` …).
    """
    return Field(
        default,
        description=help,
        json_schema_extra={"unit": unit, "metavar": metavar, "accepts": accepts},
        **constraints,
    )


class UploadOptions(BaseModel):
    """Where and how a finished run is uploaded. None of them changes a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    # the option that takes a Calibration, of a method that calibrates
    calibrated_by: ClassVar[str] = ""
    applies: ClassVar[Mapping[str, str]] = {
        "private": "upload",
        "layout": "upload",
        "overwrite": "upload",
    }
    """When an option has an effect: "other" (is given), "!other" (is not), "other=value",
    "other!=value" or "other!=value|value". Forms grey it out where it has none, and :func:`build`
    refuses it.
    """
    main: ClassVar[tuple[str, ...]] = ()
    """The options that a form shows at first; the others are folded."""

    upload: str = option(
        "",
        "repository on the Hugging Face Hub to upload to when done; each file is sent while the"
        " next is being made",
        metavar="OWNER/NAME",
    )
    private: Literal["auto", "yes", "no"] = option(
        "auto",
        "whether a repository that is created is private; auto: if the source is private or gated",
    )
    layout: Literal["one-repo", "repo-per-type", "branch-per-type"] = option(
        "one-repo",
        "all types in one repository; or each in its own, named OWNER/NAME-TYPE; or each in its own"
        " branch, with the card on main",
    )
    overwrite: bool = option(
        False,
        "replace files of the same name in a repository that already has files from elsewhere",
    )
    base_model: str = option(
        "",
        "repository of the unquantized model, for the card; known for models from the Hub, needed"
        " for a folder",
        metavar="OWNER/NAME",
    )

    @field_validator("upload", "base_model")
    @classmethod
    def _repository(cls, value: str) -> str:
        if value and not licenses.is_repo_id(value):
            raise ValueError(
                f"{value!r} is not a repository name; write owner/name, e.g. yourname/model-GGUF"
            )
        return value


class MethodOptions(UploadOptions):
    """What every method takes. A method adds its own options in a subclass."""

    applies: ClassVar[Mapping[str, str]] = {
        **UploadOptions.applies,
        "eval_text": "evaluate!=off",
        "eval_chunks": "evaluate!=off",
        "eval_minutes": "evaluate=auto",
    }
    base: str = option(
        "",
        "for a LoRA adapter: the model that it is merged into, as owner/name or a folder, if it is"
        " not the one that the adapter names",
        metavar="MODEL",
    )
    evaluate: Literal["auto", "on", "off"] = option(
        "auto",
        "measure perplexity, KL divergence and top-1 agreement against the unquantized model; auto"
        " does so as far as eval_minutes allows",
    )
    eval_text: str = option(
        "builtin",
        "text to measure on: builtin (English prose, other languages, code and conversations, held"
        " out from the calibration text; or one of them: prose, languages, code, conversations), or"
        " a UTF-8 text file",
        metavar="builtin|FILE",
    )
    eval_chunks: int = option(
        20,
        "how many chunks of 512 tokens (or the model's context) to measure on; the second half of"
        " each is scored, so 20 chunks are 5,100 predictions",
        unit="chunks",
        ge=1,
        le=100_000,
    )
    eval_minutes: float = option(
        30,
        "how long evaluate=auto may measure, as planned beforehand; where that is not enough for"
        " eval_chunks, fewer are taken, and where it is not enough for 2, nothing is measured",
        unit="minutes",
        ge=1,
        le=100_000,
    )

    @property
    def pickled(self) -> bool:
        """Whether a checkpoint of pickles is accepted; only GGUF's converter takes one."""
        return bool(getattr(self, "allow_pickle", False))


def allowed_in_words(cls: type[UploadOptions], name: str) -> str:
    """What values an option takes, in words."""
    field = cls.model_fields[name]
    if typing.get_origin(field.annotation) is Literal:
        return ", ".join(str(choice) for choice in typing.get_args(field.annotation))
    if field.annotation is bool:
        return "true, false"
    low = next((m.ge for m in field.metadata if getattr(m, "ge", None) is not None), None)
    high = next((m.le for m in field.metadata if getattr(m, "le", None) is not None), None)
    extra = field.json_schema_extra
    unit = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
    if low is not None or high is not None:
        span = (
            f"{low} or more"
            if high is None
            else f"up to {high}"
            if low is None
            else f"{low} to {high}"
        )
        return f"{span} {unit}".strip()
    metavar = str(extra.get("metavar", "")) if isinstance(extra, dict) else ""
    return metavar or ("a whole number" if field.annotation is int else "a text")


def choices(field: FieldInfo) -> tuple[list[Any], bool]:
    """What a form offers for an option: the values there are (or that are suggested), and whether
    another may be typed.

    Without a Literal they are read from the metavar, in which words in capitals stand for something
    else: ``builtin|FILE``.
    """
    if typing.get_origin(field.annotation) is Literal:
        return list(typing.get_args(field.annotation)), False
    extra = field.json_schema_extra
    parts = (
        [part for part in str(extra.get("metavar") or "").split("|") if part]
        if isinstance(extra, dict)
        else []
    )
    named = [part for part in parts if part.upper() != part or part.lstrip("-").isdigit()]
    return [int(part) if field.annotation is int else part for part in named], len(named) < len(
        parts
    ) or not parts


def meant(cls: type[UploadOptions], name: str, values: Mapping[str, Any]) -> bool:
    """Whether an option has a meaning beside the other values (see ``applies``)."""
    rule = cls.applies.get(name, "")
    if not rule:
        return True
    if rule.startswith("!"):
        return not values[rule[1:]]
    other, unequal, unwanted = rule.partition("!=")
    if unequal:
        return str(values[other]) not in unwanted.split("|") and meant(cls, other, values)
    other, equal, wanted = rule.partition("=")
    here = str(values[other]) == wanted if equal else bool(values[other])
    return here and meant(cls, other, values)


def refuse_idle(options: UploadOptions) -> None:
    """Refuse an option that was given and would do nothing beside the others. Raises InputError."""
    cls = type(options)
    values = {name: getattr(options, name) for name in cls.model_fields}
    for name, field in cls.model_fields.items():
        if values[name] == field.default or meant(cls, name, values):
            continue
        other, unequal, _ = cls.applies[name].removeprefix("!").partition("!=")
        flag = "--" + other.partition("=")[0].replace("_", "-")
        if cls.applies[name].startswith("!"):
            reason = f"has no effect beside {other}={values[other]!r} ({flag}); leave that out"
        elif unequal:
            now = values[other]
            reason = f"has no effect with {other}={now!r} ({flag} {now}); take another {other}"
        else:
            other, equal, wanted = other.partition("=")
            asked = f"{other}={wanted!r} ({flag} {wanted})" if equal else f"{other} ({flag})"
            reason = f"has an effect only with {asked}; add that"
        raise InputError(f"{name}: {default_text(values[name])} {reason}, or leave {name} out")


def split(text: str) -> tuple[str, ...]:
    """The parts of a list that is written as one text, with commas, semicolons or blanks between
    them; a number and its unit stay together (5.5 GB).
    """
    return tuple(part for part in SEPARATORS.split(text) if part)


def build(cls: type[O], values: Mapping[str, Any]) -> O:
    """Make the options from keyword arguments or from the command line's strings; both give the
    same errors.

    A list may be given as one text (see :func:`split`), a file as a path, and a
    :class:`~autoquant.calibration.Calibration` for the option that names a calibration text.

    Raises :class:`~autoquant.core.errors.InputError` with one line: the option, the value, what is
    allowed, what it means.
    """
    given: dict[str, Any] = {
        name: (
            split(value)
            if isinstance(value, str)
            and name in cls.model_fields
            and typing.get_origin(cls.model_fields[name].annotation) is tuple
            else os.fspath(value)
            if isinstance(value, os.PathLike)
            else value
        )
        for name, value in values.items()
    }
    for name, value in values.items():
        if hasattr(value, "as_options"):
            if name != cls.calibrated_by:
                raise InputError(
                    f"{name}: a Calibration is given as {cls.calibrated_by}"
                    if cls.calibrated_by
                    else f"{name}: nothing here takes a Calibration"
                )
            parts = value.as_options(name)
            twice = sorted((set(parts) - {name}) & set(values))
            if twice:
                raise InputError(
                    f"{twice[0]}: the Calibration given as {name} sets that already; leave it out,"
                    " or change the Calibration"
                )
            given.update(parts)
    options = _validated(cls, given)
    refuse_idle(options)
    return options


def _validated(cls: type[O], given: Mapping[str, Any]) -> O:
    """Let pydantic check the values; its errors in one line."""
    try:
        return cls(**given)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            import difflib

            near = difflib.get_close_matches(name, cls.model_fields, n=3) or sorted(
                cls.model_fields
            )
            raise InputError(f"no option is called {name!r}; nearest: {', '.join(near)}") from None
        if first["type"] == "value_error":
            raise InputError(f"{name}: {first['ctx']['error']}") from None
        value = first["input"]
        raise InputError(
            f"{name}: {value!s} is not allowed; allowed: {allowed_in_words(cls, name)}. {name} is:"
            f" {cls.model_fields[name].description}"
        ) from None


def ordered(cls: type[UploadOptions]) -> list[tuple[str, FieldInfo]]:
    """The options for showing: a method's own first, those that all methods share last."""
    depth = {
        name: i
        for i, base in reversed(list(enumerate(cls.__mro__)))
        for name in vars(base).get("__annotations__", {})
    }
    return sorted(cls.model_fields.items(), key=lambda item: depth[item[0]])


def default_text(value: Any) -> str:
    """A value as a command line or a table writes it."""
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value in (None, "") else str(value)
