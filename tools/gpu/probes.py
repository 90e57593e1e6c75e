"""Libraries' own kernels beside our readers, each in a process of its own (``machine.call``)."""

from __future__ import annotations

from typing import Any

from gpu import internals
from gpu.making import context, tokens


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def relative(ours: Any, theirs: Any) -> float:
    """‖ours − theirs‖ / ‖ours‖ in float64; infinite if one is not finite."""
    import torch

    a, b = ours.detach().double().cpu(), theirs.detach().double().cpu()
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    return float((a - b).norm() / a.norm())


def ours(folder: str, ids: list[int]) -> Any:
    """Logits [tokens, vocabulary] in float32 of a folder as our readers read it."""
    import torch

    model = internals.model(folder).to(_device()).eval()
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids], device=_device())).logits[0].float().cpu()


def ulps(ours: Any, theirs: Any) -> int:
    """The most steps of float16 between two arrays of float16."""
    import numpy as np

    def steps(values: Any) -> Any:
        bits = values.astype(np.float16).view(np.int16).astype(np.int32)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    return int(np.abs(steps(ours) - steps(theirs)).max())


def _exllama(folder: str) -> Any:
    """The folder in exllamav2's own runtime, not loaded yet."""
    from exllamav2 import ExLlamaV2, ExLlamaV2Config

    config: Any = ExLlamaV2Config(folder)
    config.no_flash_attn = config.no_xformers = config.no_sdpa = True
    return ExLlamaV2(config)


def exl2_matrices(folder: str) -> dict[str, Any]:
    """Each matrix as exllamav2 reconstructs it beside our reader's: the most steps of float16."""
    import torch
    from exllamav2.linear import ExLlamaV2Linear

    model = _exllama(folder)
    with torch.inference_mode():
        model.set_device_map([99999])  # GB; the first GPU takes all
    tensors, block, layers = internals.read(folder)
    found = {}
    for name, module in model.modules_dict.items():
        if isinstance(module, ExLlamaV2Linear) and name in layers:
            with torch.inference_mode():
                module.load(device_context=False)
                theirs = module.get_weight_tensor_dq().float().cpu().numpy().T
            mine = internals.weight(tensors, name, block)
            found[name] = ulps(mine, theirs[: len(mine)])
    missing = sorted(set(layers) - set(found))
    if missing:
        raise RuntimeError(f"exllamav2 shows no matrix of {', '.join(missing[:3])}")
    return {
        "layers": len(found),
        "ulps": max(found.values()),
        "exact": sum(one == 0 for one in found.values()),
    }


def exl2_logits(folder: str) -> dict[str, Any]:
    """Logits of exllamav2's runtime beside our reader's through transformers."""
    import torch
    from exllamav2 import ExLlamaV2Cache

    ids = tokens(folder, context(folder))
    model = _exllama(folder)
    model.load()
    cache: Any = ExLlamaV2Cache(model, batch_size=1, max_seq_len=len(ids))
    with torch.inference_mode():
        theirs = model.forward(torch.tensor([ids]), cache=cache, cpu_logits=True)[0].float()
    mine = ours(folder, ids)
    return {"relative": relative(mine, theirs[:, : mine.shape[1]]), "tokens": len(ids)}


def exl3_matrices(folder: str) -> dict[str, Any]:
    """Each matrix as exllamav3 reconstructs it beside our reader's: how far apart, relative to its
    size.
    """
    import torch
    from exllamav3 import Config, Model
    from exllamav3.modules import Linear

    tensors, block, layers = internals.read(folder)
    model: Any = Model.from_config(Config.from_directory(folder))
    apart = {}
    with torch.inference_mode():
        for module in model.modules:
            module.load(torch.device("cuda:0"))
            for one in module:
                if isinstance(one, Linear) and one.key in layers:
                    theirs = one.inner.get_weight_tensor().float().cpu().T
                    mine = torch.from_numpy(internals.weight(tensors, one.key, block))
                    apart[one.key] = relative(mine, theirs[: len(mine)])
            module.unload()
    missing = sorted(set(layers) - set(apart))
    if missing:
        raise RuntimeError(f"exllamav3 shows no matrix of {', '.join(missing[:3])}")
    return {"layers": len(apart), "relative": max(apart.values())}


def exl3_logits(folder: str) -> dict[str, Any]:
    """Logits of exllamav3's runtime beside our reader's through transformers."""
    import torch
    from exllamav3 import Config, Model

    ids = tokens(folder, context(folder))
    model: Any = Model.from_config(Config.from_directory(folder))
    model.load("cuda:0")
    with torch.inference_mode():
        made = model.forward(torch.tensor([ids]), {"attn_mode": "flash_attn_nc"})
    theirs = made[0].float().cpu()
    mine = ours(folder, ids)
    return {"relative": relative(mine, theirs[:, : mine.shape[1]]), "tokens": len(ids)}


def gptq_kernel(folder: str, backend: str) -> dict[str, Any]:
    """Logits of one of GPTQModel's kernels beside our reader's."""
    import time

    import torch
    from gptqmodel import BACKEND, GPTQModel

    begin = time.monotonic()
    ids = tokens(folder, context(folder))
    device = "cuda:0" if _device() == "cuda" else "cpu"
    dtype = torch.float16 if _device() == "cuda" else torch.bfloat16
    loaded: Any = GPTQModel.load(folder, backend=BACKEND(backend), device=device, dtype=dtype)
    kinds = sorted(
        {
            type(one).__name__
            for one in loaded.model.modules()
            if hasattr(one, "qweight") or "Linear" in type(one).__name__
        }
    )
    given = torch.tensor([ids], device=device)
    with torch.inference_mode():
        theirs = loaded.model(input_ids=given).logits[0].float().cpu()
    seconds = time.monotonic() - begin
    return {"relative": relative(ours(folder, ids), theirs), "seconds": seconds, "kernels": kinds}


def runtime(folder: str) -> dict[str, Any]:
    """Logits of the library that loads a folder beside our reader's."""
    import torch

    ids = tokens(folder, context(folder))
    loaded = internals.runtime(folder)
    loaded.eval()
    where = next(loaded.parameters()).device
    with torch.inference_mode():
        theirs = loaded(input_ids=torch.tensor([ids], device=where)).logits[0].float().cpu()
    return {"relative": relative(ours(folder, ids), theirs), "device": str(where)}


def _captured(folder: str, ids: list[int]) -> tuple[Any, dict[str, Any]]:
    """The model as we simulate it, and each quantized layer's inputs before they are rounded."""
    import torch

    model = internals.model(folder).to(_device()).eval()
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, inputs: Any) -> None:
            seen[name] = inputs[0].detach()[0]

        return hook

    for name in internals.read(folder)[2]:
        model.get_submodule(name).register_forward_pre_hook(keep(name), prepend=True)
    with torch.inference_mode():
        model(input_ids=torch.tensor([ids], device=_device()))
    return model, seen


def _real(inputs: Any, codes: Any, scale: Any) -> Any:
    """The product as the hardware makes it, of codes of 8 bits times codes of 8 bits: FP8 with a
    scale for each row and column, int8 summed in int32."""
    import torch

    largest = inputs.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    if codes.dtype == torch.int8:
        step = largest / 127.5  # as compressed-tensors takes it
        rounded = (inputs / step).round().clamp(-128, 127).to(torch.int8)
        return torch._int_mm(rounded, codes.T.contiguous()).float() * step * scale.T
    step = largest / 448
    rounded = (inputs / step).clamp(-448, 448).to(torch.float8_e4m3fn)
    multiply: Any = torch._scaled_mm
    return multiply(
        rounded, codes.T, scale_a=step, scale_b=scale.T.contiguous(), out_dtype=torch.bfloat16
    ).float()


def real_activations(folder: str) -> dict[str, Any]:
    """For each layer of a W8A8 folder (scales by token): the product that the hardware makes of
    8-bit codes beside our simulation of it in float32. The worst layer's relative difference."""
    import torch
    from safetensors.torch import load_file

    ids = tokens(folder, context(folder))
    model, seen = _captured(folder, ids)
    tensors, block, layers = internals.read(folder)
    files = load_file(f"{folder}/model.safetensors", device=_device())
    worst, name_of_worst = 0.0, ""
    for name in layers:
        inputs = seen[name].float()
        codes, scale = files[f"{name}.weight"], files[f"{name}.weight_scale"].float()
        simulated = internals.rounding(tensors, name, block)
        with torch.inference_mode():
            weight = model.get_submodule(name).weight
            off = relative(simulated(inputs) @ weight.T, _real(inputs, codes, scale))
        if not off <= worst:
            worst, name_of_worst = off, name
    return {"relative": worst, "layer": name_of_worst, "layers": len(layers), "device": _device()}
