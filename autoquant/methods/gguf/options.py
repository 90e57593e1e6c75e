"""The options of GGUF quantization."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from autoquant.backends.llamacpp.types import TENSOR_TYPES, nearest, parse
from autoquant.calibration import CalibrationOptions
from autoquant.core.machine import cores
from autoquant.core.options import option
from autoquant.core.texts import expanded
from autoquant.formats.imatrix import is_imatrix

SIZES = {"K": 10**3, "M": 10**6, "G": 10**9}


class GgufOptions(CalibrationOptions):
    """The options of GGUF quantization. Names are llama.cpp's where it has one."""

    calibrated_by: ClassVar[str] = "imatrix"
    applies: ClassVar[Mapping[str, str]] = {
        **{
            name: "imatrix=calibration"
            for name in CalibrationOptions.model_fields
            if name.startswith("calibration")
        },
        **CalibrationOptions.applies,
        "imatrix_chunks": "imatrix!=none|calibration",
        "mmproj_type": "mmproj",
        "delete_uploaded": "split_size",
    }
    main: ClassVar[tuple[str, ...]] = ("types", "imatrix", "evaluate", "upload")

    types: tuple[str, ...] = option(
        ("Q4_K_M",),
        "GGUF types to make; `autoquant types` lists all of them with their use",
        metavar="TYPE,…",
        min_length=1,
    )
    imatrix: str = option(
        "none",
        "importance matrix, which improves all types below Q8_0: none, builtin (computed on English"
        " novels), a UTF-8 text file to compute it on, calibration (the samples that the"
        " calibration options give, the same as for GPTQ and AWQ), or an existing importance matrix"
        " (llama.cpp's GGUF or older .dat format)",
        metavar="none|builtin|FILE|calibration",
    )
    imatrix_chunks: int = option(
        64,
        "chunks of 512 tokens (or the model's context) to compute the importance matrix on; more"
        " than 100 rarely help",
        unit="chunks",
        ge=1,
        le=100_000,
    )
    precision: Literal["auto", "f16", "bf16", "f32"] = option(
        "auto",
        "precision of what all types are made of; auto keeps the source's",
    )
    keep_intermediate: bool = option(
        False, "keep the unquantized GGUF file beside the quantized ones"
    )
    output_type: str = option(
        "", "type of the output tensor, if not the one llama.cpp chooses", metavar="TENSOR-TYPE"
    )
    embedding_type: str = option(
        "", "type of the token embeddings, if not the one llama.cpp chooses", metavar="TENSOR-TYPE"
    )
    tensor_types: tuple[str, ...] = option(
        (),
        "types of single tensors: regular expression = type, e.g. attn_v=Q8_0",
        metavar="REGEX=TENSOR-TYPE,…",
    )
    pure: bool = option(
        False,
        "the same type for all tensors, instead of llama.cpp's mixture (more bits for the sensitive"
        " ones)",
    )
    split_size: str = option(
        "",
        "split files into shards of at most this size: a number with M or G, e.g. 2G; empty: one"
        " file",
        metavar="SIZE",
    )
    pre_tokenizer: str = option(
        "",
        "pre-tokenizer to assume where llama.cpp does not know the model's, e.g. gpt-2; token ids"
        " are then compared",
        metavar="NAME",
    )
    mmproj: bool = option(
        True,
        "of a model that sees or hears, write those parts too, into a file of their own (mmproj)"
        " that llama.cpp and Ollama load beside each of the others",
    )
    mmproj_type: Literal["f16", "bf16", "q8_0"] = option(
        "f16", "type of the mmproj file; q8_0 is half the size, and hardly worse"
    )
    modelfile: bool = option(False, "write an Ollama Modelfile beside each file")
    adapter_only: bool = option(
        False,
        "of a LoRA adapter, write the adapter alone, as a GGUF file that llama.cpp and Ollama load"
        " beside the model's; the model's weights are not needed",
    )
    allow_requantize: bool = option(
        False,
        "make types of a GGUF file that is quantized below Q8_0 itself: what it has lost stays"
        " lost, and more is lost",
    )
    threads: int = option(
        0, "processor threads in all; 0 takes every core", unit="threads", ge=0, le=1024
    )
    delete_uploaded: bool = option(
        False,
        "with upload and split_size: delete each shard here as soon as the Hub has it, so that even"
        " the results need not fit on the disk; they are looked at before, but neither run nor"
        " measured",
    )
    download: Literal["auto", "whole", "stream"] = option(
        "auto",
        "weights from the Hub: whole keeps all files in the cache; stream has one or two of them at"
        " a time on the disk, and away again, so that a model fits which the disk does not hold;"
        " auto: stream if there is no room for all",
    )
    allow_pickle: bool = option(
        False,
        "accept a checkpoint that has only pickle weights (.bin); they are read with torch's"
        " weights_only loader, which runs no code",
    )
    converter: str = option(
        "",
        "a llama.cpp folder or llama_cpp_python-*.tar.gz to take the converter from, instead of"
        " fetching it",
        metavar="PATH",
    )

    @field_validator("types")
    @classmethod
    def _types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(parse(name) for name in value))

    @field_validator("output_type", "embedding_type")
    @classmethod
    def _tensor_type(cls, value: str) -> str:
        return _tensor_type_name(value) if value else ""

    @field_validator("tensor_types")
    @classmethod
    def _rules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        rules = []
        for rule in value:
            pattern, equals, name = rule.rpartition("=")
            if not equals or not pattern:
                raise ValueError(
                    f"{rule!r} is no rule; write a regular expression, =, and a tensor type, e.g."
                    " attn_v=Q8_0"
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
            rules.append(f"{pattern}={_tensor_type_name(name)}")
        return tuple(rules)

    @field_validator("split_size")
    @classmethod
    def _size(cls, value: str) -> str:
        if value and not re.fullmatch(r"[1-9][0-9]*[KMG]", value.upper()):
            raise ValueError(
                f"{value!r} is no size; write a whole number followed by M or G (10^6 or 10^9"
                " bytes), e.g. 2G"
            )
        return value.upper()

    @property
    def split_bytes(self) -> int:
        """The shard size in bytes, 0 for no splitting."""
        return int(self.split_size[:-1]) * SIZES[self.split_size[-1]] if self.split_size else 0

    @property
    def cores(self) -> int:
        """Threads to use in all."""
        return self.threads or cores()

    def quantizing(self) -> dict[str, Any]:
        """What changes the tensors' types, in the keywords of backends.llamacpp.quantize."""
        return {
            "output_type": self.output_type,
            "embedding_type": self.embedding_type,
            "overrides": list(self.tensor_types),
            "pure": self.pure,
        }

    @property
    def mixed(self) -> bool:
        """Whether tensors get other types than llama.cpp would choose."""
        return self.quantizing() != GgufOptions().quantizing()

    @property
    def given_imatrix(self) -> Path | None:
        """The file that ``imatrix`` names, if it is an importance matrix by its content."""
        if self.imatrix in ("none", "builtin", "calibration"):
            return None
        path = expanded(self.imatrix, "imatrix")
        return path.resolve() if is_imatrix(path) else None

    @property
    def collects(self) -> bool:
        """Whether an importance matrix is to be collected, for which llama.cpp runs the model."""
        return self.imatrix != "none" and self.given_imatrix is None


def _tensor_type_name(name: str) -> str:
    upper = name.strip().upper()
    if upper not in TENSOR_TYPES:
        raise ValueError(
            f"{name!r} is no tensor type; nearest: {', '.join(nearest(upper, TENSOR_TYPES))}"
        )
    return upper
