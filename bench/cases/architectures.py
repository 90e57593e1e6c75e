"""Tiny random models of the architectures that people quantize, in the layouts of today's Hub.

``python -m bench.cases.architectures FOLDER [NAME...]`` writes FOLDER/NAME. Imports torch and
transformers: tests call :func:`make` in a worker. They have the bundled model's tokenizer, or one
of the SentencePiece kind where the published models have that.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoquant.core.bundled import MODEL
from bench.cases import layouts, pieces
from bench.cases.texts import BASE, SPEAKING
from bench.cases.vision import PROCESSOR, SEEING

MODELS = {**SPEAKING, **SEEING}
SPECIAL = (
    "[gMASK] <sop> <|endoftext|> <|user|> <|assistant|> <|observation|> <|system|> <|im_start|>"
    " <|im_end|> <|image_pad|> <|vision_start|> <|vision_end|> <|video_pad|> <|object_ref_start|>"
    " [IMG_BREAK] [IMG_END] [IMG]"
).split()
OF_PIECES = (
    "gemma2",
    "gemma3_text",
    "gemma3_vision",
    "gemma3n_text",
    "gemma4_text",
    "gemma4_e_text",
    "gemma4_vision",
    "mistral_old",
    "mixtral_old",
    "phi3",
)
Layout = Callable[[Path], None]
# as published: another layout of a model, or of its config
PUBLISHED: dict[str, tuple[str, tuple[Layout, ...]]] = {
    "llama_old": ("llama", (layouts.old_rope,)),
    "mistral_old": ("mistral", (layouts.old_rope,)),
    "mixtral_old": ("mixtral", (layouts.old_rope,)),
    "gpt_neox_old": ("gpt_neox", (layouts.old_neox,)),
    "llama_float32": ("llama", (layouts.in_float32,)),
    "llama_sharded": ("llama", (layouts.sharded,)),
    "llama_pickle": ("llama", (layouts.pickled,)),
    "llama_padded": ("llama_more_rows", ()),
    "qwen3_fp8": ("qwen3", (layouts.fp8_blocks,)),
    "deepseek_v3_fp8": ("deepseek_v3", (layouts.fp8_blocks, layouts.old_rope)),
    "ministral3_fp8": ("ministral3", (layouts.fp8_per_tensor,)),
    "llama_w8a8": ("llama", (layouts.int8_channels,)),
    "gpt_oss_mxfp4": ("gpt_oss", (layouts.mxfp4,)),
    "qwen35_mtp": ("qwen35", (layouts.draft_block, layouts.draft_in_config)),
    "qwen35_no_mtp": ("qwen35", (layouts.draft_in_config,)),
    "qwen35_text_mtp": ("qwen35_text", (layouts.draft_block, layouts.draft_in_config)),
    "qwen35_moe_mtp": ("qwen35_moe", (layouts.draft_block, layouts.draft_in_config)),
    "qwen35_moe_fused": ("qwen35_moe", (layouts.fused_experts,)),
    "qwen3_next_mtp": ("qwen3_next", (layouts.draft_block,)),
    "glm4_moe_mtp": ("glm4_moe", (layouts.block_beyond,)),
    "phi4_own_code": ("phi4_mini", (layouts.own_architecture,)),
}
MODELS["llama_more_rows"] = ("LlamaForCausalLM", "LlamaConfig", {"vocab_size": 2176})


def names() -> list[str]:
    """All that can be made."""
    return sorted({*MODELS, *PUBLISHED} - {"llama_more_rows"})


def make(name: str, folder: str, seed: int = 0) -> str:
    """Write a model; its folder."""
    made, (base, changes) = Path(folder), PUBLISHED.get(name, (name, ()))
    kind, config_kind, options = MODELS[base]
    _save(kind, config_kind, options, made, seed)
    for change in changes:
        change(made)
    if name in OF_PIECES:
        pieces.write(made, tuple(SPECIAL), space_before=not name.startswith("gemma"))
    return str(made)


def _save(kind: str, config_kind: str, options: dict[str, Any], folder: Path, seed: int) -> None:
    import torch
    import transformers

    if "text" in options:
        beside = {name: value for name, value in options.items() if name != "text"}
        config = getattr(transformers, config_kind)(
            text_config={**BASE, **options["text"]}, **beside
        )
    else:
        config = getattr(transformers, config_kind)(**{**BASE, **options})
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(config).eval()
    randomize(model, seed)
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer(folder)
    if "vision_config" in options:
        text = json.dumps(processor(config.vision_config), indent=2)
        (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")


def processor(vision: Any) -> dict[str, Any]:
    """The image processor's file; Qwen's counts pixels, and joins patches."""
    size = {"height": 56, "width": 56}
    if hasattr(vision, "spatial_merge_size") and hasattr(vision, "depth"):
        size = {"shortest_edge": 3136, "longest_edge": 12544}
        joined = {"merge_size": vision.spatial_merge_size, "temporal_patch_size": 2}
        return {**PROCESSOR, **joined, "size": size, "patch_size": vision.patch_size}
    return {**PROCESSOR, "size": size}


def tokenizer(folder: Path) -> None:
    """The bundled model's tokenizer, with the special tokens that model families look for by name;
    the models have rows for them.
    """
    shutil.copyfile(MODEL / "tokenizer_config.json", folder / "tokenizer_config.json")
    data = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data["added_tokens"] += [
        {"id": 2048 + i, "content": token, "special": True, **plain}
        for i, token in enumerate(SPECIAL)
    ]
    text = json.dumps(data, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")


def randomize(model: Any, seed: int) -> None:
    """Weights with which a random model's predictions differ from token to token: transformers'
    own beginnings are too small for that.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    # Gemma and Granite scale their embeddings up, and Granite its logits down
    kind = type(model).__name__
    embeddings, last = (0.12, 0.0)
    for name, scale, more in (("Gemma", 0.0075, 15.0), ("Granite", 0.01, 59.0)):
        if kind.startswith(name):
            embeddings, last = scale, more
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if parameter.ndim == 1 or "A_log" in name:
                parameter.add_(0.1 * noise)
                if kind.startswith(("Gemma3n", "Gemma4")) and "q_norm" in name:
                    parameter.mul_(0.2)  # their attention does not scale down otherwise
                outside = ".layers." not in name and "vision" not in name
                if outside and name.endswith("norm.weight"):
                    parameter.add_(last)
            elif any(part in name for part in ("embed", "wte", "wpe")):
                parameter.copy_(embeddings * noise)
            elif "conv" in name:
                parameter.copy_(0.4 * noise)
            else:
                fan = min(parameter.shape[-2:]) if parameter.ndim == 3 else parameter.shape[-1]
                parameter.copy_(1.2 * noise / math.sqrt(fan))


def main() -> None:
    """Write models into a folder."""
    target, *wanted = sys.argv[1:]
    for name in wanted or names():
        sys.stdout.write(f"{json.dumps(make(name, str(Path(target) / name)))}\n")


if __name__ == "__main__":
    main()
