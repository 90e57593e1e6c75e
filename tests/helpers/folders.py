"""Folders of GPTQ and AWQ beside what GPTQModel and transformers make of them."""

from __future__ import annotations

from typing import Any

from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.formats.tensors import Tensors


def gptqmodel_in_little_memory(**kwargs: Any) -> None:
    """The real function, in a process that may have 3 GB of addresses."""
    import resource

    import torch  # noqa: F401 (its libraries first)

    from autoquant.backends import gptqmodel

    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    gptqmodel.quantize(**kwargs, report=lambda *_: None)


def format_against_library(folder: str, reader: str, bits: int) -> dict[str, Any]:
    """The largest difference between our reader's weights and those that GPTQModel's layers compute
    with, relative to the largest weight.
    """
    import numpy as np
    import torch
    from gptqmodel import BACKEND, GPTQModel

    from autoquant.formats import awq as awq_format
    from autoquant.formats import gptq as gptq_format

    model = GPTQModel.load(
        folder,
        device="cpu",
        backend=BACKEND.TORCH if reader == "gptq" else BACKEND.AWQ_TORCH,
        dtype=torch.float16 if reader == "gptq" else torch.bfloat16,
    )
    tensors, worst, layers = Tensors(folder), 0.0, 0
    for name, module in model.model.named_modules():
        if hasattr(module, "dequantize_weight") or type(module).__name__.startswith("Awq"):
            with torch.inference_mode():
                # AWQ's layers have no such method, but what they make of the unit vectors are their
                # weights
                weight = (
                    module.dequantize_weight()
                    if reader == "gptq"
                    else module(torch.eye(module.in_features, dtype=torch.bfloat16)).T
                )
            theirs = weight.float().numpy()
            ours = (
                gptq_format.dequantize(
                    {part: tensors.get(f"{name}.{part}") for part in gptq_format.PARTS}, bits
                )
                if reader == "gptq"
                else awq_format.dequantize(
                    {part: tensors.get(f"{name}.{part}") for part in awq_format.PARTS}
                )
            )
            theirs = (
                theirs
                if theirs.shape == ours.shape
                and np.abs(theirs - ours).max()
                < np.abs(theirs.T - ours if theirs.T.shape == ours.shape else np.inf).max()
                else theirs.T
            )
            worst, layers = (
                max(worst, float(np.abs(theirs - ours).max() / np.abs(ours).max())),
                layers + 1,
            )
    return {"layers": layers, "difference": worst}


def dequantized_against_transformers(folder: str) -> float:
    """Mean KL divergence between what transformers makes of a quantized folder and our own model of
    it in float32.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from autoquant.formats import dequantized

    ids = AutoTokenizer.from_pretrained(DEMO_FOLDER).encode(
        (DEMO_FOLDER.parent / "austen_persuasion_heldout.txt").read_text()[:3000],
        return_tensors="pt",
    )[:, :200]
    with torch.inference_mode():
        ours, theirs = (
            torch.log_softmax(model.eval()(input_ids=ids).logits.float(), -1)
            for model in (dequantized.load(folder), AutoModelForCausalLM.from_pretrained(folder))
        )
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def spoil(path: str, name: str) -> None:
    """Make one tensor of a safetensors file three times as large."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) * (3 if key == name else 1) for key in file.keys()}  # noqa: SIM118 (not a dict)
    save_file(tensors, path, metadata={"format": "pt"})


def kernels(folder: str) -> list[str]:
    """The classes of the quantized layers of a folder, as our checks load it."""
    from autoquant.formats import dequantized
    from autoquant.formats.checkpoint import quantization

    model = dequantized.format_of(quantization(folder)).loader(folder)
    return sorted({type(one).__name__ for one in model.modules() if hasattr(one, "qweight")})


def mixed_against_gptqmodel(folder: str) -> dict[str, Any]:
    """How far GPTQModel's predictions of a folder whose layers differ are from those of our own
    model of it in float32: KL divergence, and logits relative to the largest; how many quantized
    layers it has, by what kernels.
    """
    import torch
    from transformers import AutoTokenizer

    from autoquant.formats import dequantized, loaders

    ids = AutoTokenizer.from_pretrained(DEMO_FOLDER).encode(
        (DEMO_FOLDER.parent / "austen_persuasion_heldout.txt").read_text()[:3000],
        return_tensors="pt",
    )[:, :200]
    theirs = loaders.mixed_gptq(folder).eval()
    layers = [one for one in theirs.modules() if hasattr(one, "qweight")]
    with torch.inference_mode():
        said = theirs(input_ids=ids).logits.float()
        own = dequantized.load(folder).eval()(input_ids=ids).logits
    return {
        "layers": len(layers),
        "kernels": sorted({type(one).__name__ for one in layers}),
        "far": float((said - own).abs().max() / own.abs().max()),
        "nats": float(
            (own.softmax(-1) * (own.log_softmax(-1) - said.log_softmax(-1))).sum(-1).mean()
        ),
    }
