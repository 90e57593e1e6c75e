"""Quantizing as a user does, in a process of its own: ``machine.call("gpu.making:make", …)``."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu.machine import call
from gpu.watch import Watch

HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}  # a CPU, even where there is a GPU
# two layers of a model of a billion weights (Llama-3.2-1B's shapes, the demo's vocabulary)
BILLION = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
}
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LAYERS, LAYERS_8B = 2, 32
WEIGHTS_8B = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336  # of a block of Llama-3.1-8B


def weights(shape: Mapping[str, int]) -> int:
    """Weights in the matrices of one block."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    head = hidden // shape["num_attention_heads"]
    return 2 * hidden * (hidden + head * shape["num_key_value_heads"]) + 3 * hidden * inner


def scale(shape: Mapping[str, int]) -> float:
    """How many times the work on LAYERS blocks of a shape is in a model of 8 billion weights."""
    return WEIGHTS_8B * LAYERS_8B / (weights(shape) * LAYERS)


def scaled(seconds: float, idle: float, shape: Mapping[str, int]) -> str:
    """What seconds for LAYERS blocks of a shape would be for 8 billion weights, in words: from all
    of them but what the demo's blocks took, which are hardly more than starting, to all of them.
    Nothing of a small shape, which says nothing about a larger one."""
    least, most = (max(0.0, one) * scale(shape) / 60 for one in (seconds - idle, seconds))
    return f", 8B {least:.0f} to {most:.0f} min" if shape == BILLION else ""


def random_model(folder: str, shape: dict[str, int]) -> dict[str, Any]:
    """A Llama of LAYERS blocks of a shape, random weights in float16, the demo's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from gpu.internals import DEMO

    torch.manual_seed(0)
    settings: dict[str, Any] = {**shape, "num_hidden_layers": LAYERS, "vocab_size": 2048}
    config: Any = LlamaConfig(bos_token_id=1, eos_token_id=2, tie_word_embeddings=False, **settings)
    made: Any = LlamaForCausalLM(config).to(torch.float16)
    made.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, Path(folder) / name)
    return {"parameters": sum(one.numel() for one in made.parameters())}


def make(method: str, model: str, out: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run a method; what it made and measured, what it started, seconds, the plan's memory."""
    import autoquant
    from gpu import internals

    planned = internals.plan(method, model, out, options)
    begin = time.monotonic()
    with internals.timed() as took, Watch(gpu=False) as watch:
        result = getattr(autoquant, method)(model, out=out, **options)
    seconds = time.monotonic() - begin
    made = []
    for one in result.artifacts:
        seen = one.evaluation
        made.append(
            {
                "type": one.type,
                "folder": str(result.path(one.type)),
                "bytes": one.bytes,
                "bits": one.bits_per_weight,
                "achieved": one.facts.get("achieved"),
                "kl": seen.kl_mean if seen else None,
                "perplexity": seen.perplexity if seen else None,
                "checks": {check.name: check.seen for check in one.checks},
            }
        )
    return {
        "made": made,
        "seconds": seconds,
        "took": took,
        "plan": planned,
        "host bytes": watch.host_bytes,
        "perplexity": result.reference.perplexity if result.reference else None,
    }


def run(
    method: str,
    model: str,
    out: Path,
    options: dict[str, Any],
    *,
    limit: float,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """:func:`make` in a process of its own, with a cache of its own: nothing measured on another
    device is taken for this one's."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        own = {"AUTOQUANT_CACHE": cache, "HF_HUB_OFFLINE": "1", **(env or {})}
        return dict(
            call(
                "gpu.making:make",
                limit=limit,
                env=own,
                method=method,
                model=model,
                out=str(out),
                options=options,
            )
        )


def measure(folder: str, chunks: int) -> dict[str, float]:
    """Measure a finished run again, by the public function."""
    import autoquant

    begin = time.monotonic()
    result = autoquant.load(folder).evaluate(chunks=chunks)
    row, reference = result.artifacts[0].evaluation, result.reference
    assert row is not None
    assert reference is not None
    return {
        "perplexity": row.perplexity,
        "kl": row.kl_mean,
        "seconds": time.monotonic() - begin,
        "reference": reference.perplexity,
    }


def in_worker(took: list[Any], wanted: str) -> float:
    """The seconds of what was started under a name, or part of it."""
    return float(sum(seconds for name, seconds in took if wanted in name))


def differences(ours: str, theirs: str) -> dict[str, Any]:
    """How the tensors of two folders of one format differ; for layers also by our own reader.

    ``codes`` is the share of whole numbers (codes, packed or not) that differ; ``weights`` the
    worst layer's ‖W − W'‖ / ‖W‖.
    """
    import numpy as np

    from gpu import internals

    one, block, layers = internals.read(ours)
    other, _, others = internals.read(theirs)
    if sorted(one.names()) != sorted(other.names()) or layers != others:
        raise RuntimeError("the folders hold different tensors")
    unequal, codes, total = [], 0, 0
    for name in one.names():
        a, b = one.get(name), other.get(name)
        same = a.shape == b.shape and np.array_equal(a, b, equal_nan=False)
        if a.shape == b.shape and a.dtype.kind in "iu" and a.size > 64:
            codes, total = codes + int((a != b).sum()), total + a.size
        if not same:
            unequal.append(name)
    worst = 0.0
    for name in layers:
        a, b = internals.weight(one, name, block), internals.weight(other, name, block)
        worst = max(worst, float(np.linalg.norm(a - b) / np.linalg.norm(a)))
    return {
        "tensors": len(one.names()),
        "unequal": unequal,
        "codes": codes / max(1, total),
        "weights": worst,
    }


def tokens(folder: str, length: int) -> list[int]:
    """The first tokens of the held-out text, for a model's tokenizer. Needs transformers."""
    from transformers import AutoTokenizer

    from gpu.internals import HELD_OUT

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    text = HELD_OUT.read_text(encoding="utf-8")[: 20 * length]
    return list(tokenizer.encode(text, add_special_tokens=False))[:length]


def context(folder: str, most: int = 256) -> int:
    """A length in tokens that a model takes."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return min(most, int(config["max_position_embeddings"]))


def processors() -> int:
    """Processors to plan with."""
    return os.cpu_count() or 1
