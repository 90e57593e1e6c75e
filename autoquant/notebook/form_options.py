"""The options of each form: those of a method with model and folder, of all methods together, and
of the comparison of models. Which have a meaning beside the others.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, ClassVar

from pydantic import field_validator
from pydantic.fields import FieldInfo

from autoquant.core import bundled, options
from autoquant.core.errors import InputError
from autoquant.core.options import MethodOptions, UploadOptions, option
from autoquant.methods import METHODS
from autoquant.notebook import choosing
from autoquant.notebook.comparing import OUT, CompareOptions
from autoquant.notebook.many import BatchOptions
from autoquant.notebook.page import MODEL


def _calibrating() -> str:
    """The methods that calibrate, and when."""
    told = {method.name: method.requires_calibration for method in METHODS.values()}
    always = [name for name, when in told.items() if when == "yes"]
    some = [f"{name}: {when}" for name, when in told.items() if when not in ("yes", "no")]
    return "; ".join([", ".join(always), *some])


CALIBRATION = option(
    "builtin",
    f"text for the methods that calibrate ({_calibrating()}): builtin (prose, other languages, code"
    " and conversations, or the method's own mixture; prose, languages, code or conversations take"
    " one of them), a file (text, JSON, CSV, Parquet), or a dataset on the Hugging Face"
    " Hub as owner/name",
    metavar="builtin|FILE|OWNER/NAME",
)


def _model(more: str = "") -> Any:
    return option(
        MODEL,
        "a model on the Hugging Face Hub as owner/name or owner/name@revision, a folder with a"
        f" checkpoint, or demo for the bundled one{more}",
        metavar="OWNER/NAME|FOLDER|demo",
    )


class ModelOptions(MethodOptions):
    """What a form asks for beside a method's options."""

    model: str = _model()
    out: str = OUT


class DeviceOptions(ModelOptions):
    """What a form asks for beside these where the device decides which types to take, which are
    GGUF's.
    """

    model: str = _model("; GGUF also takes a GGUF file, on the Hub as owner/name:Q8_0")
    device: str = option(
        "",
        "where the files will run: T4, RTX 4090, MacBook 16GB, 8GB laptop … (`autoquant"
        " devices` lists more), or an amount of memory, such as 24GB; empty: on this machine",
        metavar="DEVICE",
    )
    context: int = option(
        0,
        "the longest conversation there, in tokens; 0 takes 8192, or the model's if that is less",
        unit="tokens",
        ge=0,
        le=10_000_000,
    )

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        try:
            if not choosing.is_here(value):  # which would be looked at, by nvidia-smi
                choosing.device(value)
        except InputError as error:
            raise ValueError(str(error).removeprefix("device: ")) from None
        return value.strip()


class LookedUpOptions(DeviceOptions):
    """The same in the form of one method, whose types are named: there the device is only looked
    up, by a button.
    """

    device: str = option(
        "",
        "used only by What fits there?, and changes no file: T4, RTX 4090, MacBook 16GB, 8GB laptop"
        " … (`autoquant devices` lists more), or an amount of memory, such as 24GB; empty: this"
        " machine",
        metavar="DEVICE",
    )


class UsualOptions(LookedUpOptions):
    """The same where the method has one or a few usual types."""

    model: str = _model()


def _all() -> type[MethodOptions]:
    """The options of the notebook for every method: which methods, the main options of each, and
    those all share.
    """
    from pydantic import create_model

    fields: dict[str, Any] = {}
    for method in METHODS.values():
        for name in method.Options.main:
            if name not in MethodOptions.model_fields and name != "calibration":
                field = copy(method.Options.model_fields[name])
                field.description = f"if {method.name} is named: {field.description}"
                fields[f"{method.name}_{name}"] = (field.annotation, field)
    names = tuple(METHODS)

    class Base(DeviceOptions):
        methods: tuple[str, ...] = option(
            (),
            f"what to make, one or several of {', '.join(names)}; none: what is best for the"
            " device",
            metavar="METHOD,…",
        )
        owner: str = option(
            "",
            "your name on the Hub: each method's files go to OWNER/<model>-<METHOD>; empty: nothing"
            " is uploaded",
            metavar="OWNER",
        )
        calibration: str = CALIBRATION
        applies: ClassVar[Mapping[str, str]] = {**MethodOptions.applies, "private": "owner"}
        main: ClassVar[tuple[str, ...]] = (
            "model",
            "device",
            "context",
            "methods",
            *fields,
            "calibration",
            "evaluate",
            "owner",
        )

        @field_validator("methods")
        @classmethod
        def _methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
            asked = tuple(dict.fromkeys(one.lower() for one in value))
            for one in asked:
                if one not in METHODS:
                    raise ValueError(f"no method is called {one!r}; there are: {', '.join(names)}")
            return asked

        @field_validator("owner")
        @classmethod
        def _owner(cls, value: str) -> str:
            if value.strip() and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", value.strip(), re.ASCII):
                raise ValueError(
                    f"{value!r} is no name on the Hub; write your user or organization name only"
                )
            return value.strip()

    declared_options: type[MethodOptions] = create_model("AllOptions", __base__=Base, **fields)
    return declared_options


# devices that a form offers; others can be typed
PRESETS = (choosing.HERE, "8GB laptop", "16GB laptop", "MacBook 16GB", "T4", "RTX 4090")
TITLES = {
    "all": "Model, methods and options",
    "compare": "Models to compare",
    "batch": "Models and methods",
}
OTHERS: dict[str, type[UploadOptions]] = {"compare": CompareOptions, "batch": BatchOptions}
HIDDEN = {
    "batch": ("upload", "layout", "overwrite", "base_model"),
    "compare": tuple(UploadOptions.model_fields),
    "all": ("upload", "layout", "overwrite", "base_model", "allow_pickle"),
}


@functools.cache
def declared(name: str) -> type[UploadOptions]:
    """The options of a form, with model and out: of a method, of "all", "compare" or "batch"."""
    if name in OTHERS:
        return OTHERS[name]
    if name == "all":
        return _all()
    if name not in METHODS:
        raise InputError(f"no form is called {name!r}; there are: {', '.join([*TITLES, *METHODS])}")
    base = METHODS[name].Options

    beside: type[MethodOptions] = LookedUpOptions if METHODS[name].many_types else UsualOptions
    # what its notebook has a value of its own for is among those that count
    own = [one for one in METHODS[name].notebook_defaults if one not in ("model", *base.main)]
    at = base.main.index("evaluate")

    class Declared(base, beside):  # type: ignore[valid-type, misc]
        applies: ClassVar[Mapping[str, str]] = base.applies
        main: ClassVar[tuple[str, ...]] = (
            "model",
            "device",
            *base.main[:at],
            *own,
            *base.main[at:],
        )

    others = METHODS[name].comparison_variants
    if others is None:
        return Declared
    default, read, kind = others.default, others.parse, others.kind
    once = "" if others.again else "; what this run makes is not made again"

    class WithOthers(Declared):
        main: ClassVar[tuple[str, ...]] = (*Declared.main, "compare")
        compare: tuple[str, ...] = option(
            default,
            f"{kind} to make in addition and compare with this run, separated by commas; leave"
            f" empty for a large model, to save time and disk{once}",
            metavar="NAME,…",
        )

        @field_validator("compare")
        @classmethod
        def _compare(cls, value: tuple[str, ...]) -> tuple[str, ...]:
            try:
                return tuple(dict.fromkeys(read(one) for one in value))
            except InputError as error:
                raise ValueError(str(error).partition(": ")[2]) from None

    return WithOthers


def entries(name: str) -> tuple[list[tuple[str, FieldInfo]], list[tuple[str, FieldInfo]]]:
    """The options of a form: those it shows at first, and those that are folded. One that can have
    one value only is no question.
    """
    cls = declared(name)
    shown = [(one, cls.model_fields[one]) for one in cls.main]
    folded = [
        (one, field)
        for one, field in options.ordered(cls)
        if one not in cls.main and one not in HIDDEN.get(name, ()) and not _settled(field)
    ]
    return shown, sorted(folded, key=lambda item: item[0] != "out")


def _settled(field: FieldInfo) -> bool:
    offered, free = options.choices(field)
    return len(offered) == 1 and not free


# --- what has a meaning ---------------------------------------------------------------------------


def meant(name: str, one: str, values: Mapping[str, Any]) -> bool:
    """Whether an option of a form has a meaning beside the other values: by the method's own rules,
    and for how a calibration text is read, by what text it is.
    """
    if name == "all":
        asked = [
            method for method in METHODS if method in options.split(str(values["methods"]).lower())
        ]
        if one == "calibration":
            return any(calibrates(method, values) for method in asked)
        owner = next((method for method in METHODS if one.startswith(f"{method}_")), "")
        if owner:
            return owner in asked and options.meant(
                METHODS[owner].Options, one.removeprefix(f"{owner}_"), of_method(owner, values)
            )
    if name == "batch" and one == "gguf_types":
        return "gguf" in options.split(str(values["methods"]).lower())
    text = str(values.get("calibration", ""))
    file = text in (bundled.BUILTIN, *bundled.KINDS) or existing(text) is not None
    if (file and one in ("calibration_split", "calibration_subset")) or (
        file and one == "calibration_column" and not text.endswith((".parquet", ".jsonl", ".json"))
    ):
        return False
    return options.meant(declared(name), one, values)


def existing(text: str) -> Path | None:
    """The file that a text names, if there is one: whatever somebody has typed so far."""
    try:
        path = Path(text).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        # too long a name, an unknown user's home, a null byte
        return None


def of_method(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the form for all methods under the names that one method has for them; its
    defaults for what the form has not.
    """
    return {
        one: values.get(f"{method}_{one}", values.get(one, field.default))
        for one, field in METHODS[method].Options.model_fields.items()
    }


def calibrates(method: str, values: Mapping[str, Any]) -> bool:
    """Whether a method looks at the calibration text of the form for all methods."""
    cls = METHODS[method].Options
    return "calibration" in cls.model_fields and options.meant(
        cls, "calibration", of_method(method, values)
    )
