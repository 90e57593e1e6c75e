"""The options of EXL2."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from autoquant.backends.exllamav2 import measurement
from autoquant.calibration import CalibrationOptions
from autoquant.core.options import option
from autoquant.methods.base import choice
from autoquant.methods.size import BPW, Size

OWN = "exllamav2"  # the calibration text that comes with the library
OWN_ROWS, OWN_MEASURED = 115, 19  # its samples: for quantizing, and for measuring
SAMPLES, MEASURED = 100, 16  # the converter's own defaults
HEAD_BITS = (2, 3, 4, 5, 6, 8)


def bitrate(value: Any, least: int = 2) -> str:
    """A bitrate as it is written in names: 4.0, 4.25. A ValueError for pydantic if it is none, or
    not in the range of ``least`` to 8.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{value!r} is no number of bits; allowed: {least} to 8, e.g. 4.0 or 4.25"
        ) from None
    if not least <= number <= 8:
        raise ValueError(f"{value} is not allowed; allowed: {least} to 8 bits per weight")
    return f"{number:.2f}".removesuffix("0") if round(number, 2) == number else str(number)


def sizes_of(value: tuple[str, ...]) -> tuple[str, ...]:
    """Sizes in bytes, each once. A ValueError for pydantic if one is none."""
    found = []
    for text in value:
        one = None
        with contextlib.suppress(ValueError):
            one = Size.parse(text)
        if one is None or one.type or one.unit == BPW:
            raise ValueError(f"{text!r} is no size in bytes; write 5.5GB, or bits as bpw")
        found.append(str(one))
    return tuple(dict.fromkeys(found))


class Exl2Options(CalibrationOptions):
    """The options of EXL2. Names are exllamav2's, where they are words."""

    applies: ClassVar[Mapping[str, str]] = {
        **CalibrationOptions.applies,
        **dict.fromkeys(
            (
                "calibration_samples",
                "calibration_seed",
                "measurement_samples",
                "calibration_column",
                "calibration_split",
                "calibration_subset",
            ),
            f"calibration!={OWN}",
        ),
    }
    main: ClassVar[tuple[str, ...]] = ("bpw", "head_bits", "calibration", "evaluate", "upload")

    bpw: tuple[str, ...] = option(
        ("4.0",),
        "average bits per weight of the blocks, scales included, 2 to 8; several, separated by"
        " commas, share one measurement",
        metavar="BITS,…",
        accepts="str | float | Sequence[str | float]",
        min_length=1,
    )
    size: tuple[str, ...] = option(
        (),
        "in the place of bpw: sizes of the model folder's weights, which give the bits; a number"
        " with GB, GiB, MB or MiB",
        metavar="SIZE,…",
    )
    head_bits: int = option(
        6, "bits per weight of the output head; 8 for the highest bitrates", metavar="2|3|4|5|6|8"
    )
    measurement: str = option(
        "",
        f"a {measurement.NAME} that exists already, to skip measuring (the longest part): a file,"
        " or a repository on the Hub that has one; empty: measured here, and kept",
        metavar="FILE|OWNER/NAME",
    )
    measurement_samples: int = option(
        MEASURED,
        "how many of the samples to measure on; exllamav2's default",
        unit="samples",
        ge=1,
        le=10_000,
    )
    calibration: str = option(
        OWN,
        "text to calibrate on: exllamav2 (the mixture that comes with it: web, encyclopedia, code,"
        " other languages, stories), builtin (prose, other languages, code and conversations; or"
        " one of them: prose, languages, code, conversations), a file (text, JSON, CSV, Parquet),"
        " or a dataset on the Hugging Face Hub as owner/name or owner/name@revision",
        metavar=f"{OWN}|builtin|FILE|OWNER/NAME",
    )
    calibration_samples: int = option(
        SAMPLES,
        "how many samples to calibrate on; exllamav2's default",
        unit="samples",
        ge=1,
        le=100_000,
    )
    calibration_length: int = option(
        2048,
        "tokens per sample, at most the model's context; exllamav2's default; longer ones take more"
        " GPU memory",
        unit="tokens",
        ge=16,
        le=131_072,
    )
    layout: Literal["one-repo", "repo-per-type", "branch-per-type"] = option(
        "branch-per-type",
        "each bitrate in its own branch, with card and measurement on main, as EXL2 repositories"
        " usually have it; or each in its own repository, named OWNER/NAME-TYPE; or all in folders"
        " of one repository",
    )

    @field_validator("bpw", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        given = [value] if isinstance(value, (int, float)) else value
        if not isinstance(given, (list, tuple)):
            return value
        return tuple(dict.fromkeys(bitrate(one) for one in given))

    @field_validator("size")
    @classmethod
    def _sizes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return sizes_of(value)

    @field_validator("head_bits")
    @classmethod
    def _head(cls, value: int) -> int:
        return choice(value, HEAD_BITS)

    @property
    def own_text(self) -> bool:
        """Whether it calibrates on the text that comes with the library."""
        return self.calibration == OWN

    @property
    def types(self) -> tuple[str, ...]:
        """The artifacts' names: 4.0bpw, with the head's bits if they are not 6."""
        return tuple(
            f"{one}bpw{'' if self.head_bits == 6 else f'-h{self.head_bits}'}" for one in self.bpw
        )
