"""What quantizing large models as Hugging Face Jobs takes and costs: computed, not run. Sizes, disk
and memory are those of real plans, of checkpoints that are headers and holes; times are measured
rates, scaled by the models' weights; machines and prices are the package's own table.

usage: python -m bench.jobs_cost [--write]    # --write: into docs/scale.md

Takes some minutes; the holes take no room on the disk.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import autoquant
from autoquant.cluster.hf_jobs import duration, flavors, hardware
from autoquant.core.bundled import MODEL
from autoquant.core.machine import cores
from autoquant.core.options import build
from autoquant.display import tables
from autoquant.forward import cost
from autoquant.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
# bench/RESULTS.md, two cores, "A model of 8 billion weights in 4 GB": Q4_K_M with checks and two
# passes of measuring took 617 s, a pass two minutes; products reach 191 GFLOP/s, of which a
# model's blocks get 0.65
GGUF = (617 - 2 * 120) / 8.03  # seconds for a billion weights
PRODUCTS = 0.65 * 191e9
CHUNKS, TOKENS = 20, 512
SHARD = 5_000_000_000
# what has been published: width, MLP, layers, heads, key and value heads, rows, experts (used)
MODELS: dict[str, tuple[int, int, int, int, int, int, int, int]] = {
    "8B (Llama 3.1)": (4096, 14336, 32, 32, 8, 128256, 0, 0),
    "32B (Qwen3)": (5120, 25600, 64, 64, 8, 151936, 0, 0),
    "70B (Llama 3.1)": (8192, 28672, 80, 64, 8, 128256, 0, 0),
    "235B-A22B (Qwen3)": (4096, 1536, 94, 64, 4, 151936, 128, 8),
}
RUNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("gguf", "GGUF Q4_K_M", {"types": ["Q4_K_M"], "pre_tokenizer": "gpt-2"}),
    ("bitsandbytes", "bitsandbytes NF4", {}),
    ("gptq", "GPTQ 4 bits", {}),
)
HEAD = ("model", "method", "download", "result", "disk", "memory", "hours, two cores", "machine")
MORE = ("hours there", "timeout", "at most")


def checkpoint(folder: Path, shape: tuple[int, ...]) -> None:
    """Write headers and holes in the shapes of a published model."""
    width, inner, layers, heads, groups, rows, experts, used = shape
    folder.mkdir(parents=True)
    config = json.loads((MODEL / "config.json").read_text())
    config.update(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=128,
        vocab_size=rows,
        dtype="bfloat16",
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )
    if experts:
        config.update(
            architectures=["Qwen3MoeForCausalLM"],
            model_type="qwen3_moe",
            num_experts=experts,
            num_experts_per_tok=used,
            moe_intermediate_size=inner,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            norm_topk_prob=True,
        )
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder / name)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, width),
        "lm_head.weight": (rows, width),
        "model.norm.weight": (width,),
    }
    for i in range(layers):
        block = f"model.layers.{i}."
        shapes |= {
            f"{block}self_attn.q_proj.weight": (128 * heads, width),
            f"{block}self_attn.k_proj.weight": (128 * groups, width),
            f"{block}self_attn.v_proj.weight": (128 * groups, width),
            f"{block}self_attn.o_proj.weight": (width, 128 * heads),
            f"{block}input_layernorm.weight": (width,),
            f"{block}post_attention_layernorm.weight": (width,),
        }
        if experts:
            shapes |= {
                f"{block}self_attn.q_norm.weight": (128,),
                f"{block}self_attn.k_norm.weight": (128,),
                f"{block}mlp.gate.weight": (experts, width),
            }
        for mlp in [f"mlp.experts.{n}." for n in range(experts)] or ["mlp."]:
            shapes |= {
                f"{block}{mlp}gate_proj.weight": (inner, width),
                f"{block}{mlp}up_proj.weight": (inner, width),
                f"{block}{mlp}down_proj.weight": (width, inner),
            }
    _write(folder, shapes)


def _write(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write safetensors files of at most 5 GB that have no data."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if held and held + size > SHARD:
            shards.append({})
            held = 0
        shards[-1][name] = shape
        held += size
    places: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        header, at = dict[str, Any](), 0
        for name, shape in shard.items():
            end = at + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
            places[name], at = file, end
        text = json.dumps(header).encode()
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + at)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def row(name: str, folder: Path, method: str, title: str, values: dict[str, Any]) -> list[str]:
    """A row of the table: what a plan says, and what its job would take."""
    options = build(METHODS[method].Options, values)
    plan = autoquant.plan(method, folder, out=folder.parent / "out", **values)
    found = cost.of(plan.source)
    tokens = CHUNKS * TOKENS
    a_pass = (2 * tokens * found.multiplied + tokens * found.head) / PRODUCTS
    billions = plan.source.parameters / 1e9
    seconds = {"measure": 2 * 2 * a_pass / cores()}
    if method == "gguf":
        seconds["quantize"] = 2 * GGUF * billions / cores()
    # as one from the Hub: all of it comes down, and lies beside the result
    size = plan.source.bytes
    source = dataclasses.replace(plan.source, revision="0" * 40)
    plan = dataclasses.replace(
        plan,
        source=source,
        seconds=seconds,
        download=size,
        disk_needed=plan.disk_needed + size,
    )
    todo = duration.work(plan, options)
    here = (todo.core + min(todo.measuring, 2 * todo.longest_measuring)) / 2 / 3600
    choice = flavors.choose(plan, options, folder.parent / "out", hardware.TABLE)
    timeout = duration.timeout(choice.seconds)
    most = math.ceil(timeout / 60) * choice.flavor.minute
    return [
        name,
        title,
        tables.size(size),
        tables.size(sum(item.bytes for item in plan.items)),
        tables.size(plan.disk_needed),
        tables.size(plan.memory_needed),
        f"{here:.1f}",
        choice.flavor.name,
        f"{choice.seconds / 3600:.1f}" + (" *" if choice.flavor.gpus and todo.on_gpu else ""),
        f"{timeout / 3600:.1f} h",
        f"${most:.2f}",
    ]


def main() -> None:
    """Compute the table, print it, and with --write put it into the document."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for i, (name, shape) in enumerate(MODELS.items()):
            folder = Path(scratch) / f"model-{i}"
            checkpoint(folder, shape)
            for method, title, values in RUNS:
                rows.append(row(name, folder, method, title, values))
                print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
            shutil.rmtree(folder)
    text = tables.markdown((*HEAD, *MORE), rows, left=2)
    print(text)
    if "--write" in sys.argv:
        path = ROOT / "docs" / "scale.md"
        begin, end = "<!-- begin job costs -->\n", "\n<!-- end job costs -->"
        before, _, rest = path.read_text(encoding="utf-8").partition(begin)
        path.write_text(before + begin + text + end + rest.partition(end)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
