"""Where the time goes: intervals of library work, for ``bench/overhead.py``.

Off unless the environment variable AUTOQUANT_TRACE names a file; then every interval is appended to
it as a JSON line ``{"name", "start", "end"}`` in seconds of CLOCK_MONOTONIC, which all processes of
a machine share.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator

ENV = "AUTOQUANT_TRACE"


def record(name: str, start: float, end: float) -> None:
    """Append one interval to the trace file, if there is one."""
    path = os.environ.get(ENV)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "start": start, "end": end}) + "\n")


@contextlib.contextmanager
def library(name: str) -> Iterator[None]:
    """Mark the body as work of a library (llama.cpp, torch, transformers, NumPy arithmetic), not of
    this package.
    """
    start = time.monotonic()
    try:
        yield
    finally:
        record(name, start, time.monotonic())
