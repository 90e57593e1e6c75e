"""exllamav2 on the stand-in for a GPU, beside transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.models import tiny


def in_exllamav2(models: dict[str, dict[str, Any]], scratch: str) -> dict[str, Any]:
    """Tiny models (name -> architecture and config for :func:`tiny`) run by exllamav2, on the
    stand-in, beside transformers.
    """
    made = {}
    for name, config in models.items():
        folder = tiny(f"{scratch}/{name}", **config)
        made[name] = _beside_transformers(folder, f"{scratch}/{name}.staged")
    return made


def exllamav2_config(folder: str) -> dict[str, Any]:
    """What exllamav2 reads of a model's rotary embeddings."""
    from exllamav2 import ExLlamaV2Config

    config = ExLlamaV2Config()
    config.model_dir = folder
    config.prepare()
    return {
        "rope_theta": config.rotary_embedding_base,
        "scaling": config.alt_rope_method,
        "factor": getattr(config, "l3_rope_factor", None),
    }


def _beside_transformers(folder: str, staged: str) -> dict[str, Any]:
    """An unquantized model run by exllamav2's own modules, as its converter runs them, and by
    transformers.

    Returns how far logits are apart, relative to their size, and how far the states before a
    changed last token move.
    """
    import torch
    from exllamav2 import ExLlamaV2, ExLlamaV2Config
    from exllamav2.attn import ExLlamaV2Attention
    from exllamav2.parallel_decoder import ExLlamaV2ParallelDecoder
    from transformers import AutoModelForCausalLM

    from autoquant.backends.exllamav2 import converter

    config = ExLlamaV2Config()
    config.model_dir = str(converter.stage(Path(folder), Path(staged)))
    config.prepare()
    config.arch_compat_overrides()
    model = ExLlamaV2(config)
    model.load(lazy=True)
    torch.manual_seed(1)
    ids = torch.randint(3, 2048, (1, 48))

    @torch.inference_mode()
    def run(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, middle = tokens, tokens
        for module in model.modules:
            module.load()
            params = (
                ExLlamaV2Attention.Params(1, tokens.shape[1], 0, None, None)
                if isinstance(module, (ExLlamaV2Attention, ExLlamaV2ParallelDecoder))
                else None
            )
            states = module.forward(states, cache=None, attn_params=params)
            if module is model.modules[-2]:
                middle = states
        return states[:, :, :2048].float(), middle.float()

    logits, states = run(ids)
    other = ids.clone()
    other[0, -1] = 5 if ids[0, -1] != 5 else 6
    moved = float((run(other)[1][:, :-1] - states[:, :-1]).abs().max() / states.abs().max())
    with torch.inference_mode():
        theirs = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            .eval()(input_ids=ids)
            .logits
        )
    return {"apart": float((logits - theirs).norm() / theirs.norm()), "moved": moved}


def exl2_weights(folder: str, layers: list[str]) -> dict[str, Any]:
    """What exllamav2 itself (its make_q_matrix, on the stand-in for its kernels) makes of layers of
    an EXL2 folder: how tests/data/exl2/weights.json was made.
    """
    import hashlib

    import torch
    from exllamav2.ext import exllamav2_ext, make_q_matrix, none_tensor
    from safetensors.torch import load_file

    from autoquant.formats import exl2 as format

    tensors = load_file(f"{folder}/output.safetensors")
    made = {}
    for name in layers:
        parts = {part: tensors[f"{name}.{part}"] for part in format.PARTS}
        arrays = {part: value.numpy().copy() for part, value in parts.items()}
        weight = torch.empty(len(parts["q_invperm"]), parts["q_weight"].shape[1], dtype=torch.half)
        exllamav2_ext.reconstruct(
            make_q_matrix(
                {**parts, "q_perm": torch.argsort(parts["q_invperm"]).int()}, none_tensor
            ),
            weight,
        )
        weight = weight.T.contiguous()
        made[name] = {
            "shape": list(weight.shape),
            "sha256": hashlib.sha256(weight.numpy().tobytes()).hexdigest(),
            "bits": 8 * sum(one.nbytes for one in arrays.values()) / weight.numel(),
            "groups": format.groups(arrays),
        }
    return made
