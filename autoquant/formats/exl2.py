"""Reading EXL2 files with NumPy alone.

For each linear layer with ``in`` inputs, ``out`` outputs (padded to a multiple of 32: N) and G
groups of inputs: ``q_weight`` int32 [words, N]: the groups one below the other; down a column of a
group, a little-endian stream of codes as wide as the group's bits; ``q_groups`` int16 [2G]: for
each group its bits and its first row in ``q_weight``; a group of b words in b·32/bits rows, the
last takes the rows that are left; ``q_scale`` int32 [G, N/8]: a 4-bit code s for each output, eight
in a word; ``q_scale_max`` float16 [G]; ``q_invperm`` int32 [in]: where in that order each input is.
The weight is ``W[in, out] = (code − 2^(bits−1)) · (s+1)² · q_scale_max / 256``, in float16 as the
kernels compute.
Source: https://github.com/turboderp-org/exllamav2 (conversion/adaptivegptq.py,
    exllamav2_ext/cuda/q_matrix.cu), exllamav2 0.3.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
PARTS = ("q_weight", "q_invperm", "q_scale", "q_scale_max", "q_groups")
# one matrix in some checkpoints, which exllamav2 stores in parts
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def groups(parts: dict[str, Any]) -> list[tuple[int, int]]:
    """Bits and number of inputs of each group of a layer."""
    table = np.asarray(parts["q_groups"], dtype=np.int64).reshape(-1, 2)
    words = np.diff(np.append(table[:, 1], len(parts["q_weight"])))
    rows = [int(n) * 32 // int(bits) for (bits, _), n in zip(table, words, strict=True)]
    rows[-1] = len(parts["q_invperm"]) - sum(rows[:-1])
    return [(int(bits), n) for (bits, _), n in zip(table, rows, strict=True)]


def scales(parts: dict[str, Any]) -> npt.NDArray[np.float16]:
    """The scale of each group and output, float16 [G, N]."""
    words = np.asarray(parts["q_scale"]).view(np.uint32)
    code = (
        ((words[:, :, None] >> (4 * np.arange(8, dtype=np.uint32))) & 15)
        .reshape(len(words), -1)
        .astype(np.int32)
    )
    largest = np.asarray(parts["q_scale_max"]).astype(np.float16) * np.float16(1 / 256)
    values: npt.NDArray[np.float16] = np.square(code + 1).astype(np.float16) * largest[:, None]
    return values


def codes(words: npt.NDArray[np.uint32], bits: int, rows: int) -> npt.NDArray[np.int32]:
    """Unpack [words, N] into [rows, N] codes of ``bits`` bits."""
    stream = (words[:, None, :] >> np.arange(32, dtype=np.uint32)[None, :, None]) & 1
    fields = (
        stream.reshape(-1, words.shape[1])[: rows * bits].reshape(rows, bits, -1).astype(np.int32)
    )
    values: npt.NDArray[np.int32] = (fields << np.arange(bits, dtype=np.int32)[None, :, None]).sum(
        axis=1, dtype=np.int32
    )
    return values


def dequantize(parts: dict[str, Any], outputs: int = 0) -> Floats:
    """The weight [out, in] as float32 of one layer's arrays (:data:`PARTS`); ``outputs`` cuts the
    padding off.
    """
    packed, scale, at, row = np.asarray(parts["q_weight"]).view(np.uint32), scales(parts), 0, 0
    values = np.empty((len(parts["q_invperm"]), packed.shape[1]), dtype=np.float16)
    for i, (bits, n) in enumerate(groups(parts)):
        words = -(-n * bits // 32)
        values[row : row + n] = (
            codes(packed[at : at + words], bits, n) - (1 << (bits - 1))
        ).astype(np.float16) * scale[i]
        at, row = at + words, row + n
    weight = values[np.asarray(parts["q_invperm"])].T
    return np.ascontiguousarray(weight[: outputs or None], dtype=np.float32)


def layer(tensors: Any, name: str, outputs: int = 0) -> Floats:
    """The weight [out, in] of a layer by its name in the unquantized model; ``tensors`` is a
    :class:`~autoquant.formats.tensors.Tensors`.
    """
    if f"{name}.q_weight" in tensors:
        return dequantize({part: tensors.get(f"{name}.{part}") for part in PARTS}, outputs)
    return np.concatenate([layer(tensors, one) for one in parts_of(name)])


def parts_of(name: str) -> list[str]:
    """The names under which a layer is stored: its own, or those of the parts of a fused matrix."""
    head, _, last = name.rpartition(".")
    return [f"{head}.{part}" for part in FUSED[last]] if last in FUSED else [name]
