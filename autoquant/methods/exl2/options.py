"""The options of EXL2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import field_validator

from autoquant.backends.exllamav2 import measurement
from autoquant.core.options import option
from autoquant.methods.base import choice
from autoquant.methods.bitrates.options import BitrateOptions

OWN = "exllamav2"  # the calibration text that comes with the library
OWN_ROWS, OWN_MEASURED = 115, 19  # its samples: for quantizing, and for measuring
SAMPLES, MEASURED = 100, 16  # the converter's own defaults
HEAD_BITS = (2, 3, 4, 5, 6, 8)


class Exl2Options(BitrateOptions):
    """The options of EXL2. Names are exllamav2's, where they are words."""

    applies: ClassVar[Mapping[str, str]] = {
        **BitrateOptions.applies,
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
    own: ClassVar[str] = OWN
    least: ClassVar[int] = 2

    bpw: tuple[str, ...] = option(
        ("4.0",),
        "average bits per weight of the blocks, scales included, 2 to 8; several, separated by"
        " commas, share one measurement",
        metavar="BITS,…",
        accepts="str | float | Sequence[str | float]",
        min_length=1,
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

    @field_validator("head_bits")
    @classmethod
    def _head(cls, value: int) -> int:
        return choice(value, HEAD_BITS)
