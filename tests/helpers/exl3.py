"""exllamav3 on the stand-in for a GPU, beside transformers; files that GPTQModel reads too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.models import tiny


def in_exllamav3(models: dict[str, dict[str, Any]], scratch: str) -> dict[str, Any]:
    """Tiny models (name -> architecture and config for :func:`tiny`) run by exllamav3's own
    modules, as its converter runs them, on the stand-in, beside transformers: how far logits are
    apart, relative to their size.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from autoquant.backends.exllamav3 import converter

    torch.manual_seed(1)
    ids, theirs, made = torch.randint(3, 2048, (1, 48)), {}, {}
    for name, config in models.items():
        folder = tiny(f"{scratch}/{name}", **config)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.inference_mode():
            theirs[name] = model(input_ids=ids).logits

    # last: what transformers imports does not want the stand-in's Triton
    from exllamav3 import Config, Model

    for name, logits in theirs.items():
        staged = converter.stage(Path(f"{scratch}/{name}"), Path(f"{scratch}/{name}.staged"))
        model = Model.from_config(Config.from_directory(str(staged)))
        state: Any = ids
        with torch.inference_mode():
            for module in model.modules:
                module.load(torch.device("cuda:0"))
                params = {"attn_mode": "flash_attn_nc", "input_ids": ids}
                state = module.forward(module.prepare_for_device(state, params), params)
        apart = state[:, :, :2048].float() - logits
        made[name] = float(apart.norm() / logits.norm())
    return made


def in_gptqmodel(folder: str, names: list[str]) -> dict[str, float]:
    """Layers of an EXL3 folder, read by GPTQModel's own torch reader and by ours: how far they are
    apart, relative to their size.
    """
    import numpy as np
    import torch
    from gptqmodel.nn_modules.exllamav3_torch import ExllamaV3TorchLinear
    from safetensors.torch import load_file

    from autoquant.formats import exl3

    tensors = load_file(f"{folder}/model.safetensors")
    made = {}
    for name in names:
        parts = {
            key.rpartition(".")[2]: value
            for key, value in tensors.items()
            if key.rpartition(".")[0] == name
        }
        layer = ExllamaV3TorchLinear.from_tensors(
            in_features=len(parts["suh"]),
            out_features=len(parts["svh"]),
            name=name,
            tensors=parts,
        )
        theirs = layer.get_weight_tensor(torch.float32).numpy().T
        ours = exl3.dequantize({part: value.numpy() for part, value in parts.items()})
        made[name] = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    return made
