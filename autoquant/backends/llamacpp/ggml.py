"""ggml's own arithmetic on rows of weights: to float32, and to each type."""

from __future__ import annotations

import ctypes as C
import time
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from autoquant.core.errors import ProcessFailed
from autoquant.formats.gguf import function

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SAMPLE = (16, 4096)  # rows and weights in each that rates are measured on
LEAST = 0.03  # seconds

_TO_FLOAT = C.CFUNCTYPE(None, C.c_void_p, C.c_void_p, C.c_int64)


class _Traits(C.Structure):
    """The beginning of ggml's struct ggml_type_traits."""

    _fields_ = (
        ("name", C.c_char_p),
        ("block", C.c_int64),
        ("interleave", C.c_int64),
        ("size", C.c_size_t),
        ("is_quantized", C.c_bool),
        ("to_float", C.c_void_p),
    )


class Ggml:
    """Its functions let other threads of Python run."""

    def __init__(self) -> None:
        pointer, count = C.c_void_p, C.c_int64
        self._quantize = function(
            "ggml_quantize_chunk", C.c_size_t, C.c_int, pointer, pointer, count, count, count,
            pointer,
        )  # fmt: skip
        self._valid = function("ggml_validate_row_data", C.c_bool, C.c_int, pointer, C.c_size_t)
        self._begin = function("ggml_quantize_init", None, C.c_int)
        self._traits = function("ggml_get_type_traits", C.POINTER(_Traits), C.c_int)
        self._readers: dict[str, Any] = {}

    def begin(self, kind: str) -> None:
        """Make a type's tables."""
        self._begin(gguf.GGMLQuantizationType[kind])

    def floats(self, raw: Bytes, kind: str) -> Floats:
        """Rows [n, bytes] of a type as float32. Raises ProcessFailed for a type of integers."""
        if kind == "F32":
            return raw.view(np.float32)
        number = gguf.GGMLQuantizationType[kind]
        if kind not in self._readers:
            found = self._traits(number).contents.to_float
            if not found:
                raise ProcessFailed(f"ggml does not read the type {kind}")
            self._readers[kind] = _TO_FLOAT(found)
        block, size = gguf.GGML_QUANT_SIZES[number]
        out = np.empty((raw.shape[0], raw.shape[1] // size * block), np.float32)
        self._readers[kind](raw.ctypes.data, out.ctypes.data, out.size)
        return out

    def quantize(self, values: Floats, kind: str, importance: Floats | None) -> Bytes:
        """Rows [n, bytes] of a type. Raises ProcessFailed for what ggml itself calls invalid."""
        number = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[number]
        rows, width = values.shape
        out = np.empty((rows, width // block * size), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        self._quantize(number, values.ctypes.data, out.ctypes.data, 0, rows, width, weights)
        if not self._valid(number, out.ctypes.data, out.nbytes):
            raise ProcessFailed(f"llama.cpp could not quantize to {kind}: the values are not valid")
        return out


def rates(kinds: list[str]) -> dict[str, float]:
    """How many weights a thread makes into each type in a second; of "floats X", how many of type X
    into float32, looking at each. Takes some ten milliseconds a type. Runs in a worker.
    """
    ggml, found = Ggml(), {}
    values = np.random.default_rng(0).standard_normal(SAMPLE, dtype=np.float32)
    importance = np.ones(SAMPLE[1], np.float32)
    for kind in kinds:
        read = kind.removeprefix("floats ")
        ggml.begin(read)
        made = ggml.quantize(values, read, importance)
        count, begun = 0, time.perf_counter()
        while not count or time.perf_counter() - begun < LEAST:
            if read != kind:
                np.isfinite(ggml.floats(made, read)).all()
            else:
                ggml.quantize(values, read, importance)
            count += 1
        found[kind] = count * values.size / (time.perf_counter() - begun)
    return found
