"""Layers whose activations are quantized, by NumPy from their definition, as they are measured, and
as their library runs them.
"""

from __future__ import annotations

from typing import Any

from autoquant.formats.tensors import Tensors
from tests.helpers.models import demo_logits


def llm_int8_layer(folder: str) -> dict[str, Any]:
    """LLM.int8() of one layer by NumPy from its definition, against the library's layer and the
    model that is measured; and the whole model's logits.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from autoquant.formats import dequantized

    name = "model.layers.1.mlp.up_proj"
    tensors = Tensors(folder)
    codes, scale = (
        tensors.get(f"{name}.weight").astype(np.float64),
        tensors.get(f"{name}.SCB").astype(np.float64) / 127,
    )
    x = (
        np.random.default_rng(0)
        .standard_normal((7, codes.shape[1]))
        .astype(np.float16)
        .astype(np.float32)
    )
    x[2, 5], x[4, 9] = 8.5, -7.25
    plain = np.abs(x).max(0) < 6
    rows = np.abs(np.where(np.abs(x) >= 6, 0, x)).max(1).astype(np.float64) / 127
    rounded = np.round(x / rows[:, None])
    wanted = (rounded[:, plain] @ codes[:, plain].T) * rows[:, None] * scale + x[:, ~plain] @ (
        codes[:, ~plain] * scale[:, None]
    ).T
    models = {
        "measured": dequantized.load(folder),
        "weights only": dequantized.load(folder, activations=False),
        "library": AutoModelForCausalLM.from_pretrained(folder),
    }
    out: dict[str, Any] = {"outliers": int((~plain).sum())}
    for who, model in models.items():
        given = torch.from_numpy(x).to(torch.float16 if who == "library" else torch.float32)
        with torch.inference_mode():
            seen = model.eval().get_submodule(name)(given).double().numpy()
        out[f"{who} against numpy"] = float(np.linalg.norm(seen - wanted) / np.linalg.norm(wanted))
    return {**out, **layers_on_real_inputs(models)}


def layers_on_real_inputs(models: dict[str, Any]) -> dict[str, float]:
    """Every quantized layer of the library's model on a text: the largest relative difference of
    its outputs from what the layer that is measured makes of the same inputs, and the smallest from
    what it would make with its activations left alone.
    """
    import torch

    met: dict[str, tuple[Any, Any]] = {}
    for name, module in models["library"].named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(
                lambda _, inputs, output, name=name: met.update(
                    {name: (inputs[0].detach().float(), output.detach().float())}
                )
            )
    demo_logits(models["library"])
    off: dict[str, list[float]] = {"measured": [], "weights only": []}
    for name, (inputs, output) in met.items():
        for who in off:
            with torch.inference_mode():
                off[who].append(
                    float((models[who].get_submodule(name)(inputs) - output).norm() / output.norm())
                )
    return {
        "layers": len(met),
        "measured, worst layer": max(off["measured"]),
        "weights only, best layer": min(off["weights only"]),
    }


def e4m3(x: Any) -> Any:
    """Round to the nearest number of float8 E4M3, by its definition: 3 bits of fraction, exponents
    from -6 on, at most 448.
    """
    import numpy as np

    step = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(x), 2.0**-6))) - 3)
    return np.clip(np.round(x / step) * step, -448, 448)


def w8a8_layer(folder: str) -> dict[str, Any]:
    """A layer with activations quantized by NumPy from the definition of the folder's scheme,
    against the library's layer and the model that is measured; then all layers.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from autoquant.formats import dequantized
    from autoquant.formats.checkpoint import quantization

    name = "model.layers.1.mlp.up_proj"
    tensors, block = Tensors(folder), quantization(folder)
    codes, scale = (
        tensors.get(f"{name}.weight").astype(np.float64),
        tensors.get(f"{name}.weight_scale").astype(np.float64)[:, 0],
    )
    x = np.float32(0.1) * np.random.default_rng(0).standard_normal((7, codes.shape[1])).astype(
        np.float32
    )
    # of float32, as the scale: the largest input lies on the edge between two codes
    largest = np.abs(x).max(1, keepdims=True)
    if block["format"] == "float-quantized":
        steps = largest / np.float32(448)
        rounded = e4m3(x / steps)
        assert np.array_equal(codes, e4m3(codes)), "weights are numbers of E4M3"
    else:
        steps = (
            tensors.get(f"{name}.input_scale")[0]
            if f"{name}.input_scale" in tensors
            else largest / np.float32(127.5)
        )
        rounded = np.clip(np.round(x / steps), -128, 127)
        assert np.array_equal(codes, np.round(codes)), "weights are whole numbers"
    wanted = (rounded.astype(np.float64) @ codes.T) * steps * scale
    models = {
        "measured": dequantized.load(folder),
        "weights only": dequantized.load(folder, activations=False),
        "library": AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    }
    demo_logits(models["library"])  # it dequantizes its weights when it first runs
    out: dict[str, Any] = {}
    for who, model in models.items():
        with torch.inference_mode():
            # the library knows tokens by the second dimension
            seen = model.eval().get_submodule(name)(torch.from_numpy(x)[None])[0].double().numpy()
        out[f"{who} against numpy"] = float(np.linalg.norm(seen - wanted) / np.linalg.norm(wanted))
    return {**out, **layers_on_real_inputs(models)}


def static_scales(folder: str, source: str, packing: dict[str, Any]) -> dict[str, float]:
    """How far the static scales of a folder's layers are from those of the largest inputs that
    transformers' whole model has in float32, relative, on the same samples; less what rounding to
    the folder's 16 bits may make of them.
    """
    import torch

    from autoquant import calibration
    from autoquant.formats.architecture import class_of, config_of

    tensors, config = Tensors(folder), config_of(source)
    suffix = ".input_scale"
    scales = {
        name.removesuffix(suffix): tensors.raw(name)
        for name in tensors.names()
        if name.endswith(suffix)
    }
    model: Any = class_of(config).from_pretrained(source, config=config, dtype=torch.float32)
    largest = dict.fromkeys(scales, 0.0)

    def hook(name: str) -> Any:
        def look(_: Any, inputs: Any) -> None:
            largest[name] = max(largest[name], float(inputs[0].abs().max()))

        return look

    for name in scales:
        model.get_submodule(name).register_forward_pre_hook(hook(name))
    ids = torch.tensor(calibration.pack(source, **packing))
    with torch.inference_mode():
        model.eval()(input_ids=ids, use_cache=False)
    # 255 steps from the largest to its negative
    return {
        name: abs(float(scale) * 127.5 / largest[name] - 1) - torch.finfo(scale.dtype).eps / 2
        for name, scale in scales.items()
    }
