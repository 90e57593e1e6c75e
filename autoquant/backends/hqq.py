"""HQQ by its own library, saved as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoquant.backends.tensorwise import Division, begin, device, rewrite
from autoquant.formats import hqq as hqq_format
from autoquant.runtime.worker import Report


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
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

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
