"""Reading EXL3 files with NumPy alone.

A layer with ``in`` inputs and ``out`` outputs, both padded with zeros to multiples of 128, at K
bits per weight (1 to 8, or 1.5, 2.5 or 3.5) is stored as ``trellis`` int16 [in/16, out/16, 16·K],
``suh`` float16 [in] and ``svh`` float16 [out]; a scalar ``mul1`` or ``mcg`` beside them says by its
presence which codebook is used (without either the first one, "3INST"); an optional ``bias``.

Each tile of 16×16 weights is a ring of 256·K bits: the int16 words in pairs, the second of a pair
first, each from its highest bit. Weight t belongs to the 16 bits that end K·(t+1) bits into the
ring (rounded down; so where K is a half, every second step is a bit longer), and its value is that
number's in the codebook: a hash that looks normally distributed. ``ORDER`` is where in the tile it
lies. With H the Hadamard matrix of 128 over √128, in blocks along the diagonal:
``W[in, out] = diag(suh) · H · tiles · H · diag(svh)``.
Source: https://github.com/turboderp-org/exllamav3 (exllamav3_ext/quant/codebook.cuh, exl3_dq.cuh,
    modules/quant/exl3.py), exllamav3 1.6.5; the idea: QTIP, https://arxiv.org/abs/2406.11235.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from autoquant.formats.exl2 import parts_of

Floats = npt.NDArray[np.float32]
PARTS = ("trellis", "suh", "svh")
CODEBOOKS = ("mul1", "mcg")  # the marks of those that have one
BLOCK = 128  # the Hadamard matrix's size, to which inputs and outputs are padded
TILE = 16
ROWS = 64  # rows of tiles at a time: unpacked codes take 8 bytes a weight


def _order() -> npt.NDArray[np.intp]:
    """Where in a tile (row by row) each weight of the ring lies: as tensor cores hold it."""
    lane = np.arange(32)[:, None]
    rows = 2 * (lane % 4) + np.array([0, 1, 8, 9, 0, 1, 8, 9])
    columns = lane // 4 + np.array([0, 0, 0, 0, 8, 8, 8, 8])
    order: npt.NDArray[np.intp] = (TILE * rows + columns).ravel()
    return order


ORDER = _order()


@functools.cache
def codebook(mark: str) -> Floats:
    """The values of all 65536 states, which the kernels compute in float16; ``mark`` is ``mul1``,
    ``mcg`` or empty.
    """
    values: Floats
    state = np.arange(1 << 16, dtype=np.uint32)
    if mark == "mul1":
        digits = (state * np.uint32(0x83DCD12D)).view(np.uint8).reshape(-1, 4)
        step, start = np.array([0x1EEE, 0xC931], dtype=np.uint16).view(np.float16).astype(float)
        total = 1024.0 + digits.sum(axis=1)
        values = (total * step + start).astype(np.float16).astype(np.float32)
        return values
    product = (
        state * np.uint32(0xCBAC1FED)
        if mark == "mcg"
        else state * np.uint32(89226354) + np.uint32(64248484)
    )
    halves = ((product & np.uint32(0x8FFF8FFF)) ^ np.uint32(0x3B603B60)).view(np.float16)
    values = (halves[::2] + halves[1::2]).astype(np.float32)
    return values


def bits(trellis: Any) -> float:
    """Bits per weight of a layer's codes, scales left out: K."""
    return float(trellis.shape[-1]) / TILE


def states(trellis: npt.NDArray[np.int16]) -> npt.NDArray[np.uint16]:
    """The 256 states of each tile: [..., 16·K] to [..., 256]."""
    words = np.ascontiguousarray(trellis).view(np.uint32)
    count = words.shape[-1]
    ends = np.floor(np.arange(1, TILE * TILE + 1) * bits(trellis)).astype(np.int64)
    first = (ends - 16) % (32 * count)
    # a state lies in two neighbouring words of 32 bits, the last one's neighbour being the first
    after = words[..., (first // 32 + 1) % count].astype(np.uint64)
    both = (words[..., first // 32].astype(np.uint64) << np.uint64(32)) | after
    shifts = (48 - first % 32).astype(np.uint64)
    made: npt.NDArray[np.uint16] = (both >> shifts).astype(np.uint16)
    return made


@functools.cache
def hadamard() -> Floats:
    """The Hadamard matrix of 128 by Sylvester's construction, divided by √128."""
    made: Any = np.ones((1, 1), dtype=np.float32)
    while len(made) < BLOCK:
        made = np.block([[made, made], [made, -made]])
    turn: Floats = (made / np.sqrt(np.float32(BLOCK))).astype(np.float32)
    return turn


def dequantize(parts: dict[str, Any], outputs: int = 0, inputs: int = 0) -> Floats:
    """The weight [out, in] as float32 of one layer's arrays (:data:`PARTS`, and the mark of its
    codebook); ``outputs`` and ``inputs`` cut the padding off.
    """
    trellis = np.asarray(parts["trellis"])
    values = codebook(next((mark for mark in CODEBOOKS if mark in parts), ""))
    rows, columns = trellis.shape[:2]
    weight: Any = np.empty((rows * TILE, columns * TILE), dtype=np.float32)
    for first in range(0, rows, ROWS):
        ring = values[states(trellis[first : first + ROWS])]
        tiles = np.empty_like(ring)
        tiles[..., ORDER] = ring
        weight[first * TILE : (first + ROWS) * TILE] = (
            tiles.reshape(-1, columns, TILE, TILE).swapaxes(1, 2).reshape(-1, columns * TILE)
        )
    turn = hadamard()
    scale_in, scale_out = (np.asarray(parts[name], dtype=np.float32) for name in ("suh", "svh"))
    weight = (turn @ weight.reshape(-1, BLOCK, weight.shape[1])).reshape(weight.shape)
    weight = (weight * scale_in[:, None]).reshape(len(weight), -1, BLOCK) @ turn
    weight = weight.reshape(len(scale_in), -1) * scale_out
    return np.ascontiguousarray(weight[: inputs or None, : outputs or None].T)


def layer(tensors: Any, name: str, outputs: int = 0, inputs: int = 0) -> Floats:
    """The weight [out, in] of a layer by its name in the unquantized model; ``tensors`` is a
    :class:`~autoquant.formats.tensors.Tensors`.
    """
    if f"{name}.trellis" not in tensors:  # one matrix there, several here
        return np.concatenate([layer(tensors, one, 0, inputs) for one in parts_of(name)])
    here = [part for part in (*PARTS, *CODEBOOKS) if f"{name}.{part}" in tensors]
    return dequantize({part: tensors.get(f"{name}.{part}") for part in here}, outputs, inputs)


def stored(tensors: Any, name: str) -> list[str]:
    """The names of the tensors that hold a layer: of its parts, where it is stored in parts."""
    return [
        f"{one}.{part}"
        for one in ([name] if f"{name}.trellis" in tensors else parts_of(name))
        for part in (*PARTS, *CODEBOOKS)
        if f"{one}.{part}" in tensors
    ]
