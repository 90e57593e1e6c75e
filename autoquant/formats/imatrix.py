"""llama.cpp's older format of importance matrices (.dat), and telling both formats by content.

A .dat file is little-endian: int32 number of entries, then for each: int32 length and bytes of the
tensor's name, int32 calls, int32 number of values, float32 values: sums of mean squared inputs over
the calls. After them, in files since 2024: int32 number of chunks, int32 length and bytes of the
text's name.
Source: https://github.com/ggml-org/llama.cpp (tools/imatrix/imatrix.cpp, save_imatrix_legacy).
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

NAME = 128  # bytes, more than any tensor's name has


def is_imatrix(path: Path) -> bool:
    """Whether a file begins as an importance matrix of either format does."""
    return path.is_file() and (is_gguf(path) or is_dat(path))


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF."""
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def is_dat(path: Path) -> bool:
    """Whether a file begins as the older format: a number, and the name of a block's tensor."""
    with open(path, "rb") as file:
        head = file.read(8 + NAME)
    if len(head) < 16:
        return False
    entries, length = struct.unpack("<ii", head[:8])
    name = head[8 : 8 + max(0, length)]
    return 0 < entries < 1 << 20 and 0 < length < NAME and name.startswith((b"blk.", b"output"))


def read_dat(path: Path) -> tuple[dict[str, tuple[npt.NDArray[np.float32], int]], int]:
    """Each entry's values and calls, and the number of chunks (0: not in the file). Raises
    ValueError for a file that is cut short.
    """
    data, at = path.read_bytes(), 0

    def number() -> int:
        nonlocal at
        if at + 4 > len(data):
            raise ValueError(f"the file ends at byte {len(data):,}, in the middle of an entry")
        at += 4
        return int(struct.unpack_from("<i", data, at - 4)[0])

    entries: dict[str, tuple[npt.NDArray[np.float32], int]] = {}
    for _ in range(number()):
        length = number()
        name = data[at : at + length].decode("utf-8", "replace")
        at += length
        calls, size = number(), number()
        if size < 0 or at + 4 * size > len(data):
            raise ValueError(f"the file ends at byte {len(data):,}, in the values of {name}")
        entries[name] = (np.frombuffer(data, "<f4", size, at).astype(np.float32), calls)
        at += 4 * size
    return entries, number() if at < len(data) else 0
