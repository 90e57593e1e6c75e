"""ggml's arithmetic on rows that lie in NumPy files: for lessons, which load no native code of
their own. Runs in workers.
"""

from __future__ import annotations

import numpy as np

from autoquant.backends.llamacpp.ggml import Ggml


def quantize(given: str, out: str, *, kind: str, importance: str = "") -> None:
    """From rows of float32 [n, weights] in a file to rows of bytes in another; ``importance`` is a
    file with one float32 for each column.
    """
    ggml = Ggml()
    ggml.begin(kind)
    values = np.ascontiguousarray(np.load(given), dtype=np.float32)
    weighed = np.ascontiguousarray(np.load(importance), np.float32) if importance else None
    np.save(out, ggml.quantize(values, kind, weighed))


def floats(given: str, out: str, *, kind: str) -> None:
    """From rows of bytes to the rows of float32 that they stand for."""
    np.save(out, Ggml().floats(np.ascontiguousarray(np.load(given)), kind))
