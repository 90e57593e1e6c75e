"""What the backends share that turn one folder into another.

Each backend's function takes ``model`` and ``target`` (folders), ``scratch`` (a folder of its own)
and ``report``; those that calibrate also ``packing`` (the arguments of calibration.pack without the
folder), GPTQ, AWQ and AutoRound ``batch_size``. Each raises InputError for an architecture it does
not know, weights that are not finite and a text that is too short. Those that calibrate return how
many samples there were, and their hash.
"""

from __future__ import annotations

import gc
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoquant import calibration
from autoquant.backends.arithmetic import multiply_in_float32
from autoquant.core.errors import InputError
from autoquant.formats.checkpoint import carry, listed, weight_files

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def begin(model: str, scratch: str) -> tuple[dict[str, Any], Any]:
    """Refuse damaged weights, move to the scratch folder (GPTQModel writes a logs folder wherever
    it is started).

    Returns the model's config, and the 16-bit dtype to work in. On a GPU the source's own, bfloat16
    for one in float32 if the GPU has it. On a CPU bfloat16, GPTQModel's own choice there (float16
    takes longer: bench/RESULTS.md); what is not quantized is the source's again in the end.
    """
    import torch

    os.makedirs(scratch, exist_ok=True)
    os.chdir(scratch)
    sizes = refuse_damaged(model)
    config: dict[str, Any] = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    own = sizes.most_common(1)[0][0]
    if not torch.cuda.is_available():
        multiply_in_float32()
        return config, torch.bfloat16
    if own != torch.float16:
        own = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return config, own


def freeze() -> None:
    """Take what was imported out of garbage collection, in this process: AutoRound and GPTQModel
    collect after every layer, and went through half a million objects of modules each time
    (bench/RESULTS.md). Called before a model is loaded, whose parts are to be found by it.
    """
    gc.collect()
    gc.freeze()


def refuse_damaged(model: str) -> Counter[Any]:
    """Refuse weights that are not finite; how many weights there are of each torch dtype. Memory:
    one tensor.
    """
    import torch
    from safetensors import safe_open

    sizes = Counter[Any]()
    for path in weight_files(Path(model)):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                sizes[tensor.dtype] += tensor.numel()
                if not tensor.is_floating_point() or tensor.numel() == 0:
                    continue
                if "float8" in str(tensor.dtype):
                    tensor = tensor.float()
                # the largest magnitude is NaN if one value is
                most = float(tensor.abs().max())
                if not math.isfinite(most):
                    raise InputError(
                        f"{path.name}: {name} has NaN or Inf values"
                        f"{_first_row(~torch.isfinite(tensor))}; the model is damaged"
                    )
    return sizes


def _first_row(where: Any) -> str:
    """In which row of a matrix something is first."""
    return f" (first in row {int(where.nonzero()[0][0])})" if where.ndim > 1 else ""


def finite(model: str) -> bool:
    """True, or InputError for weights that are not finite. Runs in a worker."""
    return bool(refuse_damaged(model))


def blocks_of(config: dict[str, Any]) -> int:
    """How many blocks a model has, by its config."""
    return int((config.get("text_config") or config).get("num_hidden_layers") or 1)


def used(ids: list[list[int]]) -> dict[str, Any]:
    """What a backend says of the samples it used."""
    return {"samples": len(ids), "calibration sha256": calibration.digest(ids)}


def half_dtype(model: str) -> Any:
    """The 16-bit dtype of a model that is quantized without looking at data: its own, bfloat16 for
    one in float32.
    """
    import torch

    return torch.float16 if _dtype(Path(model)) == "float16" else torch.bfloat16


def keep_config(
    folder: Path, config: dict[str, Any], more: Mapping[str, Any] | None = None
) -> None:
    """Put the source's own config in place of what transformers 5 made of it, with the quantization
    block that was written: release 4 finds no ``rope_theta`` in the newer form and silently takes
    10000. Whether the output head is tied is as it was written, for a library may have untied it.
    ``more`` is added to the quantization block.
    """
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    kept = {
        name: written[name]
        for name in ("quantization_config", "tie_word_embeddings")
        if name in written
    }
    kept["quantization_config"] = {**kept["quantization_config"], **(more or {})}
    path.write_text(json.dumps({**config, **kept}, indent=2) + "\n", encoding="utf-8")


def _dtype(folder: Path) -> str:
    """The dtype most of the unquantized weights have."""
    from safetensors import safe_open

    sizes = Counter[str]()
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                if name.endswith(".weight") and part.get_dtype() in FLOATS:
                    sizes[part.get_dtype()] += math.prod(part.get_shape())
    return FLOATS[sizes.most_common(1)[0][0]]


def tidy(folder: Path, model: str) -> None:
    """Make one clean model folder: no paths of this machine, no logs; the block that loaders look
    for is the same whoever wrote it.
    """
    (folder / "quant_log.csv").unlink(missing_ok=True)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    block = config["quantization_config"]
    (block.get("meta") or {}).pop("offload_to_disk_path", None)
    if block["quant_method"] == "gptq":
        block.setdefault("checkpoint_format", "gptq")
    # a path; what dtype says; code of the model, which is not here
    for name in ("_name_or_path", "torch_dtype", "auto_map"):
        config.pop(name, None)
    config["dtype"] = _dtype(folder)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("quantize_config.json", "quantization_config.json"):
        (folder / name).unlink(missing_ok=True)
    if block["quant_method"] in ("gptq", "awq"):
        # where older loaders look
        (folder / "quantize_config.json").write_text(
            json.dumps(block, indent=2) + "\n", encoding="utf-8"
        )
    carry(Path(model), folder)
    mask = os.umask(0)
    os.umask(mask)
    for name in listed(folder):  # the safetensors library writes for the owner only
        (folder / name).chmod(0o666 & ~mask)
