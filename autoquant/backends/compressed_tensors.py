"""W8A8 in INT8 and FP8 by compressed-tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoquant import calibration
from autoquant.backends.folder import used
from autoquant.backends.tensorwise import Division, begin, device, rewrite
from autoquant.formats import compressed_tensors
from autoquant.formats.architecture import config_of
from autoquant.forward.blockwise import Blockwise, block_sizes
from autoquant.forward.head import final
from autoquant.forward.places import BESIDE, Place, anywhere
from autoquant.forward.weights import of_folder
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
    with compressed-tensors: plain rounding, a scale for each output, tensor by tensor. On a GPU if
    there is one.

    "int8-static" runs the unquantized model, block by block, on the samples of ``packing`` for the
    largest input of each layer; the others look at no data.
    """
    begin(scratch)
    division, on = Division(model), device()

    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
    )
    from compressed_tensors.quantization.lifecycle.forward import quantize as rounded
    from compressed_tensors.quantization.utils import calculate_qparams

    dtype = division.half()
    ids = calibration.pack(model, **packing) if packing else []
    largest = _largest_inputs(division, model, ids, report) if ids else {}
    kind = "float" if scheme.startswith("fp8") else "int"
    common: dict[str, Any] = {"num_bits": 8, "type": kind, "symmetric": True}
    weights, inputs = (
        QuantizationArgs(strategy="channel", dynamic=False, **common),
        QuantizationArgs(strategy="tensor" if ids else "token", dynamic=not ids, **common),
    )
    format = compressed_tensors.FORMATS[kind]
    group = QuantizationScheme(
        targets=["Linear"], weights=weights, input_activations=inputs, format=format
    )

    def one(matrix: Any, name: str) -> Mapping[str, Any]:
        # in float32: with the eight bits of bfloat16 a code would be off by one now and then
        weight = matrix.float()
        scale, zero = calculate_qparams(
            weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), weights
        )
        scale = scale.to(dtype)
        codes = rounded(
            x=weight,
            scale=scale.float(),
            zero_point=zero,
            args=weights,
            dtype=weights.pytorch_dtype(),
        )
        parts = {"weight": codes, "weight_scale": scale}
        if ids:
            most = largest[name].to(on)
            parts["input_scale"] = calculate_qparams(-most, most, inputs)[0].to(dtype).reshape(1)
        return parts

    block = QuantizationConfig(
        config_groups={"group_0": group},
        ignore=division.plain,
        format=format,
        quantization_status="compressed",
    ).model_dump(mode="json", exclude={"version"})
    rewrite(
        division,
        target,
        one,
        suffixes=("weight", "weight_scale", "input_scale"),
        dtype=dtype,
        block=compressed_tensors.block(block),
        report=report,
    )
    return used(ids) if ids else {}


def _largest_inputs(
    division: Division, model: str, samples: list[list[int]], report: Report
) -> dict[str, Any]:
    """The largest input of each layer, by the name it is written under; in float32."""
    import torch

    config, ids = config_of(model), torch.tensor(samples)
    # a block, and hidden states of all samples where they run
    needed = 4 * (block_sizes(config)[0] + 4 * ids.numel() * config.get_text_config().hidden_size)
    return anywhere(lambda where: _largest(division, model, ids, where, report), needed + BESIDE)


def _largest(
    division: Division, model: str, ids: Any, where: Place, report: Report
) -> dict[str, Any]:
    """The same, in a place."""
    import torch

    blocks = 0

    def done() -> None:
        nonlocal blocks
        blocks += 1
        report(blocks, len(run.units) + 1)

    config, weights = config_of(model), of_folder(model)
    run = Blockwise(config, weights, device=where.device, ahead=False, done=done)
    by_tensor = {part.tensor: name for name, part in division.parts.items()}
    names = {layer.module: by_tensor[layer.tensors[0]] for layer in division.found.layers}
    largest = {name: torch.zeros((), device=run.device) for name in names.values()}

    def watch(name: str) -> Any:
        def hook(_: Any, inputs: Any) -> None:
            largest[name] = torch.maximum(largest[name], inputs[0].abs().amax())

        return hook

    for module, name in names.items():
        run.model.get_submodule(module).register_forward_pre_hook(watch(name))
    final(run, ids, 1)
    run.close()
    return largest
