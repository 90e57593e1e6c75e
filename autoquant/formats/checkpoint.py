"""The files of a checkpoint: which hold its weights, which lie beside them, and its config as
transformers 4 reads it. Imports nothing but the errors: AutoGPTQ's environment has no more.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from autoquant.core.errors import InputError

BESIDE = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "tekken.json",
)
TEMPLATES = "additional_chat_templates"  # beside them: the chat templates that are not the default


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a folder's weights: those that the index names, or
    model.safetensors; of a folder with neither (exllamav2's) all. What else lies beside them, such
    as a checkpoint in another layout, is no part of the model.
    """
    index = folder / "model.safetensors.index.json"
    names = (
        set((json.loads(index.read_text(encoding="utf-8")).get("weight_map") or {}).values())
        if index.is_file()
        else set()
    )
    if not names and (folder / "model.safetensors").is_file():
        names = {"model.safetensors"}
    return [folder / name for name in sorted(names)] or sorted(folder.glob("*.safetensors"))


def beside(folder: Path) -> list[str]:
    """The files that a tokenizer, a processor and generation read, as they lie beside the weights:
    their names in the folder.
    """
    templates = sorted(f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja"))
    return [name for name in BESIDE if (folder / name).is_file()] + templates


def carry(source: Path, target: Path) -> None:
    """Copy what lies :func:`beside` the weights of ``source`` into ``target``, over what is there:
    libraries write some of it anew, with names of classes that other releases do not know.
    """
    for name in beside(source):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)


def listed(folder: Path) -> list[str]:
    """The files of a finished folder, config.json first: their names in it."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(names, key=lambda name: (name != "config.json", name))


def quantization(folder: str) -> dict[str, Any]:
    """The quantization block of a folder's config.json; empty if it has none."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return dict(config.get("quantization_config") or {})


def legacy_config(config: dict[str, Any], option: str = "backend") -> dict[str, Any]:
    """A config as transformers 4 reads it: release 5 keeps rope_theta and scaling under
    ``rope_parameters`` (4 would silently take 10000) and calls torch_dtype dtype.

    Raises InputError, that begins with ``option``, for rotary embeddings that differ from layer to
    layer.
    """
    # names code of the model, and AutoGPTQ trusts remote code without asking
    old = {name: value for name, value in config.items() if name != "auto_map"}
    rope = old.pop("rope_parameters", None)
    if isinstance(rope, dict):
        if any(isinstance(value, dict) for value in rope.values()):
            raise InputError(
                f"{option}: this model's rotary embeddings differ from layer to layer, which"
                " transformers 4's config format cannot"
                f" express{'; leave out backend' if option == 'backend' else ''}"
            )
        old["rope_theta"] = rope.get("rope_theta", 10000.0)
        scaling = {
            name: value
            for name, value in rope.items()
            if name not in ("rope_theta", "partial_rotary_factor")
        }
        if "partial_rotary_factor" in rope:
            old["partial_rotary_factor"] = rope["partial_rotary_factor"]
        old["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
    if "dtype" in old:
        old["torch_dtype"] = old.pop("dtype")
    return old
