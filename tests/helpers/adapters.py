"""Adapters made and merged by peft itself."""

from __future__ import annotations

from typing import Any

from autoquant.core.bundled import MODEL


def make(folder: str, merged: str, options: dict[str, Any]) -> None:
    """Write a LoRA adapter of the bundled model with random weights, and what peft merges it to."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    options = dict(options)
    if (tokens := options.pop("resize", 0)) > 0:
        model.resize_token_embeddings(tokens)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], **options}
    adapted: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.copy_(0.05 * torch.randn_like(parameter))
            elif "magnitude" in name or "modules_to_save" in name:
                parameter.mul_(1.1)
    adapted.peft_config["default"].base_model_name_or_path = "demo"
    adapted.save_pretrained(folder)
    adapted.merge_and_unload().half().save_pretrained(merged)


def difference(one: str, other: str) -> dict[str, float]:
    """The largest difference between two folders' tensors, in steps of float16 at most, and how
    many differ from the bundled model's.
    """
    import torch

    from autoquant.formats.tensors import Tensors

    ours, theirs, base = Tensors(one), Tensors(other), Tensors(str(MODEL))
    largest, step, changed = 0.0, 0.0, 0
    for name in theirs.names():
        a, b = (torch.from_numpy(side.get(name)) for side in (ours, theirs))
        far = float((a - b).abs().max())
        largest = max(largest, far)
        step = max(step, float(b.abs().max()) / 1024)
        before = torch.from_numpy(base.get(name))
        changed += a.shape != before.shape or not torch.equal(a, before)
    return {"largest": largest, "step": step, "changed": changed}


def with_adapter(base: str, adapter: str, merged: str) -> dict[str, float]:
    """How far llama.cpp's logits of the base are from those of the merged model (‖a − b‖ / ‖b‖),
    without the adapter and with it.
    """
    import llama_cpp.llama_cpp as L
    import numpy as np

    from autoquant.backends.llamacpp.library import Model

    tokens = np.arange(5, 69, dtype=np.int32)
    wanted = Model(merged, threads=1, repack=False).decode(tokens, 0).copy()
    model = Model(base, threads=1, repack=False)

    def far() -> float:
        logits = model.decode(tokens, 0).copy()
        return float(np.linalg.norm(logits - wanted) / np.linalg.norm(wanted))

    without = far()
    loaded = L.llama_adapter_lora_init(model.model, adapter.encode())
    assert loaded
    adapters, weights = (L.llama_adapter_lora_p_ctypes * 1)(loaded), (L.ctypes.c_float * 1)(1.0)
    assert L.llama_set_adapters_lora(model.handle, adapters, 1, weights) == 0
    return {"without": without, "with": far()}
