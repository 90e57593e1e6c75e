"""HQQ by its own library, saved as safetensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autoquant.backends.tensorwise import Division, begin, device, rewrite
from autoquant.formats import hqq as hqq_format
from autoquant.runtime.worker import Report

# weights; hqq holds some ten float32 arrays of as many, which then stay in a processor's cache: a
# matrix of 11008 × 4096 takes 3 s instead of 20 on two cores, at the same error to six digits
AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 24}


def in_parts(optimize: Callable[..., Any]) -> Callable[..., Any]:
    """hqq's search for zero points, done for some groups at a time: each has its own, so that
    nothing depends on the others but where the search ends (when the error of all of them grows).
    """

    def optimized(tensor: Any, scale: Any, zero: Any, *, axis: int, **more: Any) -> Any:
        import torch

        across, parts = 1 - axis, max(1, -(-tensor.numel() // AT_ONCE[tensor.device.type]))
        pieces = zip(*(one.chunk(parts, across) for one in (tensor, scale, zero)), strict=True)
        made = [
            optimize(tensor=weights, scale=steps, zero=zeros, axis=axis, **more)
            for weights, steps, zeros in pieces
        ]
        return tuple(torch.cat(column, across) for column in zip(*made, strict=True))

    return optimized


def quantize(
    model: str, target: str, *, bits: int, group_size: int, axis: int, scratch: str, report: Report
) -> dict[str, Any]:
    """HQQ (Badri and Shaji 2023: zero points found by half-quadratic optimization, without data),
    tensor by tensor, on a GPU if there is one; saved as safetensors.

    Scales and zero points are float16, hqq's default: bfloat16 has too few digits for zero points.
    The rest of the model is float16 too.
    """
    begin(scratch)
    division, on = Division(model), device()

    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

    Quantizer.optimize_weights = staticmethod(in_parts(Quantizer.optimize_weights))
    size = None if group_size == -1 else group_size
    config = BaseQuantizeConfig(nbits=bits, group_size=size, axis=axis)

    def one(matrix: Any, _: str) -> Mapping[str, Any]:
        linear = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
        linear.weight = torch.nn.Parameter(matrix.to(torch.float16), requires_grad=False)
        made = HQQLinear(linear, config, compute_dtype=torch.float16, device=on)
        # with encoded_state_dict left on, which its save_quantized turns off, the library itself
        # gives tensors only
        return dict(made.state_dict())

    # vLLM compares each part of a name
    skipped = sorted({name.rpartition(".")[2] for name in division.plain})
    rewrite(
        division,
        target,
        one,
        suffixes=hqq_format.ALL_PARTS,
        dtype=torch.float16,
        block=hqq_format.block(bits, size, axis, skipped),
        report=report,
        config={"dtype": "float16"},
    )
    return {}
