"""The kernels of a decoder's blocks beside its matrices, in torch on the CPU: part of the stand-in
for exllamav3's extension.
"""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    made: Tensor,
    eps: float,
    bias: float,
    scale: float,
    span_heads: bool,
    add: bool,
    groups: int = 1,
) -> None:
    """A norm; with ``add`` onto what is there."""
    value = x.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + eps) * scale
    value = value if weight is None else value * (weight.float() + bias)
    made.copy_(made.float() + value if add else value)


def rms_norm_res_in(
    x: Tensor,
    weight: Tensor | None,
    made: Tensor,
    residual: Tensor,
    eps: float,
    bias: float,
    scale: float,
) -> None:
    """Add to the residual, then a norm of that."""
    residual.copy_(residual.float() + x.float())
    rms_norm(residual, weight, made, eps, bias, scale, False, False)


def rope(
    q: Tensor,
    out_q: Tensor,
    k: Tensor | None,
    out_k: Tensor | None,
    frequencies: Tensor,
    position: int,
    positions: Any,
    position_ids: Any,
    style: int,
    factor: float,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    bias: float,
    *_: Any,
) -> None:
    """Rotary embeddings [batch, tokens, heads, width], after a norm of each head, if any."""
    assert positions is None
    assert position_ids is None
    half = frequencies.shape[-1]
    angle = (position + torch.arange(q.shape[1]))[:, None].float() * frequencies
    cos, sin = (angle.cos() * factor)[:, None], (angle.sin() * factor)[:, None]
    for x, made, weight in ((q, out_q, q_norm), (k, out_k, k_norm)):
        if x is None or made is None:
            continue
        value = x.float()
        if weight is not None:
            value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + eps)
            value = (value * (weight.float() + bias)).half().float()
        value = value.clone()
        # 1: pairs side by side (GPT-J); else the two halves (NeoX)
        first, second = (
            (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
            if style == 1
            else (slice(0, half), slice(half, 2 * half))
        )
        a, b = value[..., first].clone(), value[..., second].clone()
        value[..., first], value[..., second] = a * cos - b * sin, b * cos + a * sin
        made.copy_(value)


def silu_mul(gate: Tensor, up: Tensor, made: Tensor, limit: float = 0.0) -> None:
    """The usual gate."""
    made.copy_(torch.nn.functional.silu(gate.float()) * up.float())


def gelu_mul(gate: Tensor, up: Tensor, made: Tensor, limit: float = 0.0) -> None:
    """Gemma's."""
    made.copy_(torch.nn.functional.gelu(gate.float(), approximate="tanh") * up.float())


def relu2_mul(gate: Tensor, up: Tensor, made: Tensor, limit: float = 0.0) -> None:
    """Squared ReLU."""
    made.copy_(torch.relu(gate.float()).square() * up.float())


def softcap(x: Tensor, made: Tensor, most: float) -> None:
    """Logits held below a bound."""
    made.copy_(torch.tanh(x.float() / most) * most)


def count_inf_nan(x: Tensor, counts: Tensor) -> None:
    """Add what is not finite to two counts."""
    counts += torch.stack((torch.isinf(x).sum(), torch.isnan(x).sum()))
