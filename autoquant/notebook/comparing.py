"""What the form of the notebook that compares two models asks for."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import field_validator

from autoquant.backends.llamacpp.types import parse
from autoquant.core.language import say
from autoquant.core.options import MethodOptions, UploadOptions, option
from autoquant.notebook.page import LARGER, SMALLER

OUT = option(
    "",
    "folder to write to; empty: named after model and method; drive: the folder AutoQuant in your"
    " Google Drive (in Colab), so that a run can be resumed after Colab has disconnected",
    metavar="FOLDER|drive",
)


class CompareOptions(UploadOptions):
    """What the notebook of comparisons asks for."""

    main: ClassVar[tuple[str, ...]] = ("small", "large", "small_types", "large_types", "gptq_bits")

    small: str = option(
        SMALLER,
        "the smaller model: on the Hugging Face Hub as owner/name, or a folder",
        metavar="OWNER/NAME|FOLDER|demo-small",
    )
    large: str = option(
        LARGER, "the larger model, of the same family", metavar="OWNER/NAME|FOLDER|demo"
    )
    small_types: tuple[str, ...] = option(
        ("F16", "Q8_0", "Q6_K", "Q4_K_M"),
        "GGUF types of the smaller model",
        metavar="TYPE,…",
        min_length=1,
    )
    large_types: tuple[str, ...] = option(
        ("Q3_K_M", "IQ3_XXS", "Q2_K"),
        "GGUF types of the larger model, to set against those of the smaller",
        metavar="TYPE,…",
        min_length=1,
    )
    gptq_bits: tuple[str, ...] = option(
        ("8", "4", "3"),
        "bit widths of the larger model by GPTQ: 2, 3, 4, 8; may be empty",
        metavar="BITS,…",
    )
    calibration_samples: int = option(
        32,
        "samples that GPTQ calibrates on; more are a little better, and take longer",
        unit="samples",
        ge=1,
        le=100_000,
    )
    eval_chunks: int = MethodOptions.model_fields["eval_chunks"]  # type: ignore[assignment]
    out: str = OUT

    def subject(self) -> str:
        """What is made, in words."""
        return say("{one} and {other}", one=self.small, other=self.large)

    def runs(self) -> list[tuple[str, str, dict[str, Any]]]:
        """What the notebook of comparisons makes, as method, model and options: of the larger model
        the smaller one's types too, and GPTQ.
        """
        both = tuple(sorted({*self.small_types, *self.large_types}))
        samples = self.calibration_samples
        return [
            ("gguf", self.small, {"types": self.small_types, "imatrix": "builtin"}),
            ("gguf", self.large, {"types": both, "imatrix": "builtin"}),
            *(
                ("gptq", self.large, {"bits": int(width), "calibration_samples": samples})
                for width in self.gptq_bits
            ),
        ]

    @field_validator("small_types", "large_types")
    @classmethod
    def _types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(parse(name) for name in value))

    @field_validator("gptq_bits")
    @classmethod
    def _bits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for bits in value:
            if bits not in ("2", "3", "4", "8"):
                raise ValueError(f"{bits} is not allowed; allowed: 2, 3, 4, 8")
        return value
