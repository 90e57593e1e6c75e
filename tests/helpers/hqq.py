"""HQQ's own quantizer and layers beside our reader and loader."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.formats.tensors import Tensors
from tests.helpers.models import demo_logits


def hqq_grid(scratch: str) -> list[dict[str, Any]]:
    """Quantize the small bundled model in every way; our reader's largest difference from the
    library's weights in float32, the layers' mean error, and the bytes.
    """
    import numpy as np
    import torch

    from autoquant.backends import hqq
    from autoquant.core.bundled import MODELS as DEMOS
    from autoquant.formats import hqq as hqq_format
    from autoquant.formats.dequantized import weight

    original, out = Tensors(str(DEMOS["demo-small"])), []
    for bits in (1, 2, 3, 4, 8):
        for axis in (0, 1):
            for group_size in (-1, 16, 32, 64):
                folder = f"{scratch}/{bits}-{axis}-{group_size}"
                hqq.quantize(
                    str(DEMOS["demo-small"]),
                    folder,
                    bits=bits,
                    group_size=group_size,
                    axis=axis,
                    scratch=scratch,
                    report=lambda *_: None,
                )
                tensors, model = Tensors(folder), hqq_format.load(folder, dtype=torch.float32)
                layers = [
                    name.removesuffix(".W_q") for name in tensors.names() if name.endswith(".W_q")
                ]
                ours = {name: weight(tensors, name, {"quant_method": "hqq"}) for name in layers}
                theirs = {name: model.get_submodule(name).dequantize().numpy() for name in layers}
                before = {name: original.get(f"{name}.weight") for name in layers}
                out.append(
                    {
                        "bits": bits,
                        "axis": axis,
                        "group_size": group_size,
                        "bytes": tensors.bytes(),
                        "difference": max(
                            float(np.abs(ours[name] - theirs[name]).max()) for name in layers
                        ),
                        "error": float(
                            np.mean(
                                [
                                    np.linalg.norm(ours[name] - before[name])
                                    / np.linalg.norm(before[name])
                                    for name in layers
                                ]
                            )
                        ),
                    }
                )
                shutil.rmtree(folder)
    return out


def hqq_reloaded(folder: str, scratch: str) -> dict[str, Any]:
    """Logits of the library's own quantized model against those of the loaded folder, of one with
    code in a text, and of a model with tied embeddings.
    """
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from hqq.models.hf.base import AutoHQQHFModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    from autoquant.backends import hqq
    from autoquant.formats import hqq as hqq_format
    from autoquant.formats import writer

    def by_library(path: str) -> Any:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float16)
        AutoHQQHFModel.quantize_model(
            model,
            BaseQuantizeConfig(nbits=4, group_size=64, axis=1),
            compute_dtype=torch.float16,
            device="cpu",
        )
        # the library has rounded its frequencies to float16
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
        return demo_logits(model)

    def difference(one: Any, other: Any) -> float:
        return float((one - other).abs().max())

    theirs, model = by_library(str(DEMO_FOLDER)), hqq_format.load(folder)
    out = {
        "layers": sum(isinstance(module, HQQLinear) for module in model.modules()),
        "difference": difference(demo_logits(model), theirs),
        "tokens": (
            model.generate(
                torch.tensor([[1, 5, 9]]), max_new_tokens=12, min_new_tokens=12, do_sample=False
            ).shape[1]
            - 3
        ),
    }
    shutil.copytree(folder, scratch, ignore=shutil.ignore_patterns(".autoquant"))
    path = Path(scratch) / "model.safetensors"
    tensors = load_file(path)
    evil = torch.tensor(list(b"__import__('os')._exit(7)"), dtype=torch.uint8)
    save_file(
        {
            name: evil.clone() if name.endswith(("compute_dtype", "unpack_view_dtype")) else tensor
            for name, tensor in tensors.items()
        },
        path,
        metadata={"format": "pt"},
    )
    out["spoiled difference"] = difference(demo_logits(hqq_format.load(scratch)), theirs)
    tied = AutoModelForCausalLM.from_pretrained(DEMO_FOLDER)
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.half().save_pretrained(f"{scratch}-tied")
    writer.SHARD = 1 << 20
    hqq.quantize(
        f"{scratch}-tied",
        f"{scratch}-quantized",
        bits=4,
        group_size=64,
        axis=1,
        scratch=scratch,
        report=lambda *_: None,
    )
    out["shards"] = len(list(Path(f"{scratch}-quantized").glob("model-0000*.safetensors")))
    out["tied difference"] = difference(
        demo_logits(hqq_format.load(f"{scratch}-quantized")), by_library(f"{scratch}-tied")
    )
    return out


def hqq_incomplete(folder: str, scratch: str) -> None:
    """Load a folder that lacks a tensor and has one too many."""
    import torch
    from safetensors.torch import load_file, save_file

    from autoquant.formats import hqq as hqq_format

    shutil.copytree(folder, scratch, ignore=shutil.ignore_patterns(".autoquant"))
    tensors = load_file(Path(scratch) / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(
        {**tensors, "nobody": torch.zeros(3)},
        Path(scratch) / "model.safetensors",
        metadata={"format": "pt"},
    )
    hqq_format.load(scratch)


def in_parts_and_whole(axis: int) -> dict[str, float]:
    """hqq's matrix of two million weights, searched in parts and as a whole: the share of equal
    codes, and both relative errors.
    """
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

    from autoquant.backends import hqq

    torch.manual_seed(0)
    weight = (0.02 * torch.randn(1024, 2048)).half()
    config = BaseQuantizeConfig(nbits=4, group_size=64, axis=axis)
    search = Quantizer.optimize_weights
    codes, errors = [], []
    for how in (search, hqq.in_parts(search)):
        Quantizer.optimize_weights = staticmethod(how)
        linear = torch.nn.Linear(2048, 1024, bias=False, device="meta")
        linear.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        made: Any = HQQLinear(linear, config, compute_dtype=torch.float16, device="cpu")
        far = made.dequantize().float() - weight.float()
        errors.append(float(far.norm() / weight.float().norm()))
        codes.append(made.W_q)
    same = float((codes[0] == codes[1]).float().mean())
    return {"same": same, "whole": errors[0], "parts": errors[1]}
