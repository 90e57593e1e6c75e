"""Every file type of the pinned llama.cpp: its number, nominal bits per weight, when to take it,
whether it needs an imatrix.

Bits per weight are for Llama-3.1-8B's shapes, computed by llama.cpp's own dry run on a header-only
file of these shapes (a test repeats it), except the types marked special, whose
nominal width is that of their blocks.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any, Literal

from autoquant.core.errors import InputError


@dataclass(frozen=True)
class FileType:
    """One row. ``imatrix``: "needed" (llama.cpp refuses without), "better" (helps clearly) or "no"
    (not used or no effect).
    """

    name: str
    number: int
    bits_per_weight: float
    imatrix: Literal["needed", "better", "no"]
    when: str
    special: bool = False


_ROWS = (
    FileType(
        "F32", 0, 32.00, "no", "a reference without any rounding; never needed to run a model"
    ),
    FileType("BF16", 32, 16.00, "no", "unquantized, for models trained in bfloat16"),
    FileType("F16", 1, 16.00, "no", "unquantized; the file to quantize further from"),
    FileType("Q8_0", 7, 8.50, "no", "practically lossless; when memory is no concern"),
    FileType(
        "Q6_K", 18, 6.56, "better", "very close to the original at three quarters of Q8_0's size"
    ),
    FileType(
        "Q5_K_M",
        17,
        5.70,
        "better",
        "close to the original; a good choice with some memory to spare",
    ),
    FileType("Q5_K_S", 16, 5.57, "better", "slightly smaller than Q5_K_M, hardly worse"),
    FileType("Q5_1", 9, 6.04, "better", "legacy; Q5_K_M is smaller and better"),
    FileType("Q5_0", 8, 5.57, "better", "legacy; Q5_K_S is as small and better"),
    FileType("Q4_K_M", 15, 4.89, "better", "the usual choice: a good balance of size and quality"),
    FileType("Q4_K_S", 14, 4.67, "better", "slightly smaller than Q4_K_M with a little more loss"),
    FileType("Q4_1", 3, 5.10, "better", "legacy; larger than Q4_K_M"),
    FileType(
        "IQ4_NL",
        25,
        4.68,
        "better",
        "like Q4_K_S, for rows that are no multiple of 256; fast on ARM",
    ),
    FileType("Q4_0", 2, 4.64, "better", "legacy; still the fastest on ARM and old GPUs"),
    FileType("IQ4_XS", 30, 4.46, "better", "smaller than Q4_K_S at about its quality"),
    FileType("Q3_K_L", 13, 4.30, "better", "when Q4 does not fit; visible loss"),
    FileType("Q3_K_M", 12, 4.00, "better", "when Q4 does not fit; clear loss on small models"),
    FileType("IQ3_M", 27, 3.76, "better", "better than Q3_K_S at its size"),
    FileType("IQ3_S", 26, 3.66, "better", "better than Q3_K_S at its size"),
    FileType("Q3_K_S", 11, 3.64, "better", "low quality; IQ3_S or IQ3_M are better"),
    FileType("IQ3_XS", 22, 3.50, "needed", "large models only"),
    FileType("IQ3_XXS", 23, 3.25, "needed", "large models only"),
    FileType(
        "Q2_K", 10, 3.16, "better", "strong loss; for models of 30 billion parameters and more"
    ),
    FileType("Q2_K_S", 21, 2.97, "needed", "stronger loss than Q2_K"),
    FileType("IQ2_M", 29, 2.93, "needed", "the best of the 2-bit types; very large models"),
    FileType("IQ2_S", 28, 2.74, "needed", "very large models"),
    FileType("IQ2_XS", 20, 2.59, "needed", "very large models"),
    FileType("IQ2_XXS", 19, 2.38, "needed", "very large models, as a last resort"),
    FileType("IQ1_M", 31, 2.15, "needed", "experiments"),
    FileType("IQ1_S", 24, 2.00, "needed", "experiments"),
    FileType("TQ2_0", 37, 2.06, "no", "ternary models (BitNet, TriLM) only", special=True),
    FileType("TQ1_0", 36, 1.69, "no", "ternary models (BitNet, TriLM) only", special=True),
    FileType(
        "MXFP4_MOE",
        38,
        4.25,
        "no",
        "mixture-of-experts models trained for MXFP4 (gpt-oss) only",
        special=True,
    ),
    FileType("Q2_0", 41, 2.25, "no", "models trained for this 2-bit format only", special=True),
    FileType("Q1_0", 40, 1.13, "no", "models trained for this 1-bit format only", special=True),
)
TYPES = {row.name: row for row in _ROWS}
UNQUANTIZED = ("F32", "F16", "BF16")
# NVFP4 files come only from the converter on an NVFP4 checkpoint: llama_ftype_get_default_type()
# knows no default for it.
NOT_OFFERED = ("NVFP4", "GUESSED")
# ggml tensor types that may be named for single tensors (llama-quantize's --output-tensor-type and
# --tensor-type).
TENSOR_TYPES = (
    "F32",
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ1_S",
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ3_XXS",
    "IQ3_S",
    "IQ4_NL",
    "IQ4_XS",
    "TQ1_0",
    "TQ2_0",
)


# Files in which each tensor has a type of its own are named by the type that most weights have, as
# the Hub, llama.cpp's -hf and Ollama know it, and by their bits per weight: Q4_K_AQ-4.53bpw. The
# Hub and runtimes look for the last name of a type in a file's name, with letters after an
# underscore; llama.cpp's -hf for a tag that a dot or a dash follows (docs/sizes.md).
_CHOSEN = re.compile(r"(\w+)_AQ-(\d+\.\d\d)bpw")


def chosen_name(kind: str, bits_per_weight: float) -> str:
    """The name of a file most of whose weights are of the tensor type ``kind``."""
    return f"{kind}_AQ-{bits_per_weight:.2f}bpw"


def is_chosen(name: str) -> bool:
    """Whether a type is one of a file in which each tensor has its own."""
    return _CHOSEN.fullmatch(name) is not None


def file_type(name: str) -> FileType:
    """The row of a type; of a file in which each tensor has its own type, one with the number of
    the type that most weights have.
    """
    match = _CHOSEN.fullmatch(name)
    if match is None:
        return TYPES[name]
    usual = TYPES.get(match[1]) or TYPES[f"{match[1]}_M"]
    when = "each tensor in the type that loses the least at this size"
    return FileType(name, usual.number, float(match[2]), "better", when)


def parse(name: str, option: str = "types") -> str:
    """The official spelling of a type's name, given for an option; raises InputError with the
    nearest names.
    """
    upper = name.strip().upper().replace("-", "_")
    if upper not in TYPES:
        raise InputError(
            f"{option}: {name!r} is no GGUF type; nearest:"
            f" {', '.join(nearest(upper, tuple(TYPES)))}. `autoquant types` lists them all"
        )
    return upper


def nearest(name: str, names: tuple[str, ...]) -> list[str]:
    """The names most like ``name``, for error messages."""
    return difflib.get_close_matches(name, names, n=4, cutoff=0.3) or list(names[:4])


def refuse(
    plans: list[dict[str, Any]],
    *,
    intermediate: int,
    other: int,
    room: int,
    imatrix: bool,
    finished: set[str] | None = None,
) -> None:
    """Raise InputError for types that cannot be made, need an imatrix, or do not fit into ``room``
    bytes beside the rest.
    """
    for plan in plans:
        if "impossible" in plan:
            raise InputError(
                f"types: {plan['type']} cannot be made from this model: {plan['impossible']}"
            )
        if plan["needs_imatrix"] and not imatrix:
            raise InputError(
                f"types: {plan['type']} needs an importance matrix for this model: add"
                " imatrix='builtin' (--imatrix builtin) or name a text file"
            )
    due = [plan for plan in plans if plan["type"] not in (finished or set())]
    needed = other + intermediate + sum(plan["bytes"] for plan in due)
    if needed > room:
        listed = ", ".join(f"{plan['type']} {plan['bytes'] / 1e9:.3f} GB" for plan in due)
        raise InputError(
            f"not enough room on the disk: {needed / 1e9:.3f} GB are needed ({listed}, intermediate"
            f" file {intermediate / 1e9:.3f} GB), {room / 1e9:.3f} GB are free. Ask for fewer or"
            " smaller types, or name another folder"
        )
