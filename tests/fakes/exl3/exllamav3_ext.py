"""A stand-in for exllamav3's compiled extension, in torch on the CPU: the functions that its
converter calls for dense models.

Each does what the kernel of that name does to its arguments. ``quantize_tiles`` alone is another
algorithm: the extension finds the best path through the trellis by Viterbi over 65536 states, this
one takes the single nearest code at each step, so its errors are several times those of the real
converter at the same bits. The codes that it writes are as valid.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from exl3_blocks import (  # noqa: F401 (part of the extension)
    count_inf_nan,
    gelu_mul,
    relu2_mul,
    rms_norm,
    rms_norm_res_in,
    rope,
    silu_mul,
    softcap,
)

Tensor = torch.Tensor
TILE = 256  # weights, 16 inputs by 16 outputs


# --- reading --------------------------------------------------------------------------------------


def stloader_open_file(filename: str) -> Any:
    """A file to be read from."""
    return open(filename, "rb")


def stloader_close_file(file: Any) -> None:
    """Close it."""
    file.close()


def stloader_read(file: Any, offset: int, size: int, target: Tensor) -> None:
    """Bytes of a file into a tensor."""
    file.seek(offset)
    raw = bytearray(file.read(size))
    if size:
        target.copy_(torch.frombuffer(raw, dtype=target.dtype).view(target.shape))


def stloader_deferred_batch(files: list[Any], rows: Tensor, chunk: int) -> None:
    """Bytes of many tensors to where they belong: columns are the file, the place in it, how many
    bytes, the address, its bytes, and flags (1: bfloat16 becomes float16, 2: float32 does).
    """
    import ctypes

    for file, offset, size, address, _, flags, _ in rows.tolist():
        files[file].seek(offset)
        raw = files[file].read(size)
        if flags & 1 and size:
            half = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).half()
            raw = half.numpy().tobytes()
        # float32 lies in a tensor of its own, which is converted when it is copied
        ctypes.memmove(address, raw, len(raw))


# --- the trellis ----------------------------------------------------------------------------------


@functools.cache
def codebook(mcg: bool, mul1: bool) -> Tensor:
    """The value of each of the 65536 states, float32 of halves."""
    state = torch.arange(1 << 16, dtype=torch.int64)
    if mul1:
        product = (state * 0x83DCD12D) & 0xFFFFFFFF
        total = sum((product >> shift) & 0xFF for shift in (0, 8, 16, 24))
        step, start = (
            torch.tensor(bits, dtype=torch.int16).view(torch.half).double()
            for bits in (0x1EEE, 0xC931 - (1 << 16))
        )
        return ((1024 + total) * step + start).half().float()
    product = state * 0xCBAC1FED if mcg else state * 89226354 + 64248484
    bits = (product & 0x8FFF8FFF) ^ 0x3B603B60
    low, high = ((bits >> shift) & 0xFFFF for shift in (0, 16))
    return sum(
        one.to(torch.int32).where(one < 1 << 15, one.to(torch.int32) - (1 << 16))
        .to(torch.int16)
        .view(torch.half)
        .float()
        for one in (low, high)
    ).half().float()  # fmt: skip


def widths(k: float) -> list[int]:
    """How many bits each of a tile's 256 codes has: at a half, every second has one more."""
    return [int(k) + (i % 2 if k % 1 else 0) for i in range(TILE)]


def _search(tiles: Any, k: float, values: Any) -> Any:
    """States [tiles, 256] that make a ring: the last 16 bits are what comes before the first."""
    bits = widths(k)
    total = sum(bits)
    state = np.zeros(len(tiles), dtype=np.int64)
    # where the ring closes is found by a run-up over the tile's end
    for i in range(TILE - 20, TILE):
        state = _step(state, tiles[:, i], bits[i], values)
    closing, made, end = state, np.empty(tiles.shape, dtype=np.int64), 0
    for i in range(tiles.shape[1]):
        end += bits[i]
        # the bits of this code that are among the last 16
        fixed = max(0, min(bits[i], end - (total - 16)))
        state = _step(state, tiles[:, i], bits[i], values, fixed, closing >> (total - end))
        made[:, i] = state
    return made


def _step(
    state: Any, wanted: Any, bits: int, values: Any, fixed: int = 0, given: Any = None
) -> Any:
    """The next state: the nearest value of those whose last ``fixed`` bits are the given ones."""
    code = np.arange(1 << (bits - fixed)) << fixed
    after = ((state << bits) & 0xFFFF)[:, None] | code
    if fixed:
        after |= (given & ((1 << fixed) - 1))[:, None]
    best = np.abs(values[after] - wanted[:, None]).argmin(1)
    return after[np.arange(len(after)), best]


def quantize_tiles_scratch(*_: Any) -> tuple[bool, int]:
    """How large its buffers are to be: as small as may be."""
    return True, 1


def _quantize(tiles: Tensor, made: Tensor, codes: Tensor, k: float, mcg: bool, mul1: bool) -> None:
    values = codebook(mcg, mul1)
    states = torch.from_numpy(_search(tiles.numpy(), k, values.numpy()))
    made.copy_(values[states])
    codes.copy_(states.where(states < 1 << 15, states - (1 << 16)).short())


def quantize_tiles(
    tiles: Tensor, made: Tensor, codes: Tensor, _c: Any, _e: Any, k: int, mcg: bool, mul1: bool
) -> None:
    """Values and states of tiles [n, 256]."""
    _quantize(tiles, made, codes, k, mcg, mul1)


def quantize_tiles_frac(
    tiles: Tensor, made: Tensor, codes: Tensor, _c: Any, _e: Any, k: int, mask: int
) -> None:
    """The same with half a bit more."""
    assert mask == 0xAAAA
    _quantize(tiles, made, codes, k + 0.5, False, True)


def _pack(packed: Tensor, codes: Tensor, k: float) -> None:
    """A stream of bits, the highest first, in 32-bit words."""
    columns = []
    for i, bits in enumerate(widths(k)):
        columns += [(codes[..., i].long() >> (bits - 1 - b)) & 1 for b in range(bits)]
    stream = torch.stack(columns, -1).reshape(*codes.shape[:-1], -1, 2, 16)
    halves = (stream << torch.arange(15, -1, -1)).sum(-1).flip(-1).reshape(packed.shape)
    packed.copy_(halves.where(halves < 1 << 15, halves - (1 << 16)).short())


def pack_trellis(packed: Tensor, codes: Tensor, k: int) -> None:
    """States [in / 16, out / 16, 256] to int16 [in / 16, out / 16, 16 k]."""
    _pack(packed, codes, k)


def pack_trellis_frac(packed: Tensor, codes: Tensor, k: int, mask: int) -> None:
    """The same with half a bit more."""
    _pack(packed, codes, k + 0.5)


def _states(packed: Tensor, k: float) -> Tensor:
    halves = (packed.long() & 0xFFFF).reshape(*packed.shape[:-1], -1, 2).flip(-1)
    halves = halves.reshape(packed.shape)
    stream = ((halves[..., None] >> torch.arange(15, -1, -1)) & 1).flatten(-2)
    ends = torch.cumsum(torch.tensor(widths(k)), 0)
    places = (ends[:, None] - 16 + torch.arange(16)) % stream.shape[-1]
    made: Tensor = (stream[..., places] << torch.arange(15, -1, -1)).sum(-1)
    return made


@functools.cache
def _order() -> Tensor:
    """Where in a tile (row by row) each code's weight is: the tensor cores' order."""
    made = []
    for t in range(32):
        rows, column = [2 * (t % 4) + one for one in (0, 1, 8, 9)], t // 4
        made += [16 * row + column for row in rows] + [16 * row + column + 8 for row in rows]
    return torch.tensor(made)


def reconstruct(made: Tensor, packed: Tensor, k: float, mcg: bool, mul1: bool) -> None:
    """The weight [in, out] between the two rotations; kept beside the codes, for a layer is asked
    for it again with each sample.
    """
    kept = getattr(packed, "weight_of_stand_in", None)
    if kept is None:
        kept = packed.weight_of_stand_in = _weight(packed, k, mcg, mul1)  # type: ignore[attr-defined]
    made.copy_(kept)


def _weight(packed: Tensor, k: float, mcg: bool, mul1: bool) -> Tensor:
    values = codebook(mcg, mul1)[_states(packed, k)]
    tiles = torch.empty_like(values)
    tiles[..., _order()] = values
    rows, columns = packed.shape[:2]
    return tiles.view(rows, columns, 16, 16).permute(0, 2, 1, 3).reshape(16 * rows, 16 * columns)


def reconstruct_slice(
    made: Tensor, packed: Tensor, k: float, mcg: bool, mul1: bool, first: int
) -> None:
    """Some of its outputs."""
    tiles = packed[:, first // 16 : (first + made.shape[1]) // 16]
    reconstruct(made, tiles, k, mcg, mul1)


@functools.cache
def _hadamard() -> Tensor:
    made = torch.ones(1, 1)
    while len(made) < 128:
        made = torch.cat((torch.cat((made, made), 1), torch.cat((made, -made), 1)))
    return made / math.sqrt(128)


def had_r_128(
    x: Tensor, made: Tensor, before: Tensor | None, after: Tensor | None, scale: float
) -> None:
    """Each 128 inputs rotated, with factors for each before and after."""
    value = x.float() if before is None else x.float() * before.float()
    value = (value.reshape(-1, 128) @ _hadamard()).reshape(x.shape) * scale
    made.copy_(value if after is None else value * after.float())


def reconstruct_had_slice(
    made: Tensor,
    packed: Tensor,
    suh: Tensor,
    svh: Tensor,
    k: float,
    mcg: bool,
    mul1: bool,
    first: int,
) -> None:
    """The weight [in, out] with both rotations."""
    inner = torch.empty(made.shape)
    reconstruct_slice(inner, packed, k, mcg, mul1, first)
    had_r_128(inner, inner, None, svh[: made.shape[1]], 1.0)
    turned = inner.T.contiguous()
    had_r_128(turned, turned, None, suh, 1.0)
    made.copy_(turned.T)


# --- running a model ------------------------------------------------------------------------------


def hgemm(a: Tensor, b: Tensor, made: Tensor) -> None:
    """A product of matrices."""
    made.copy_((a.float() @ b.float()).view(made.shape))


hgemm_recon = hgemm


class BC_LinearFP16:
    """A layer's weight, as the C++ side keeps it."""

    def __init__(self, *_: Any) -> None:
        pass


class BC_LinearEXL3:
    """A quantized layer that multiplies few rows at a time."""

    def __init__(
        self,
        trellis: Tensor,
        suh: Tensor,
        svh: Tensor,
        k: float,
        bias: Tensor | None,
        mcg: bool,
        mul1: bool,
        _: Any,
    ) -> None:
        self.parts = (trellis, suh, svh, k, mcg, mul1, 0)
        self.bias = bias
        self.weight: Tensor | None = None

    def run_alloc(self, x: Tensor, outputs: int, float32: bool) -> Tensor:
        """A product."""
        if self.weight is None:
            self.weight = torch.empty(len(self.parts[1]), len(self.parts[2]))
            reconstruct_had_slice(self.weight, *self.parts)
        made = x.float() @ self.weight + (0 if self.bias is None else self.bias.float())
        return made if float32 else made.half()


class BC_GatedMLP:
    """A graph for single tokens, which the converter does not run."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


BC_MLP = BC_Attention = BC_GatedMLP


def exl3_gemv_int8_max_k(_: Any) -> int:
    """As on most cards."""
    return 5


def __getattr__(name: str) -> Any:
    """A kernel that dense models do not need: only its name is looked at."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name.startswith("HAS_"):
        return False

    def missing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"the stand-in for exllamav3's extension has no {name}")

    return missing
