"""A GGUF file's header through ggml's own gguf_* functions (gguf-py's reader takes seconds on a
large vocabulary).
"""

from __future__ import annotations

import ctypes as C
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import llama_cpp.llama_cpp as L
import numpy as np
import numpy.typing as npt

from autoquant.core.errors import InputError

ROWS_AT_ONCE = 64 << 20  # bytes of float32 that are looked at together


def function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of libggml with its types declared."""
    symbol = getattr(L._lib, name)
    symbol.restype, symbol.argtypes = result, list(arguments)
    return symbol


class _Params(C.Structure):
    _fields_ = (("no_alloc", C.c_bool), ("ctx", C.c_void_p))


@dataclass(frozen=True)
class Tensor:
    """One tensor: ggml type name (Q4_K …), shape with the row length first (ggml's order), place
    and bytes in the file.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    bytes: int

    @property
    def elements(self) -> int:
        """How many weights it has."""
        return int(np.prod(self.shape))


class Header:
    """``tensors`` by name, ``data_offset``, ``alignment``, and :meth:`get` for single values.
    Raises ValueError if it is no GGUF file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        context = function("gguf_init_from_file", C.c_void_p, C.c_char_p, _Params)(
            str(path).encode(), _Params(True, None)
        )
        if not context:
            raise ValueError("not a complete GGUF header")
        self._context = context
        of, at = (C.c_void_p,), (C.c_void_p, C.c_int64)
        self.data_offset = int(function("gguf_get_data_offset", C.c_size_t, *of)(context))
        self.alignment = int(function("gguf_get_alignment", C.c_size_t, *of)(context))
        name, kind = (
            function("gguf_get_tensor_name", C.c_char_p, *at),
            function("gguf_get_tensor_type", C.c_int, *at),
        )
        shape, offset = (
            function("gguf_get_tensor_ne", C.POINTER(C.c_int64), *at),
            function("gguf_get_tensor_offset", C.c_size_t, *at),
        )
        size = function("gguf_get_tensor_size", C.c_size_t, *at)
        self.tensors: dict[str, Tensor] = {}
        for i in range(function("gguf_get_n_tensors", C.c_int64, *of)(context)):
            tensor = Tensor(
                name(context, i).decode(),
                gguf.GGMLQuantizationType(kind(context, i)).name,
                tuple(shape(context, i)[:4]),
                self.data_offset + int(offset(context, i)),
                int(size(context, i)),
            )
            self.tensors[tensor.name] = tensor

    def quantized_offset(self) -> int:
        """Where the data would begin in a file that llama.cpp quantizes this one to: ggml drops
        trailing dimensions of 1 from a tensor's record, and two keys are there afterwards.
        """
        of, key = (C.c_void_p,), (C.c_void_p, C.c_char_p)
        find = function("gguf_find_key", C.c_int64, *key)
        put = function("gguf_set_val_u32", None, *key, C.c_uint32)
        for name in (b"general.quantization_version", b"general.file_type"):
            if find(self._context, name) < 0:
                put(self._context, name, 0)
        return int(function("gguf_get_meta_size", C.c_size_t, *of)(self._context))

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            function("gguf_free", None, C.c_void_p)(self._context)

    def get(self, key: str, kind: str = "str") -> Any:
        """The value of a key (``kind``: str, u16, u32 …), or None if it is not there."""
        index = function("gguf_find_key", C.c_int64, C.c_void_p, C.c_char_p)(
            self._context, key.encode()
        )
        if index < 0:
            return None
        result = {"str": C.c_char_p, "u16": C.c_uint16, "u32": C.c_uint32}[kind]
        value = function(f"gguf_get_val_{kind}", result, C.c_void_p, C.c_int64)(
            self._context, index
        )
        return value.decode() if isinstance(value, bytes) else int(value)

    def rows(self, tensor: Tensor) -> npt.NDArray[np.uint8]:
        """The tensor's bytes, one row of the matrix a row, mapped from the file."""
        rows = tensor.elements // tensor.shape[0]
        return np.memmap(
            self.path,
            dtype=np.uint8,
            mode="r",
            offset=tensor.offset,
            shape=(rows, tensor.bytes // rows),
        )

    def values(
        self, tensor: Tensor, rows: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Dequantized rows [n, shape[0]]. Raises NotImplementedError for formats gguf-py cannot
        read.
        """
        raw = self.rows(tensor)
        raw = raw if rows is None else raw[rows]
        kind = gguf.GGMLQuantizationType[tensor.type]
        plain: dict[str, Any] = {"F32": np.float32, "F16": np.float16}
        if tensor.type in plain:
            out: npt.NDArray[np.float32] = raw.view(plain[tensor.type]).astype(np.float32)
        else:
            out = gguf.quants.dequantize(np.ascontiguousarray(raw), kind)
        return out


def refuse_larger(paths: list[str], largest: float) -> None:
    """Refuse files with a value that float16 cannot hold. Memory: a few times ROWS_AT_ONCE. Raises
    InputError naming the tensor. Runs in a worker.
    """
    for path in paths:
        header = Header(path)
        for tensor in header.tensors.values():
            rows = tensor.elements // tensor.shape[0]
            step = max(1, ROWS_AT_ONCE // (4 * tensor.shape[0]))
            for begin in range(0, rows, step):
                values = header.values(tensor, np.arange(begin, min(rows, begin + step)))
                worst = float(np.abs(values).max())
                if not np.isfinite(worst):
                    raise InputError(f"{tensor.name} has NaN or Inf values; the model is damaged")
                if worst > largest:
                    raise InputError(
                        f"types: {tensor.name} has the value {worst:g}, which F16 cannot hold (at"
                        f" most {largest:g}); take BF16"
                    )
