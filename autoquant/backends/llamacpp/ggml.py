"""ggml's own arithmetic on rows of weights: to float32, and to each type."""

from __future__ import annotations

import ctypes as C

import gguf
import numpy as np
import numpy.typing as npt

from autoquant.core.errors import ProcessFailed
from autoquant.formats.gguf import function

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


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
        rows = (None, pointer, pointer, count)
        self._half = function("ggml_fp16_to_fp32_row", *rows)
        self._brain = function("ggml_bf16_to_fp32_row", *rows)

    def begin(self, kind: str) -> None:
        """Make a type's tables."""
        self._begin(gguf.GGMLQuantizationType[kind])

    def floats(self, raw: Bytes, kind: str) -> Floats:
        """Rows [n, bytes] of a type as float32."""
        if kind == "F32":
            return raw.view(np.float32)
        if kind not in ("F16", "BF16"):
            return np.asarray(
                gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]), np.float32
            )
        out = np.empty((raw.shape[0], raw.shape[1] // 2), np.float32)
        convert = self._half if kind == "F16" else self._brain
        convert(raw.ctypes.data, out.ctypes.data, out.size)
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
