"""Quantized folders loaded by the libraries that run them, for a few tokens. Runs in workers."""

from __future__ import annotations

from typing import Any

from autoquant.core.errors import CheckFailed
from autoquant.formats.architecture import class_of, config_of
from autoquant.formats.checkpoint import quantization
from autoquant.formats.tensors import Tensors

NAMED = 3  # tensors named in an error


def transformers_model(folder: str, **more: Any) -> Any:
    """A folder loaded by transformers, on a GPU if there is one. ``more`` goes to its
    from_pretrained. Raises CheckFailed if a tensor is missing, left over or of another shape.
    """
    import torch

    kind = class_of(config_of(folder))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, info = kind.from_pretrained(
            folder, device_map=device, output_loading_info=True, **more
        )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise CheckFailed(
            "transformers does not load the folder as it is: tensors of another shape than it"
            " expects, so it did not take all of the layers for quantized"
        ) from None
    astray = {
        kind: sorted(map(str, info.get(kind) or ()))
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if any(astray.values()):  # transformers goes on with random numbers for what it misses
        said = "; ".join(
            f"{kind.replace('_', ' ')}: {', '.join(names[:NAMED])}"
            for kind, names in astray.items()
            if names
        )
        raise CheckFailed(f"transformers does not load the folder as it is: {said}")
    return model


def gptqmodel_kernels(folder: str) -> Any:
    """A folder of GPTQ or AWQ loaded by transformers with those of GPTQModel's kernels that are
    plain torch. It would take a faster one by itself: on a GPU each of those is compiled when it is
    first used, for up to two minutes, and Machete, which it prefers on Hopper, fetches CUTLASS from
    the network before. A dozen tokens do without.
    """
    from transformers import AwqConfig, GPTQConfig

    block = quantization(folder)
    if block["quant_method"] == "gptq":
        return transformers_model(
            folder, quantization_config=GPTQConfig(bits=int(block["bits"]), backend="gptq_torch")
        )
    return transformers_model(folder, quantization_config=AwqConfig(backend="torch_awq"))


def mixed_gptq(folder: str) -> Any:
    """A folder of GPTQ whose layers differ in bits or group size, loaded by GPTQModel with its
    kernel of plain torch: transformers takes all layers to be alike. Raises CheckFailed if
    GPTQModel does not take the layers for quantized that are.
    """
    import torch
    from gptqmodel import BACKEND, GPTQModel

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model = GPTQModel.load(folder, device=device, backend=BACKEND.GPTQ_TORCH).model
    found = {name for name, one in model.named_modules() if hasattr(one, "qweight")}
    stored = {
        name.removesuffix(".qweight")
        for name in Tensors(folder).names()
        if name.endswith(".qweight")
    }
    if astray := sorted(found ^ stored):
        raise CheckFailed(
            "GPTQModel does not load the folder as it is: it knows the layers by other names, such"
            f" as {', '.join(astray[:NAMED])}"
        )
    return model


def takes_gpu(loader: Any) -> bool:
    """Whether a loader puts the model on a GPU if there is one; others leave it on the CPU."""
    return loader in (transformers_model, gptqmodel_kernels, mixed_gptq, bitsandbytes_model)


def bitsandbytes_model(folder: str) -> Any:
    """A folder loaded by transformers. On CPUs with bfloat16 instructions bitsandbytes 0.50 packs
    weights anew for a kernel that takes whole multiples of its blocks only, and fails on others
    instead of doing without; those are told to do without.
    """
    model = transformers_model(folder)
    for module in model.modules():
        outputs, inputs = getattr(module, "out_features", 0), getattr(module, "in_features", 0)
        if hasattr(module, "support_avx512bf16_for_cpu") and (outputs % 32 or inputs % 64):
            module.support_avx512bf16_for_cpu = False
    return model
