"""Layouts in which checkpoints are published: each changes a folder that transformers has saved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Change = Callable[[str, Any], Iterable[tuple[str, Any]]]
BLOCK = re.compile(r"\.layers\.\d+\..*\.weight$")
FP4 = (0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6)


def config(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text())), indent=1) + "\n")


def load(folder: Path) -> dict[str, Any]:
    """All tensors."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def store(folder: Path, tensors: dict[str, Any]) -> None:
    """Write all tensors into one file."""
    from safetensors.torch import save_file

    for path in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        path.unlink()
    held = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def retensor(folder: Path, change: Change) -> None:
    """Write what each tensor becomes."""
    made = [one for name, tensor in load(folder).items() for one in change(name, tensor)]
    store(folder, dict(made))


def text_part(data: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the language model."""
    inner: dict[str, Any] = data.get("text_config", data)
    return inner


# --- configs


def old_rope(folder: Path) -> None:
    """A config as transformers 4 wrote it."""

    def change(data: dict[str, Any]) -> dict[str, Any]:
        rope = data.pop("rope_parameters", None) or {}
        kind = rope.get("rope_type", "default")
        theta = rope.pop("rope_theta", 10000.0)
        data["torch_dtype"] = data.pop("dtype")
        scaling = None if kind == "default" else rope
        return {**data, "rope_theta": theta, "rope_scaling": scaling}

    config(folder, change)


def old_neox(folder: Path) -> None:
    """GPT-NeoX's own names of the rotary fields, which transformers renames as it reads them."""

    def change(data: dict[str, Any]) -> dict[str, Any]:
        data.pop("rope_parameters", None)
        return {**data, "rotary_pct": 0.25, "rotary_emb_base": 10000}

    config(folder, change)


def own_architecture(folder: Path) -> None:
    """An architecture that only code of the model's own knows."""
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    named = {"architectures": ["Phi4MMForCausalLM"], "model_type": "phi4mm", "auto_map": own}
    config(folder, lambda data: {**data, **named})


def draft_in_config(folder: Path) -> None:
    """A config that counts a block for multi-token prediction."""

    def change(data: dict[str, Any]) -> dict[str, Any]:
        text_part(data).update(mtp_num_hidden_layers=1, mtp_use_dedicated_embeddings=False)
        return data

    config(folder, change)


# --- files


def sharded(folder: Path) -> None:
    """Several files."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    tensors = load(folder)
    (folder / "model.safetensors").unlink()
    shards = split_torch_state_dict_into_shards(tensors, max_shard_size="1MB")
    for file, names in shards.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled(folder: Path) -> None:
    """The weights as a pickle."""
    import torch

    torch.save(load(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def in_float32(folder: Path) -> None:
    """The weights in float32."""
    retensor(folder, lambda name, tensor: [(name, tensor.float())])


# --- blocks and experts


def draft_block(folder: Path) -> None:
    """A block for multi-token prediction, which transformers leaves out."""
    import torch

    tensors = load(folder)
    last = max(int(found[1]) for name in tensors if (found := re.search(r"layers\.(\d+)\.", name)))
    wide = next(one.shape[1] for name, one in tensors.items() if "embed_tokens" in name)
    more = {
        f"mtp.layers.0.{name.partition(f'layers.{last}.')[2]}": tensor.clone()
        for name, tensor in tensors.items()
        if f"layers.{last}." in name and "visual" not in name
    }
    more["mtp.fc.weight"] = torch.zeros(wide, 2 * wide, dtype=torch.bfloat16)
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        more[f"mtp.{name}.weight"] = torch.zeros(wide, dtype=torch.bfloat16)
    store(folder, {**tensors, **more})


def block_beyond(folder: Path) -> None:
    """The same as one more block, as DeepSeek and GLM publish it."""
    import torch

    tensors, last = load(folder), "model.layers.1."
    more = {
        name.replace(last, "model.layers.2."): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(last)
    }
    for name in ("enorm", "hnorm", "shared_head.norm"):
        more[f"model.layers.2.{name}.weight"] = torch.ones(256, dtype=torch.bfloat16)
    more["model.layers.2.eh_proj.weight"] = torch.zeros(256, 512, dtype=torch.bfloat16)
    store(folder, {**tensors, **more})
    config(folder, lambda data: {**data, "num_nextn_predict_layers": 1})


def fused_experts(folder: Path) -> None:
    """All experts of a block in one tensor for each projection."""
    import torch

    tensors = load(folder)
    groups: dict[str, dict[tuple[int, str], Any]] = {}
    for name in list(tensors):
        if found := re.match(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight$", name):
            groups.setdefault(found[1], {})[int(found[2]), found[3]] = tensors.pop(name)
    for base, held in groups.items():
        many = range(1 + max(number for number, _ in held))
        joined = [torch.cat([held[i, "gate"], held[i, "up"]]) for i in many]
        tensors[f"{base}.gate_up_proj"] = torch.stack(joined)
        tensors[f"{base}.down_proj"] = torch.stack([held[i, "down"] for i in many])
    store(folder, tensors)


# --- quantized sources


def fp8_blocks(folder: Path) -> None:
    """FP8 with a scale for each block of 128 by 128, as DeepSeek and Qwen publish it."""
    import torch

    def change(name: str, tensor: Any) -> list[tuple[str, Any]]:
        if tensor.ndim != 2 or not BLOCK.search(name) or name.endswith("mlp.gate.weight"):
            return [(name, tensor)]
        rows, columns = (-(-size // 128) for size in tensor.shape)
        padded = torch.zeros(rows * 128, columns * 128)
        padded[: tensor.shape[0], : tensor.shape[1]] = tensor.float()
        blocks = padded.view(rows, 128, columns, 128)
        scale = blocks.abs().amax((1, 3)).clamp(min=1e-8) / 448
        codes = (blocks / scale[:, None, :, None]).view(rows * 128, -1)
        codes = codes[: tensor.shape[0], : tensor.shape[1]].to(torch.float8_e4m3fn)
        return [(name, codes), (name.replace(".weight", ".weight_scale_inv"), scale.float())]

    retensor(folder, change)
    block = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}
    full = {"quantization_config": {**block, "weight_block_size": [128, 128]}}
    config(folder, lambda data: {**data, **full})


def fp8_per_tensor(folder: Path) -> None:
    """FP8 with a scale for each tensor and for its inputs, as Ministral 3 is published."""
    import torch

    def change(name: str, tensor: Any) -> list[tuple[str, Any]]:
        if tensor.ndim != 2 or not BLOCK.search(name) or "vision" in name:
            return [(name, tensor)]
        scale = tensor.float().abs().max() / 448
        codes = (tensor.float() / scale).to(torch.float8_e4m3fn)
        one = torch.tensor(1.0).bfloat16()
        return [
            (name, codes),
            (name.replace(".weight", ".weight_scale_inv"), scale.bfloat16()),
            (name.replace(".weight", ".activation_scale"), one),
        ]

    retensor(folder, change)
    block = {"activation_scheme": "static", "quant_method": "fp8", "weight_block_size": None}
    config(folder, lambda data: {**data, "quantization_config": block})


def int8_channels(folder: Path) -> None:
    """INT8 with a scale for each output, in compressed-tensors."""
    import torch

    def change(name: str, tensor: Any) -> list[tuple[str, Any]]:
        if tensor.ndim != 2 or not BLOCK.search(name):
            return [(name, tensor)]
        scale = tensor.float().abs().amax(1, keepdim=True) / 127
        codes = (tensor.float() / scale).round().to(torch.int8)
        return [(name, codes), (name.replace(".weight", ".weight_scale"), scale.bfloat16())]

    retensor(folder, change)
    common = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**common, "strategy": "channel", "dynamic": False},
        "input_activations": {**common, "strategy": "token", "dynamic": True},
    }
    block = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    config(folder, lambda data: {**data, "quantization_config": block})


def mxfp4(folder: Path) -> None:
    """Experts in MXFP4: blocks of 32 along the inputs that share a power of two, as GPT-OSS is
    published.
    """
    import torch

    values = torch.tensor(FP4)

    def change(name: str, tensor: Any) -> list[tuple[str, Any]]:
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            return [(name, tensor)]
        weight = tensor.float().transpose(1, 2).contiguous()  # [experts, outputs, inputs]
        blocks = weight.view(*weight.shape[:2], -1, 32)
        exponent = torch.floor(torch.log2(blocks.abs().amax(-1).clamp(min=1e-20))) - 2
        scaled = blocks / torch.exp2(exponent)[..., None]
        codes = (scaled[..., None] - values).abs().argmin(-1).to(torch.uint8)
        packed = codes[..., 0::2] | (codes[..., 1::2] << 4)
        return [(f"{name}_blocks", packed), (f"{name}_scales", (exponent + 127).to(torch.uint8))]

    retensor(folder, change)
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    block = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    config(folder, lambda data: {**data, "quantization_config": block})
