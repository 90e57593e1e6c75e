"""A stand-in for exllamav2's compiled extension, in torch on the CPU: the functions that its
converter calls for dense models.

Each does what the kernel of that name does to its arguments, with the same rounding where codes and
scales depend on it. ``sim_anneal`` alone is another algorithm: the extension searches at random,
this one finds the best sum of errors within the budget by bisection on a price for bits, so that
tests give the same files each time.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch

Tensor = torch.Tensor
_matrices: dict[int, tuple[Tensor, Tensor | None]] = {}
_handles = itertools.count(1)


def _none(tensor: Tensor | None) -> bool:
    """exllamav2 passes a tensor on the meta device for "none"."""
    return tensor is None or tensor.device.type == "meta"


# --- reading --------------------------------------------------------------------------------------


def stloader_read(filename: str, offset: int, size: int, target: Tensor) -> None:
    """Bytes of a file into a tensor."""
    with open(filename, "rb") as file:
        file.seek(offset)
        raw = bytearray(file.read(size))
    if len(raw) != size:
        raise RuntimeError(f"short read: {filename}")
    if size:
        target.copy_(torch.frombuffer(raw, dtype=target.dtype).view(target.shape))


def make_group_map(q_groups: Tensor, num_qrows: int) -> Tensor:
    """For each row its group and how many rows of the group are left, interleaved."""
    bits, first = q_groups.long().view(-1, 2).unbind(1)
    rows = torch.diff(first, append=torch.tensor([num_qrows])) * 32 // bits
    group = torch.repeat_interleave(torch.arange(len(bits)), rows)
    return (
        torch.stack((group, torch.cumsum(rows, 0)[group] - torch.arange(len(group))), 1)
        .flatten()
        .short()
    )


# --- quantizing -----------------------------------------------------------------------------------


def quantize_err(
    values: Tensor,
    errors: Tensor,
    scale: Tensor,
    zero: float,
    largest: float,
    norm: float,
    least: float,
    most: float,
    grid: int,
) -> None:
    """The summed error of rounding at each of ``grid`` + 1 factors of the scale."""
    v, s, sums = values.numpy(), scale.numpy(), errors.numpy()
    for i in range(grid + 1):
        share = i / grid
        tried = s * np.float32(least * (1 - share) + most * share)
        off = np.abs(np.clip(np.rint(v / tried), -zero, largest - zero) * tried - v)
        sums[i, 0] += (off * off * off * np.sqrt(off) if norm == 3.5 else off**norm).sum()


def _rounded(values: Tensor, scale: Tensor, zero: float, largest: float) -> tuple[Tensor, Tensor]:
    code = torch.clamp(torch.round(values / scale) + zero, 0, largest)
    return code, ((code - zero).half() * scale.half()).float()


def quantize(
    values: Tensor, out: Tensor, scale: Tensor, codes: Tensor, zero: float, largest: float
) -> None:
    """Round to the nearest code."""
    code, back = _rounded(values, scale, zero, largest)
    out.copy_(back)
    if not _none(codes):
        codes.copy_(code.short())


def quantize_range(
    out: Tensor,
    scale: Tensor,
    codes: Tensor,
    zero: float,
    largest: float,
    inverse: Tensor,
    weights: Tensor,
    error: Tensor,
    start: int,
    end: int,
) -> None:
    """GPTQ over some rows: round each, and take its error out of the rows that follow. In NumPy,
    whose small steps take less time; the arrays are the tensors' own memory.
    """
    w, e, back, by, s = (
        one.detach().numpy()
        for one in (
            weights,
            error,
            out,
            inverse,
            scale.reshape(-1).expand(weights.shape[1]).contiguous(),
        )
    )
    half = s.astype(np.float16)
    for row in range(start, end):
        code = np.clip(np.rint(w[row] / s) + np.float32(zero), 0, largest)
        back[row] = (code - zero).astype(np.float16) * half
        if not _none(codes):
            codes[row] = torch.from_numpy(code.astype(np.int16))
        e[row] = (w[row] - back[row]) / by[row, row]
        w[row:end] -= by[row, row:end, None] * e[row]
    if end < len(weights):
        weights[end:].addmm_(inverse[start:end, end:].T, error[start:end], alpha=-1.0)


def quantize_range_inplace(
    weights: Tensor, scale: Tensor, codes: Tensor, zero: float, largest: float, start: int, end: int
) -> None:
    """Round some rows where they are."""
    code, back = _rounded(weights[start:end], scale, zero, largest)
    if not _none(codes):
        codes[start:end] = code.short()
    weights[start:end] = back


def _words(values: Tensor) -> Tensor:
    """Whole numbers of 32 bits without a sign as int32 of the same bits."""
    return torch.where(values >= 2**31, values - 2**32, values).to(torch.int32)


def pack_rows_4(values: Tensor, out: Tensor) -> None:
    """Eight 4-bit scales, stored less one, in a word."""
    code = ((values.to(torch.int64) - 1) & 15).view(len(values), -1, 8)
    out.copy_(_words((code << (4 * torch.arange(8))).sum(-1)))


def pack_columns(values: Tensor, out: Tensor, bits: int) -> None:
    """A little-endian stream of codes down each column."""
    rows, columns = values.shape
    if len(out) != rows * bits // 32:
        raise RuntimeError("the output has another height than codes of this width need")
    stream = (values.to(torch.int64).T.contiguous().unsqueeze(-1) >> torch.arange(bits)) & 1
    stream = stream.reshape(columns, -1)[:, : 32 * len(out)].reshape(columns, len(out), 32)
    out.copy_(_words((stream << torch.arange(32)).sum(-1)).T)


def sim_anneal(
    slots: list[list[tuple[int, float]]],
    most: int,
    hot: float,
    cooling: float,
    cold: float,
    rounds: int,
    norm: float,
) -> Any:
    """For each slot one of its (cost, error) pairs, so that the costs stay within ``most`` and the
    errors' sum is least.
    """

    def at(price: float) -> tuple[list[int], int]:
        chosen = [
            min(
                range(len(slot)),
                key=lambda k, slot=slot: (slot[k][1] ** norm + price * slot[k][0], slot[k][0]),
            )
            for slot in slots
        ]  # type: ignore[misc]
        return chosen, sum(slot[k][0] for slot, k in zip(slots, chosen, strict=True))

    low, high = 0.0, 1e6
    best = [min(range(len(slot)), key=lambda k, slot=slot: slot[k][0]) for slot in slots]  # type: ignore[misc]
    for _ in range(200):
        price = math.sqrt(max(low, 1e-30) * high) if high > 1e-25 else high / 2
        chosen, cost = at(price)
        if cost <= most:
            best, high = chosen, price
        else:
            low = price
    picked = [slot[k] for slot, k in zip(slots, best, strict=True)]
    return (
        picked,
        best,
        float(sum(error**norm for _, error in picked)),
        sum(cost for cost, _ in picked),
        max(error for _, error in picked),
    )


# --- quantized matrices ---------------------------------------------------------------------------


def make_q_matrix(
    q_weight: Tensor,
    q_perm: Tensor,
    q_invperm: Tensor,
    q_scale: Tensor,
    q_scale_max: Tensor,
    q_groups: Tensor,
    q_group_map: Tensor,
    gptq_qzeros: Tensor,
    gptq_scales: Tensor,
    gptq_g_idx: Tensor,
    bias: Tensor,
    temp_dq: Tensor,
    max_dq_rows: int,
) -> int:
    """Dequantize once, and keep it under a number."""
    if _none(q_scale):
        raise NotImplementedError("matrices of GPTQ are not emulated")
    table = q_groups.tolist()
    code = (q_scale.to(torch.int64).unsqueeze(-1) >> (4 * torch.arange(8))) & 15
    code = code.reshape(len(q_scale), -1) + 1
    scale = (code * code).half() * q_scale_max.view(-1, 1)  # which exllamav2 has divided by 256
    made, row = torch.empty(len(q_group_map) // 2, q_weight.shape[1], dtype=torch.half), 0
    for i in range(len(table) // 2):
        bits, first = table[2 * i], table[2 * i + 1]
        after = table[2 * i + 3] if 2 * i + 3 < len(table) else len(q_weight)
        rows = (after - first) * 32 // bits
        words = (q_weight[first:after].to(torch.int64) & 0xFFFFFFFF).unsqueeze(1)
        stream = ((words >> torch.arange(32).view(1, 32, 1)) & 1).reshape(-1, q_weight.shape[1])[
            : rows * bits
        ]
        codes = (stream.reshape(rows, bits, -1) << torch.arange(bits).view(1, bits, 1)).sum(1)
        made[row : row + rows] = (codes - (1 << (bits - 1))).half() * scale[i]
        row += rows
    if not _none(q_perm):
        ordered = torch.empty_like(made)
        ordered[q_perm.to(torch.int64) & 0xFFFF] = made
        made = ordered
    handle = next(_handles)
    _matrices[handle] = made, None if _none(bias) else bias
    return handle


def free_q_matrix(handle: int) -> None:
    """Forget one."""
    _matrices.pop(handle, None)


def reconstruct(handle: int, out: Tensor) -> None:
    """The matrix itself."""
    out.copy_(_matrices[handle][0])


def gemm_half_q_half(inputs: Tensor, handle: int, out: Tensor, force_cuda: bool = False) -> None:
    """inputs · matrix + bias."""
    matrix, bias = _matrices[handle]
    made = inputs.float() @ matrix.float()
    out.copy_((made if bias is None else made + bias.float()).half())


# --- what lies between the matrices ---------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, out: Tensor, epsilon: float) -> None:
    """RMS norm."""
    wide = x.float()
    out.copy_(
        (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon) * weight.float()).to(
            out.dtype
        )
    )


def rms_norm_(x: Tensor, weight: Tensor, epsilon: float) -> None:
    """RMS norm in place."""
    rms_norm(x, weight, x, epsilon)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, epsilon: float) -> None:
    """Layer norm; the weights may differ from head to head."""
    wide = x.float()
    wide = (
        (wide - wide.mean(-1, keepdim=True))
        * torch.rsqrt(wide.var(-1, unbiased=False, keepdim=True) + epsilon)
        * weight.float()
    )
    out.copy_((wide if _none(bias) else wide + bias.float()).to(out.dtype))


def head_norm(
    x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, epsilon: float, rms: bool
) -> None:
    """A norm of each head."""
    if rms:
        rms_norm(x, weight, out, epsilon)
    else:
        layer_norm(x, weight, bias, out, epsilon)


def softcap_(x: Tensor, cap: float) -> None:
    """cap · tanh(x / cap)."""
    x.copy_((cap * torch.tanh(x.float() / cap)).to(x.dtype))


def rope_(
    x: Tensor,
    sin: Tensor,
    cos: Tensor,
    past: int,
    heads: int,
    width: int,
    offsets: Tensor,
    neox: bool,
) -> None:
    """Rotary embeddings in place."""
    if not _none(offsets):
        raise NotImplementedError("offsets are not emulated")
    view = x.view(len(x), -1, heads, width)
    n, turned = view.shape[1], cos.shape[-1]
    s = sin.view(-1, turned)[past : past + n].view(1, n, 1, turned).float()
    c = cos.view(-1, turned)[past : past + n].view(1, n, 1, turned).float()
    part = view[..., :turned].float()
    half = turned // 2
    swapped = (
        torch.cat((-part[..., half:], part[..., :half]), -1)
        if neox
        else torch.stack((-part[..., 1::2], part[..., 0::2]), -1).flatten(-2)
    )
    view[..., :turned] = (part * c + swapped * s).to(x.dtype)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"exllamav2_ext.{name} is not emulated on the CPU")

    return missing
