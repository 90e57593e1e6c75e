"""HQQ by its own library, saved as safetensors."""

from __future__ import annotations

from typing import Any

from autoquant.backends.folder import begin, linear_layers, write_folder
from autoquant.formats import hqq as hqq_format
from autoquant.runtime.worker import Report


def quantize(
    model: str, target: str, *, bits: int, group_size: int, axis: int, scratch: str, report: Report
) -> dict[str, Any]:
    """HQQ (Badri and Shaji 2023: zero points found by half-quadratic optimization, without data),
    layer by layer, on a GPU if there is one; saved as safetensors.

    Scales and zero points are float16, hqq's default: bfloat16 has too few digits for zero points.
    The rest of the model is float16 too. The layers are replaced here: hqq's own ``quantize_model``
    also rounds the rotary frequencies to float16.
    """
    config, _ = begin(model, scratch)

    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float16)
    inside, outside = linear_layers(loaded)
    # vLLM compares each part of a name
    skipped = sorted({name.rpartition(".")[2] for name in outside})
    size = None if group_size == -1 else group_size
    for i, (name, linear) in enumerate(inside.items(), 1):
        quantized = HQQLinear(
            linear,
            BaseQuantizeConfig(nbits=bits, group_size=size, axis=axis),
            compute_dtype=torch.float16,
            device=device,
        )
        loaded.set_submodule(name, quantized)
        report(i, len(inside))
    # with encoded_state_dict left on, which its save_quantized turns off, the library itself gives
    # tensors only
    write_folder(
        target,
        model,
        {**config, "dtype": "float16"},
        loaded.state_dict(),
        hqq_format.block(bits, size, axis, skipped),
    )
    return {}
