"""What stands in a batch file's [ray]: what each job takes of a node."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from autoquant.methods.size import BPW, Size

NAMES = ("cpus", "gpus", "memory")


def read(table: Any, wrong: list[str]) -> dict[str, float]:
    """The numbers, memory in bytes; what is wrong is added to ``wrong``."""
    needs = dict[str, float]()
    if not isinstance(table, Mapping):
        wrong.append("ray: write [ray] with cpus, gpus or memory below it")
        return needs
    for name, value in table.items():
        if name not in NAMES:
            wrong.append(f"ray: {name} is not known here; there are {', '.join(NAMES)}")
        elif name == "memory":
            if (size := _bytes(str(value))) is None:
                wrong.append(f"ray: memory is {value!r}; write a number with GB or GiB: '24GB'")
            else:
                needs[name] = size
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            wrong.append(f"ray: {name} is {value!r}; write a number above 0")
        else:
            needs[name] = value
    return needs


def _bytes(text: str) -> int | None:
    """So many bytes as a text says; None if it says none."""
    with contextlib.suppress(ValueError):
        size = Size.parse(text)
        return None if size.type or size.unit == BPW else size.bytes(0)
    return None
