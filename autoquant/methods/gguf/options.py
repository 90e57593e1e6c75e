"""The options of GGUF quantization."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from autoquant.backends.llamacpp.types import TENSOR_TYPES, nearest, parse
from autoquant.calibration import CalibrationOptions
from autoquant.core.bundled import BUILTIN, KINDS
from autoquant.core.machine import cores
from autoquant.core.options import option
from autoquant.core.texts import expanded
from autoquant.formats.imatrix import is_imatrix
from autoquant.methods.size import BPW, Size

_NUMBER = re.compile(r"\d+(\.\d+)?")
SIZES = {"K": 10**3, "M": 10**6, "G": 10**9}
AUTO, NONE, FISHER, MEASURE = "auto", "none", "fisher", "measure"
NEXT_TO = "next to "  # how what is compared with a size is called until it is known


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
        "imatrix_chunks": "imatrix!=none|calibration|fisher",
        "context": "fits",
        "kv_type": "fits",
        "mmproj_type": "mmproj",
        "delete_uploaded": "split_size",
        "eval_by_weights": "evaluate!=off",
    }
    main: ClassVar[tuple[str, ...]] = ("types", "size", "imatrix", "evaluate", "upload")

    types: tuple[str, ...] = option(
        ("Q4_K_M",),
        "GGUF types to make; `autoquant types` lists all of them with their use",
        metavar="TYPE,…",
        min_length=1,
    )
    size: tuple[str, ...] = option(
        (),
        "instead of types: sizes of files in which each tensor gets the type that loses the"
        " least, as the Fisher information predicts. A number with GB, GiB, MB or MiB (5.5GB is"
        " 5,500,000,000 bytes); with bpw, bits per weight (4.5bpw); or a type, for its size"
        " (Q4_K_M). A file is never larger",
        metavar="SIZE,…",
    )
    bpw: tuple[str, ...] = option(
        (),
        "the same, in bits per weight of the file's tensors: 4.5 is short for size 4.5bpw",
        metavar="BITS,…",
    )
    fits: str = option(
        "",
        "the same for a device: as large as runs whole on it beside keys, values and buffers"
        " (`autoquant devices`; or 8GB laptop, MacBook 24GB, 24GB); Q8_0 if that fits",
        metavar="DEVICE",
    )
    context: int = option(
        0,
        "with fits: tokens of one conversation; 0 takes 8192, or the model's if that is less",
        unit="tokens",
        ge=0,
        le=10_000_000,
    )
    kv_type: Literal["f16", "q8_0", "q4_0"] = option(
        "f16", "with fits: how llama.cpp will keep keys and values"
    )
    against: tuple[str, ...] = option(
        ("auto",),
        "types to make and measure beside the files of a size: auto takes the one nearest to each"
        " in size, none takes none. They stay here: nothing but the files of a size is uploaded",
        metavar="auto|none|TYPE,…",
        min_length=1,
    )
    candidates: tuple[str, ...] = option(
        ("auto",),
        "tensor types to choose from; auto: k-quants and IQ4, which all runtimes are fast with, and"
        " below the size of Q3_K_S all other IQ types too",
        metavar="auto|TENSOR-TYPE,…",
        min_length=1,
    )
    sensitivity: str = option(
        MEASURE,
        "how sensitive each tensor is: measure it (forward and backward through the model, block"
        " by block), or take it from a sensitivity.json of the same model: a file, or of a"
        " repository on the Hub",
        metavar="measure|FILE|OWNER/NAME",
    )
    sensitivity_samples: int = option(
        32,
        "chunks of 512 tokens (or the model's context) to measure sensitivities on; more change"
        " little",
        unit="chunks",
        ge=2,
        le=10_000,
    )
    imatrix: str = option(
        "none",
        "importance matrix, which improves all types below Q8_0: none, builtin (computed on English"
        " prose, other languages, code and conversations; or on one of them: prose, languages,"
        " code, conversations), a UTF-8 text file to compute it on, calibration (the samples that"
        " the calibration options give, the same as for GPTQ and AWQ), fisher (from the gradients"
        " that sensitivities are made of; what size takes where there is none), or an existing"
        " importance matrix (llama.cpp's GGUF or older .dat format)",
        metavar="none|builtin|fisher|FILE|calibration",
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
    eval_by_weights: bool = option(
        False,
        "measure files by their weights, which transformers runs as it does folders: for files that"
        " are compared with other methods or larger models. Without it llama.cpp runs files of up"
        " to 2 billion parameters where there is no GPU",
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

    @model_validator(mode="before")
    @classmethod
    def _bits_are_a_size(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = values.get("bpw") or ()
        bits = tuple(map(str, given if isinstance(given, (tuple, list)) else (given,)))
        if not bits:
            return values
        right = [one for one in bits if _NUMBER.fullmatch(one.removesuffix(BPW))]
        sizes = (*(values.get("size") or ()), *(f"{one.removesuffix(BPW)}{BPW}" for one in right))
        return {**values, "bpw": bits, "size": sizes}

    @field_validator("bpw")
    @classmethod
    def _bits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if not _NUMBER.fullmatch(one.removesuffix(BPW)):
                raise ValueError(f"{one!r} is no number of bits; write one such as 4.5")
        return value

    @field_validator("size")
    @classmethod
    def _sizes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(Size.parse(one)) for one in value))

    @field_validator("against")
    @classmethod
    def _against(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value in ((AUTO,), (NONE,)):
            return value
        return tuple(dict.fromkeys(parse(name, "against") for name in value))

    @field_validator("candidates")
    @classmethod
    def _candidates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value == (AUTO,):
            return value
        return tuple(dict.fromkeys(_tensor_type_name(name) for name in value))

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

    @property
    def files(self) -> tuple[str, ...]:
        """What is made, as far as it is known before types are chosen: types; for sizes these, and
        for each of them one that it is compared with.
        """
        if not self.size:
            return self.types
        if self.compares and self.against == (AUTO,):
            return (*self.size, *(f"{NEXT_TO}{one}" for one in self.size))
        return (*self.size, *(self.against if self.compares else ()))

    @property
    def compares(self) -> bool:
        """Whether files of a size are compared with others: unless nothing is measured, or files
        are deleted before.
        """
        unmeasured = self.evaluate == "off" and self.against == (AUTO,)
        return not (self.against == (NONE,) or unmeasured or self.delete_uploaded)

    @property
    def gradients(self) -> bool:
        """Whether the model is run backwards, if that was not done before."""
        return self.sensitivity == MEASURE if self.size else self.imatrix == FISHER

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
        if self.imatrix in (NONE, FISHER, "calibration", BUILTIN, *KINDS):
            return None
        path = expanded(self.imatrix, "imatrix")
        return path.resolve() if is_imatrix(path) else None

    @property
    def collects(self) -> bool:
        """Whether an importance matrix is to be collected of what enters matrices."""
        return self.imatrix not in (NONE, FISHER) and self.given_imatrix is None


def _tensor_type_name(name: str) -> str:
    upper = name.strip().upper()
    if upper not in TENSOR_TYPES:
        raise ValueError(
            f"{name!r} is no tensor type; nearest: {', '.join(nearest(upper, TENSOR_TYPES))}"
        )
    return upper
