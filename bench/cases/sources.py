"""Altered copies of the bundled model, one for each kind of trouble that checkpoints have.

``python -m bench.cases.sources FOLDER [NAME...]`` writes FOLDER/NAME.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from autoquant.core.bundled import MODEL
from bench.cases import configured  # noqa: F401 (notes its cases)
from bench.cases.altered import (
    CASES,
    INDEX,
    WEIGHTS,
    case,
    config,
    save,
    shard,
    tensors,
    without,
)


def make(name: str, folder: Path) -> Path:
    """A copy of the bundled model in ``folder``, altered."""
    shutil.copytree(MODEL, folder)
    CASES[name](folder)
    return folder


# --- tensors


@case
def head_tied(folder: Path) -> None:
    """A head of its own, which config.json ties to the embeddings."""
    config(folder, tie_word_embeddings=True)
    weights = tensors(folder)
    save(folder, {**weights, "lm_head.weight": weights["model.embed_tokens.weight"][::-1].copy()})


@case
def head_missing(folder: Path) -> None:
    """No output head, and none is tied."""
    without(folder, "lm_head.weight")


@case
def tensor_missing(folder: Path) -> None:
    """A matrix of a block is not there."""
    without(folder, "model.layers.2.mlp.up_proj.weight")


@case
def classifier(folder: Path) -> None:
    """A classification head in place of the output head."""
    weights = tensors(folder)
    del weights["lm_head.weight"]
    save(folder, {**weights, "score.weight": np.ones((1, 256), np.float16)})
    config(folder, architectures=["LlamaForSequenceClassification"])


@case
def shape_wrong(folder: Path) -> None:
    """A matrix of another shape than config.json says."""
    wrong = np.ones((512, 256), np.float16)
    save(folder, {**tensors(folder), "model.layers.2.mlp.up_proj.weight": wrong})


@case
def vocabulary_stale(folder: Path) -> None:
    """Embeddings were padded, and config.json still has the old number."""
    weights = tensors(folder)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = np.concatenate([weights[name], np.zeros((64, 256), np.float16)])
    save(folder, weights)


@case
def prefix_missing(folder: Path) -> None:
    """Saved from the bare model: no prefix and no head, which is tied."""
    weights = tensors(folder)
    save(
        folder,
        {
            name.removeprefix("model."): value
            for name, value in weights.items()
            if name.startswith("model.")
        },
    )
    config(folder, tie_word_embeddings=True)


@case
def draft_block(folder: Path) -> None:
    """A block for multi-token prediction beside the model."""
    weights = tensors(folder)
    drafts = {
        name.replace("model.layers.3.", "mtp.layers.0."): value.copy()
        for name, value in weights.items()
        if name.startswith("model.layers.3.")
    }
    save(folder, {**weights, **drafts})


@case
def pruned(folder: Path) -> None:
    """config.json counts three blocks, the weights have four."""
    config(folder, num_hidden_layers=3)


@case
def rotary_frequencies(folder: Path) -> None:
    """Frequencies that old releases saved."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save(folder, {**tensors(folder), name: np.ones(32, np.float32)})


@case
def adapter_inside(folder: Path) -> None:
    """LoRA matrices that were not merged, under the names peft gives them."""
    weights = {}
    for name, value in tensors(folder).items():
        if "q_proj" not in name:
            weights[name] = value
            continue
        weights[name.replace("q_proj.", "q_proj.base_layer.")] = value
        for side, shape in (("A", (4, 256)), ("B", (256, 4))):
            other = name.replace("q_proj.weight", f"q_proj.lora_{side}.default.weight")
            weights[other] = np.ones(shape, np.float16)
    save(folder, weights)


@case
def wrapped(folder: Path) -> None:
    """Saved from within peft's wrapper."""
    weights = tensors(folder)
    save(folder, {f"base_model.model.{name}": value for name, value in weights.items()})


@case
def adapter_beside(folder: Path) -> None:
    """A whole model, and an adapter that lies beside it."""
    names = [name for name in tensors(folder) if "q_proj" in name]
    weights = {}
    for name in names:
        inner = f"base_model.model.{name}"
        weights[inner.replace("weight", "lora_A.weight")] = np.ones((4, 256), np.float32)
        weights[inner.replace("weight", "lora_B.weight")] = np.ones((256, 4), np.float32)
    save(folder, weights, "adapter_model.safetensors")
    config(
        folder,
        "adapter_config.json",
        peft_type="LORA",
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=8,
        target_modules=["q_proj"],
        base_model_name_or_path="somebody/something",
    )


@case
def adapter_alone(folder: Path) -> None:
    """An adapter, with its base's config.json, as trainers push it."""
    adapter_beside(folder)
    (folder / WEIGHTS).unlink()


# --- values


@case
def not_finite(folder: Path) -> None:
    """NaN in the embedding of a token that hardly occurs."""
    weights = tensors(folder)
    weights["model.embed_tokens.weight"][2001, 7] = np.nan
    save(folder, weights)


@case
def beyond_float16(folder: Path) -> None:
    """A value in float32 that float16 does not have, in the embedding of a rare token."""
    weights = {name: value.astype(np.float32) for name, value in tensors(folder).items()}
    weights["model.embed_tokens.weight"][2001, 7] = 1e5
    save(folder, weights)
    config(folder, dtype="float32")


@case
def double_precision(folder: Path) -> None:
    """Weights in float64."""
    save(folder, {name: value.astype(np.float64) for name, value in tensors(folder).items()})
    config(folder, dtype="float64")


# --- files


@case
def index_without_metadata(folder: Path) -> None:
    """transformers 5 raises KeyError."""
    shard(folder, {})


@case
def index_null_metadata(folder: Path) -> None:
    """The same."""
    shard(folder, {"metadata": None})


@case
def index_missing(folder: Path) -> None:
    """All shards, and no index."""
    shard(folder, None)


@case
def shard_missing(folder: Path) -> None:
    """One of two shards, and no index."""
    shard(folder, None)
    (folder / "model-00002-of-00002.safetensors").unlink()


@case
def named_otherwise(folder: Path) -> None:
    """One file under another name."""
    (folder / WEIGHTS).rename(folder / "pytorch_model.safetensors")


@case
def one_shard(folder: Path) -> None:
    """One file named as a shard, without an index."""
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")


@case
def two_checkpoints(folder: Path) -> None:
    """Two files, of which nothing says which is the model."""
    (folder / WEIGHTS).rename(folder / "ema.safetensors")
    shutil.copyfile(folder / "ema.safetensors", folder / "last.safetensors")


@case
def subfolder(folder: Path) -> None:
    """An index that names a file in a subfolder."""
    weights = tensors(folder)
    save(folder, weights, "weights/part.safetensors")
    (folder / WEIGHTS).unlink()
    listed = dict.fromkeys(weights, "weights/part.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))


@case
def consolidated(folder: Path) -> None:
    """Mistral's own layout only."""
    (folder / WEIGHTS).rename(folder / "consolidated.safetensors")


@case
def gguf_only(folder: Path) -> None:
    """A repository of GGUF files."""
    for name in (WEIGHTS, "config.json"):
        (folder / name).unlink()
    (folder / "model-Q8_0.gguf").write_bytes(b"GGUF")


def main() -> None:
    """Write cases into a folder."""
    target, *names = sys.argv[1:]
    for name in names or CASES:
        sys.stdout.write(f"{make(name, Path(target) / name)}\n")


if __name__ == "__main__":
    main()
