"""The tensors of a folder of safetensors, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoquant.formats.checkpoint import weight_files

Floats = npt.NDArray[np.float32]

# bytes; those that are not named here have two
WIDTHS = {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F32": 4, "I32": 4, "I64": 8}
# safetensors' names of dtypes -> torch's
TORCH = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Part:
    """One matrix [outputs, inputs] that is quantized by itself: a tensor of the files, or one
    expert's share of a tensor that holds all (``expert``; from ``first`` in steps of ``step`` along
    its outputs, which lie along the last axis where it is ``transposed``).
    """

    name: str
    tensor: str
    shape: tuple[int, int]
    expert: int | None = None
    transposed: bool = False
    first: int = 0
    step: int = 1

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Part:
        """The inverse of dataclasses.asdict, after JSON."""
        return cls(**{**data, "shape": tuple(data["shape"])})

    def read(self, get_slice: Any) -> Any:
        """The matrix; ``get_slice`` gives a tensor of the files that is read when it is cut. Only
        this part is read.
        """
        whole = get_slice(self.tensor)
        if self.expert is None:
            return whole[:]
        one = whole[self.expert]
        if self.transposed:
            one = one.T
        if self.step > 1:
            return one[self.first :: self.step]
        return one[self.first : self.first + self.shape[0]]


def stored_width(dtype: str, dimensions: int, main: str) -> int:
    """Bytes of a value that is kept in a folder of 16 bits; ``main`` is the dtype that most values
    of its checkpoint have. Vectors that a checkpoint of 16 bits has in float32 stay so: biases of
    gates, decay rates of state-space mixers.
    """
    if dtype == "F32" and dimensions < 2 and main not in ("F32", "F64"):
        return 4
    return 2 if dtype in ("F64", "F32", "F16", "BF16") else WIDTHS.get(dtype, 2)


class Tensors:
    """The tensors of a folder's safetensors files by name, read when asked for."""

    def __init__(self, folder: str) -> None:
        from safetensors import safe_open

        opened: Any = safe_open  # untyped
        self._files = [opened(path, framework="pt") for path in weight_files(Path(folder))]
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 (not a dict)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> list[str]:
        """All names."""
        return list(self._where)

    def get(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor; floats of 16 and 8 bits as float32, which NumPy has."""
        tensor = self._where[name].get_tensor(name)
        return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()  # type: ignore[no-any-return]

    def raw(self, name: str) -> Any:
        """One tensor as torch has it."""
        return self._where[name].get_tensor(name)

    def part(self, part: Part) -> np.ndarray[Any, Any]:
        """A part of one, as float32."""
        if part.expert is None:
            return self.get(part.tensor)
        read = part.read(lambda name: self._where[name].get_slice(name))
        return np.ascontiguousarray(read.float().numpy())

    def expect(self, names: Iterable[str]) -> None:
        """Say which will be read soon; from a disk there is nothing to prepare."""

    def headers(self) -> dict[str, tuple[str, list[int]]]:
        """The dtype and shape of each."""
        slices = {name: file.get_slice(name) for name, file in self._where.items()}
        return {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}

    def rows(self, name: str, first: int, last: int) -> Any:
        """Some of the rows of one (of its first dimension), as torch has them."""
        return self._where[name].get_slice(name)[first:last]

    def plain(self) -> list[str]:
        """The names of the tensors that are floating-point numbers."""
        return [
            name
            for name, file in self._where.items()
            if file.get_slice(name).get_dtype() in ("F16", "BF16", "F32")
        ]

    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(map(self.size, self._where))

    def size(self, name: str) -> int:
        """Bytes of one tensor, as it is stored."""
        part = self._where[name].get_slice(name)
        return int(np.prod(part.get_shape(), dtype=np.int64)) * WIDTHS.get(part.get_dtype(), 2)


class Read(Tensors):
    """Tensors whose bytes somebody else reads. ``headers`` gives their dtypes and shapes, ``read``
    the bytes of one by its name, ``part`` some of them (the first, and the end); ``expect`` is told
    of those that will be read soon.
    """

    def __init__(
        self,
        headers: Mapping[str, tuple[str, list[int]]],
        read: Callable[[str], npt.NDArray[np.uint8]],
        expect: Callable[[Iterable[str]], None] | None = None,
        part: Callable[[str, int, int], npt.NDArray[np.uint8]] | None = None,
    ) -> None:
        self._headers, self._read, self._expect, self._part = headers, read, expect, part

    def __contains__(self, name: str) -> bool:
        return name in self._headers

    def names(self) -> list[str]:
        """All names."""
        return list(self._headers)

    def get(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor; floats of 16 and 8 bits as float32."""
        tensor = self.raw(name)
        return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()  # type: ignore[no-any-return]

    def expect(self, names: Iterable[str]) -> None:
        """Say which will be read soon."""
        if self._expect is not None:
            self._expect(names)

    def headers(self) -> dict[str, tuple[str, list[int]]]:
        """The dtype and shape of each."""
        return dict(self._headers)

    def rows(self, name: str, first: int, last: int) -> Any:
        """Some of the rows of one."""
        if self._part is None:
            return self.raw(name)[first:last]
        dtype, shape = self._headers[name]
        width = WIDTHS.get(dtype, 2) * math.prod(shape[1:])
        part = self._part(name, first * width, last * width)
        return self._as_torch(part, dtype, [-1, *shape[1:]])

    def raw(self, name: str) -> Any:
        """One tensor as torch has it; its own copy."""
        return self._as_torch(self._read(name), *self._headers[name])

    def _as_torch(self, data: npt.NDArray[np.uint8], dtype: str, shape: list[int]) -> Any:
        import torch

        return torch.from_numpy(np.array(data)).view(getattr(torch, TORCH[dtype])).reshape(shape)
