"""Stands in for PyPcre where that is not installed: the part of it that GPTQModel uses, by ``re``.

PyPcre is a C extension without prebuilt wheels; GPTQModel matches names of layers and files with
it, in patterns that mean the same to Python's own ``re``.
"""

from __future__ import annotations

import re
from re import (
    Match,
    Pattern,
    compile,
    escape,
    findall,
    finditer,
    fullmatch,
    match,
    search,
    split,
    sub,
)

STAND_IN = True


class Flag:
    """PyPcre's names of flags."""

    CASELESS = re.IGNORECASE
    MULTILINE = re.MULTILINE
    DOTALL = re.DOTALL


__all__ = [
    "STAND_IN",
    "Flag",
    "Match",
    "Pattern",
    "compile",
    "escape",
    "findall",
    "finditer",
    "fullmatch",
    "match",
    "search",
    "split",
    "sub",
]
