"""W8A8 in INT8 and FP8 by compressed-tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoquant import calibration
from autoquant.backends.folder import (
    SHARD,
    begin,
    half_dtype,
    keep_config,
    linear_layers,
    tidy,
    used,
)
from autoquant.runtime.worker import Report


def quantize(
    model: str,
    target: str,
    *,
    scheme: str,
    scratch: str,
    report: Report,
    packing: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Weights and activations of 8 bits (``scheme`` "int8-dynamic", "int8-static" or "fp8-dynamic")
    with compressed-tensors: plain rounding, a scale for each output.

    "int8-static" looks at the samples of ``packing`` for the largest input of each layer, in the
    unquantized model; the others look at no data. On a GPU if there is one.
    """
    config, _ = begin(model, scratch)

    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM

    ids = calibration.pack(model, **packing) if packing else []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded: Any = (
        AutoModelForCausalLM.from_pretrained(model, dtype=half_dtype(model)).to(device).eval()
    )
    inside, outside = linear_layers(loaded)
    largest = {name: torch.zeros((), device=device) for name in inside}

    def watch(name: str) -> Any:
        def hook(_: Any, inputs: Any) -> None:
            largest[name] = torch.maximum(largest[name], inputs[0].abs().amax().float())

        return hook

    hooks = [linear.register_forward_pre_hook(watch(name)) for name, linear in inside.items()]
    with torch.inference_mode():
        for i, sample in enumerate(ids, 1):
            loaded(input_ids=torch.tensor([sample], device=device), logits_to_keep=1)
            report(i, len(ids) + 1)
    for one in hooks:
        one.remove()
    common: dict[str, Any] = {
        "num_bits": 8,
        "type": "float" if scheme.startswith("fp8") else "int",
        "symmetric": True,
    }
    weights, inputs = (
        QuantizationArgs(strategy="channel", dynamic=False, **common),
        QuantizationArgs(strategy="tensor" if ids else "token", dynamic=not ids, **common),
    )
    group = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
    apply_quantization_config(
        loaded, QuantizationConfig(config_groups={"group_0": group}, ignore=outside)
    )
    for name, linear in inside.items():
        linear.weight_scale.data.copy_(
            calculate_qparams(
                linear.weight.data.amin(1, keepdim=True),
                linear.weight.data.amax(1, keepdim=True),
                weights,
            )[0]
        )
        if ids:
            linear.input_scale.data.copy_(
                calculate_qparams(-largest[name], largest[name], inputs)[0]
            )
    compressor = ModelCompressor.from_pretrained_model(loaded)
    compressor.compress_model(loaded)
    report(1, 1)
    loaded.save_pretrained(target, max_shard_size=SHARD)
    compressor.update_config(target)
    keep_config(Path(target), config)
    tidy(Path(target), model)
    return used(ids) if ids else {}
