"""The many types of one GGUF job as several jobs, for several nodes: each reads the model by
itself.
"""

from __future__ import annotations

from typing import Any

from autoquant.backends.llamacpp.types import TYPES
from autoquant.core.errors import InputError
from autoquant.core.options import MethodOptions
from autoquant.methods.gguf.options import GgufOptions

PER_TYPE = "repo-per-type"


def shares(method: str, options: MethodOptions, count: Any) -> list[list[str]]:
    """The types of at most ``count`` jobs, about as many bytes each. Raises InputError."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise InputError(f"split: {count!r} is no number of jobs; write 2 or more")
    if not isinstance(options, GgufOptions) or options.size or len(options.types) < 2:
        raise InputError(
            f"split: only types of gguf are split, two or more of them; leave it out for {method}"
        )
    if options.upload and options.layout != PER_TYPE:
        raise InputError(
            "split: in one repository the parts would write over each other's card; add layout ="
            f" {PER_TYPE!r}, or leave upload out"
        )
    dealt: list[list[str]] = [[] for _ in range(min(count, len(options.types)))]
    for one in sorted(options.types, key=_bits, reverse=True):  # the largest first
        min(dealt, key=lambda names: sum(map(_bits, names))).append(one)
    return dealt


def _bits(type: str) -> float:
    return TYPES[type].bits_per_weight
