"""The options of EXL3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from autoquant.core.options import option
from autoquant.methods.base import choice
from autoquant.methods.bitrates.options import USUAL_HEAD, BitrateOptions, bitrates

OWN = "exllamav3"  # the calibration text that comes with the library
SAMPLES = 250  # the converter's own default
LEAST = 1  # bits per weight
HEAD_BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
USUAL_CODEBOOK = "mul1"  # which names of types leave out
OPTIMIZED = "opt"  # in the names of types that the optimizer mixed


class Exl3Options(BitrateOptions):
    """The options of EXL3. Names are exllamav3's, where they are words."""

    applies: ClassVar[Mapping[str, str]] = {
        **BitrateOptions.applies,
        **dict.fromkeys(
            (
                "calibration_seed",
                "calibration_column",
                "calibration_split",
                "calibration_subset",
            ),
            f"calibration!={OWN}",
        ),
        "measurement_samples": "optimized_bpw",
    }
    own: ClassVar[str] = OWN
    least: ClassVar[int] = LEAST

    bpw: tuple[str, ...] = option(
        ("4.0",),
        "average bits per weight of the blocks, scales not counted, 1 to 8; several, separated by"
        " commas, are made one after the other",
        metavar="BITS,…",
        accepts="str | float | Sequence[str | float]",
        min_length=1,
    )
    optimized_bpw: tuple[str, ...] = option(
        (),
        "further averages, between the smallest and the largest of bpw: exllamav3's optimizer puts"
        " each together from the layers of those bitrates, with more bits where they lower the"
        " measured KL divergence most; takes two bitrates or more in bpw (or size)",
        metavar="BITS,…",
        accepts="str | float | Sequence[str | float]",
    )
    measurement_samples: int = option(
        10,
        "how many samples of exllamav3's own text optimized_bpw is measured on, each of as many"
        " tokens as calibration_length, at most 1,024; exllamav3's defaults",
        unit="samples",
        ge=1,
        le=10_000,
    )
    head_bits: int = option(
        USUAL_HEAD,
        "bits per weight of the output head; 16 leaves it unquantized",
        metavar="1|2|3|4|5|6|7|8|16",
    )
    codebook: Literal["mul1", "mcg", "3inst"] = option(
        "mul1",
        "which of exllamav3's codebooks gives codes their values: mul1 (its default, the only one"
        " with rates of 1.5, 2.5 and 3.5 bits), or mcg and 3inst, for releases of exllamav3 that do"
        " not know mul1",
    )
    calibration: str = option(
        OWN,
        "text to calibrate on: exllamav3 (the mixture that comes with it: web, code, other"
        " languages, technical texts, encyclopedia, stories, random tokens), builtin (prose, other"
        " languages, code and conversations; or one of them: prose, languages, code,"
        " conversations), a file (text, JSON, CSV, Parquet), or a dataset on the Hugging Face Hub"
        " as owner/name or owner/name@revision",
        metavar=f"{OWN}|builtin|FILE|OWNER/NAME",
    )
    calibration_samples: int = option(
        SAMPLES,
        "how many samples to calibrate on; exllamav3's default; their states take main memory",
        unit="samples",
        ge=1,
        le=100_000,
    )
    calibration_length: int = option(
        2048,
        "tokens per sample, at most the model's context; exllamav3's default; longer ones take more"
        " GPU memory",
        unit="tokens",
        ge=16,
        le=131_072,
    )
    layout: Literal["one-repo", "repo-per-type", "branch-per-type"] = option(
        "branch-per-type",
        "each bitrate in its own branch, with the card on main, as EXL3 repositories usually have"
        " it; or each in its own repository, named OWNER/NAME-TYPE; or all in folders of one"
        " repository",
    )

    @field_validator("head_bits")
    @classmethod
    def _head(cls, value: int) -> int:
        return choice(value, HEAD_BITS)

    @field_validator("optimized_bpw", mode="before")
    @classmethod
    def _optimized(cls, value: Any) -> Any:
        return bitrates(value, cls.least)

    @property
    def types(self) -> tuple[str, ...]:
        """Those that the optimizer makes too."""
        return (*super().types, *self.optimized)

    @property
    def optimized(self) -> tuple[str, ...]:
        """The names of those that the optimizer makes: 3.25bpw-opt."""
        return tuple(self.name(one, OPTIMIZED) for one in self.optimized_bpw)

    def name(self, bits: str, how: str = "") -> str:
        """With the codebook, if it is not the usual one."""
        name = super().name(bits, how)
        return name if self.codebook == USUAL_CODEBOOK else f"{name}-{self.codebook}"
