"""The types of bitsandbytes beside our reader."""

from __future__ import annotations

from typing import Any

from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.formats.tensors import Tensors
from tests.helpers.models import demo_logits


def bitsandbytes_grid(scratch: str) -> list[dict[str, Any]]:
    """Quantize the bundled model to every type: our reader's largest difference from the library's
    weights, and of logits from those before saving.
    """
    import bitsandbytes
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from autoquant.backends import bitsandbytes as backend
    from autoquant.formats import dequantized
    from autoquant.formats.checkpoint import quantization

    out = []
    for kind, double in (("nf4", True), ("nf4", False), ("fp4", True), ("int8", True)):
        folder = f"{scratch}/{kind}-{double}"
        backend.quantize(
            str(DEMO_FOLDER),
            folder,
            quant_type=kind,
            double_quant=double,
            threshold=6.0,
            scratch=scratch,
            report=lambda *_: None,
        )
        tensors, block, model = (
            Tensors(folder),
            quantization(folder),
            AutoModelForCausalLM.from_pretrained(folder),
        )
        settings = (
            BitsAndBytesConfig(load_in_8bit=True)
            if kind == "int8"
            else BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=kind,
                bnb_4bit_use_double_quant=double,
                bnb_4bit_compute_dtype=torch.float16,
            )
        )
        unsaved = AutoModelForCausalLM.from_pretrained(
            DEMO_FOLDER, dtype=torch.float16, quantization_config=settings
        )
        worst, layers = 0.0, dequantized.format_of(block).layers(tensors)
        for name in layers:
            weight = model.get_submodule(name).weight
            if kind == "int8":
                theirs = bitsandbytes.functional.int8_vectorwise_dequant(weight.data, weight.SCB)
            else:
                weight.quant_state.dtype = torch.float32
                theirs = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
                weight.quant_state.dtype = torch.float16
            worst = max(
                worst,
                float(
                    np.abs(theirs.float().numpy() - dequantized.weight(tensors, name, block)).max()
                ),
            )
        out.append(
            {
                "type": kind + ("" if double else "-single"),
                "layers": len(layers),
                "difference": worst,
                "bytes": tensors.bytes(),
                "reloaded": float((demo_logits(model) - demo_logits(unsaved)).abs().max()),
            }
        )
    return out
