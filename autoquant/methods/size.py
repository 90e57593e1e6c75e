"""A file's size as it is asked for: in bytes, in bits per weight, or as large as a type."""

from __future__ import annotations

import re
from typing import NamedTuple

from autoquant.backends.llamacpp.types import TYPES, UNQUANTIZED

UNITS = {"B": 1, "MB": 10**6, "GB": 10**9, "MIB": 1 << 20, "GIB": 1 << 30}
BPW = "bpw"
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*(B|MB|GB|MIB|GIB|BPW)", re.IGNORECASE)
SPELLED = {"B": "B", "MB": "MB", "GB": "GB", "MIB": "MiB", "GIB": "GiB", "BPW": BPW}


class Size(NamedTuple):
    """A ``number`` of a ``unit`` (of UNITS, or BPW), or with the unit "" the size of ``type``."""

    number: float
    unit: str
    type: str = ""

    @classmethod
    def parse(cls, text: str) -> Size:
        """A size as somebody writes it. Raises ValueError."""
        upper = text.strip().upper().replace("-", "_")
        if upper in TYPES and upper not in UNQUANTIZED:
            return cls(0, "", upper)
        match = _WRITTEN.fullmatch(text.strip())
        if match is None or not float(match[1]):
            raise ValueError(
                f"{text!r} is no size; write a number with GB, GiB, MB, MiB or bpw, such as 5.5GB"
                " or 4.5bpw, or a GGUF type for its size, such as Q4_K_M"
            )
        return cls(float(match[1]), SPELLED[match[2].upper()])

    def __str__(self) -> str:
        return self.type or f"{self.number:.12g}{self.unit}"

    def bytes(self, parameters: int) -> int:
        """About how many bytes it is of a model of as many parameters, before its tensors are
        known.
        """
        if self.type:
            return int(parameters * TYPES[self.type].bits_per_weight / 8)
        if self.unit == BPW:
            return int(parameters * self.number / 8)
        return int(self.number * UNITS[self.unit.upper()])
