"""Stage 5: a model of 8 billion weights run block by block on CUDA: seconds and GPU memory, beside
accelerate's offloading to the disk; the same logits on CUDA and the CPU.
"""

from __future__ import annotations

import time
from typing import Any

from gpu import making
from gpu.machine import call
from gpu.results import Seen, Stage

CHUNKS, LENGTH, OFFLOADED = 20, 512, 2
LAYERS, VOCABULARY = 32, 128_256
MEMORY = 12_000_000_000  # bytes of the GPU's memory
RATIO = 0.7  # of accelerate's seconds
LARGE = ("8B in blocks", "8B by accelerate's offloading")


def run(stage: Stage) -> None:
    """Make the model, run it both ways, and a small one on both devices."""
    folder = str(stage.work / "eight-billion")
    shape = making.SMALL if stage.rehearse else {**making.BILLION, **EIGHT_BILLION}
    layers, vocabulary = (2, 2048) if stage.rehearse else (LAYERS, VOCABULARY)
    seen: dict[str, Any] = {}
    asked: dict[str, Any] = {
        "folder": folder,
        "shape": shape,
        "layers": layers,
        "vocabulary": vocabulary,
    }
    limit = 90
    if stage.wanted(*LARGE):
        call("gpu.blocks:random_checkpoint", limit=limit, **asked)

    def blocks() -> Seen:
        seen["blocks"] = call("gpu.blocks:in_blocks", limit=limit, folder=folder)
        one = seen["blocks"]
        said = f"{CHUNKS} chunks in {one['seconds']:.1f} s, {one['bytes'] / 1e9:.2f} GB"
        fits = one["bytes"] <= MEMORY
        return Seen(fits, said, f"{MEMORY / 1e9:.0f} GB", one, one["seconds"])

    def offloaded() -> Seen:
        one = call("gpu.blocks:offloaded", limit=limit, folder=folder)
        whole = one["seconds"] * CHUNKS / OFFLOADED
        ratio = seen["blocks"]["seconds"] / whole
        said = f"accelerate {one['seconds']:.1f} s for {OFFLOADED} chunks: ratio {ratio:.2f}"
        return Seen(
            stage.rehearse or ratio <= RATIO,
            said,
            f"{RATIO}",
            {**one, "ratio": ratio},
            one["seconds"],
        )

    def apart() -> Seen:
        one = call("gpu.blocks:both_devices", limit=limit)
        return Seen(one["apart"] <= 1e-5, f"relative {one['apart']:.0e}", "1e-5", one)

    def gradients() -> Seen:
        one = call("gpu.blocks:squared_gradients", limit=limit)
        said = f"relative {one['apart']:.0e} over {one['matrices']:.0f} matrices"
        return Seen(one["apart"] <= 1e-3, said, "1e-3", one)

    stage.check(LARGE[0], blocks, needs_cuda=True, cpu_too=True)
    stage.check(LARGE[1], offloaded, needs_cuda=True, cpu_too=True)
    stage.check("the bundled model on CUDA and the CPU", apart, needs_cuda=True, cpu_too=True)
    stage.check("its squared gradients on both", gradients, needs_cuda=True, cpu_too=True)


EIGHT_BILLION = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def random_checkpoint(
    folder: str, shape: dict[str, int], layers: int, vocabulary: int
) -> dict[str, Any]:
    """Write a random Llama, a file a block, made on the GPU if there is one."""
    import json
    from pathlib import Path

    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    on = "cuda" if torch.cuda.is_available() else "cpu"
    config: Any = LlamaConfig(
        num_hidden_layers=layers, vocab_size=vocabulary, tie_word_embeddings=False, **shape
    )
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    with torch.device("meta"):
        shapes = {n: one.shape for n, one in LlamaForCausalLM(config).state_dict().items()}
    place = Path(folder)
    place.mkdir(parents=True)
    config.save_pretrained(folder)
    groups: dict[str, list[str]] = {}
    for name in shapes:
        parts = name.split(".")
        groups.setdefault(parts[2] if "layers" in parts else "rest", []).append(name)
    index: dict[str, str] = {}
    for key, names in groups.items():
        tensors = {
            name: (torch.randn(shapes[name], device=on) * 0.02).to(torch.bfloat16).cpu()
            for name in names
        }
        save_file(tensors, place / f"model-{key}.safetensors", metadata={"format": "pt"})
        index |= dict.fromkeys(names, f"model-{key}.safetensors")
    text = json.dumps({"metadata": {}, "weight_map": index})
    (place / "model.safetensors.index.json").write_text(text)
    return {"tensors": len(index)}


def _chunks(count: int, length: int, vocabulary: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (count, length), generator=generator)


def in_blocks(folder: str) -> dict[str, float]:
    """Seconds, and the GPU's memory at most, of final hidden states and logits."""
    import torch

    from gpu import internals

    on = "cuda" if torch.cuda.is_available() else "cpu"
    begun = time.monotonic()
    model = internals.blockwise(folder, on, part=16)
    length = min(LENGTH, model.config.max_position_embeddings)
    ids = _chunks(CHUNKS, length, model.config.vocab_size)
    internals.logits(model, ids)
    taken = torch.cuda.max_memory_allocated() if on == "cuda" else 0
    return {"seconds": time.monotonic() - begun, "bytes": taken}


def offloaded(folder: str) -> dict[str, float]:
    """Seconds of accelerate's disk offloading, one chunk after the other, loading left out."""
    import torch
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch
    from transformers import AutoConfig, AutoModelForCausalLM

    on: Any = 0 if torch.cuda.is_available() else "cpu"
    config = AutoConfig.from_pretrained(folder)
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    places = {"model.embed_tokens": on, "model.norm": on, "model.rotary_emb": on, "lm_head": on}
    places |= {f"model.layers.{i}": "disk" for i in range(config.num_hidden_layers)}
    model = load_checkpoint_and_dispatch(
        model, folder, device_map=places, offload_folder=f"{folder}-offloaded", dtype=torch.float32
    )
    length = min(LENGTH, config.max_position_embeddings)
    ids = _chunks(OFFLOADED, length, config.vocab_size)
    begun = time.monotonic()
    with torch.inference_mode():
        for chunk in ids:
            model(input_ids=chunk[None].to(on), use_cache=False).logits.sum().item()
    return {"seconds": time.monotonic() - begun}


def both_devices() -> dict[str, float]:
    """How far the bundled model's logits on CUDA are from the CPU's, relative."""
    import torch

    from gpu import internals

    folder = str(internals.DEMO)
    devices = ["cuda" if torch.cuda.is_available() else "cpu", "cpu"]
    found = []
    for on in devices:
        model = internals.blockwise(folder, on, part=2)
        found.append(internals.logits(model, _chunks(4, 128, 2000)).cpu())
    return {"apart": float((found[0] - found[1]).norm() / found[1].norm())}


def squared_gradients() -> dict[str, float]:
    """How far the bundled model's squared gradients on CUDA are from the CPU's, relative, at most;
    and of how many matrices, those of the two ends among them.
    """
    import torch

    from gpu import internals

    devices = ["cuda" if torch.cuda.is_available() else "cpu", "cpu"]
    ids = _chunks(4, 128, 2000)
    one, other = (
        internals.squared_gradients(internals.blockwise(str(internals.DEMO), on, part=2), ids)
        for on in devices
    )
    assert one.keys() == other.keys()
    apart = [float((one[name] - other[name]).norm() / other[name].norm()) for name in one]
    return {"apart": max(apart), "matrices": float(len(apart))}
