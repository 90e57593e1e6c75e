"""Rounding of a layer's inputs, for the formats that quantize activations too: what a layer's
weights then meet is what they meet where such files run.

Each function takes inputs [..., in] and gives them back rounded to the codes and scales of a
format, as numbers of the same type. A product of these with dequantized weights is the product of
the codes times the scales, so nothing else is needed to measure such a model without its kernels.
Runs in workers.
Sources: https://github.com/vllm-project/compressed-tensors (quantization/utils/helpers.py),
    https://github.com/bitsandbytes-foundation/bitsandbytes (backends/default/ops.py).
"""

from __future__ import annotations

from typing import Any

# what the largest input of a token becomes in compressed-tensors (vLLM's own kernel takes 127 of
# int8); 448 is the largest number of E4M3
INT8, FP8 = 127.5, 448.0
TINY = 1e-12


def int8_static(inputs: Any, scale: Any) -> Any:
    """Codes of 8 bits with one scale for all inputs, found by calibration; larger inputs are cut
    off.
    """
    return (inputs / scale).round().clamp(-128, 127) * scale


def int8_dynamic(inputs: Any) -> Any:
    """Codes of 8 bits with a scale for each token, from its largest input."""
    return int8_static(inputs, inputs.abs().amax(-1, keepdim=True).clamp(min=TINY) / INT8)


def fp8_dynamic(inputs: Any) -> Any:
    """Floating-point numbers of 8 bits (E4M3: 4 of exponent, 3 of fraction) with a scale for each
    token, from its largest input.
    """
    import torch

    scale = inputs.abs().amax(-1, keepdim=True).clamp(min=TINY) / FP8
    return (inputs / scale).clamp(-FP8, FP8).to(torch.float8_e4m3fn).to(inputs.dtype) * scale


def llm_int8(inputs: Any, threshold: float) -> Any:
    """LLM.int8() (Dettmers et al. 2022): inputs of which a token has a value of ``threshold`` or
    more keep 16 bits for all tokens, the others get codes of 8 bits with a scale for each token,
    from its largest value below the threshold. 0 keeps none.
    """
    import torch

    rows = inputs.reshape(-1, inputs.shape[-1])
    half = rows.to(torch.float16).float()
    large = half.abs() >= threshold if threshold > 0 else torch.zeros_like(half, dtype=torch.bool)
    scale = half.masked_fill(large, 0).abs().amax(-1, keepdim=True).clamp(min=TINY) / 127
    rounded = torch.where(large.any(0), rows, ((half / scale).round() * scale).to(rows.dtype))
    return rounded.reshape(inputs.shape)
