"""The tensors of a folder of safetensors, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoquant.formats.checkpoint import weight_files

Floats = npt.NDArray[np.float32]

# bytes; those that are not named here have two
WIDTHS = {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F32": 4, "I32": 4, "I64": 8}


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
