"""Which files of a folder hold its weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from autoquant.core.errors import InputError
from autoquant.source.headers import read_json, safetensors_header

SINGLE, PICKLED = "model.safetensors", "pytorch_model.bin"
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
# not the model: an adapter, and Mistral's own layout of the same weights
OTHERS = re.compile(r"adapter_model.*|consolidated.*")
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Weights:
    """The weight files of a folder. ``files``: the name that loaders look for -> the file;
    ``index``: tensor -> that name, empty for a single file. ``usual``: loaders find them as they
    lie.
    """

    files: dict[str, Path]
    pickled: bool
    index: dict[str, str]
    usual: bool = True


def find(folder: Path, *, allow_pickle: bool) -> Weights:
    """The weights of a folder. Raises InputError for none, an incomplete or an ambiguous set, what
    is no whole model, and pickles unless they are allowed.
    """
    index = folder / f"{SINGLE}.index.json"
    if index.is_file():
        return _indexed(folder, index, pickled=False)
    if (folder / SINGLE).is_file():
        return Weights({SINGLE: folder / SINGLE}, pickled=False, index={})
    named = sorted(path for path in folder.glob("*.safetensors") if not OTHERS.match(path.name))
    if named:
        return _otherwise_named(folder, named)
    if any(folder.glob("pytorch_model*.bin")):
        return _pickled(folder, allow_pickle=allow_pickle)
    raise InputError(_no_weights(folder))


def _indexed(folder: Path, index: Path, *, pickled: bool) -> Weights:
    """The shards that an index names; those in subfolders get names without them."""
    data = read_json(index)
    listed = data.get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(map(_inside, listed.values())):
        raise InputError(
            f"{index} has no weight_map (a JSON object: tensor -> file); download it again"
        )
    names = sorted(set(listed.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of its {len(names)} shards:"
            f" {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}; download the missing"
            " files"
        )
    if not pickled and SINGLE not in names and (folder / SINGLE).is_file():
        raise InputError(
            f"{folder} has two checkpoints: {SINGLE}, and {len(names)} shards that {index.name}"
            " names; loaders disagree about which to use. Remove one"
        )
    flat = {name: name.replace("/", "-") for name in names}
    return Weights(
        {flat[name]: folder / name for name in names},
        pickled,
        {tensor: flat[name] for tensor, name in listed.items()},
        # without metadata transformers 5 raises KeyError
        usual=isinstance(data.get("metadata"), dict) and all("/" not in name for name in names),
    )


def _inside(name: object) -> bool:
    """Whether an index's file name stays in its folder."""
    return isinstance(name, str) and not name.startswith("/") and ".." not in name.split("/")


def _otherwise_named(folder: Path, named: list[Path]) -> Weights:
    """Weights that neither have the usual name nor an index: one file, or one complete set of
    shards. Anything else is ambiguous.
    """
    if len(named) == 1 and not (match := SHARD.fullmatch(named[0].name)):
        return Weights({SINGLE: named[0]}, pickled=False, index={}, usual=False)
    shards = [match for path in named if (match := SHARD.fullmatch(path.name))]
    if len(shards) < len(named) or len({(one[1], one[3]) for one in shards}) > 1:
        raise InputError(
            f"{folder} has several weight files, but neither {SINGLE} nor {SINGLE}.index.json says"
            f" which are the model: {', '.join(path.name for path in named[:4])}. Keep those of one"
            " checkpoint, or download its index too"
        )
    total = int(shards[0][3])
    absent = sorted(set(range(1, total + 1)) - {int(one[2]) for one in shards})
    if absent:
        raise InputError(
            f"{folder} lacks {len(absent)} of its {total} shards:"
            f" {shards[0][1]}-{absent[0]:05d}-of-{total:05d}.safetensors; download the missing"
            " files"
        )
    if total == 1:
        return Weights({SINGLE: named[0]}, pickled=False, index={}, usual=False)
    index = {tensor: path.name for path in named for tensor in safetensors_header(path)}
    return Weights({path.name: path for path in named}, pickled=False, index=index, usual=False)


def _pickled(folder: Path, *, allow_pickle: bool) -> Weights:
    if not allow_pickle:
        raise InputError(
            f"{folder} has only pickle weights (.bin), and loading a pickle can run code hidden in"
            " it. Convert it to safetensors, or, if you trust its origin, use method gguf with"
            " allow_pickle=True (--allow-pickle)"
        )
    index = folder / f"{PICKLED}.index.json"
    if index.is_file():
        return _indexed(folder, index, pickled=True)
    if (folder / PICKLED).is_file():
        return Weights({PICKLED: folder / PICKLED}, pickled=True, index={})
    found = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    raise InputError(
        f"{folder} has weight files but neither {PICKLED} nor {PICKLED}.index.json:"
        f" {', '.join(found[:3])}. Download the index too"
    )


def _no_weights(folder: Path) -> str:
    """What a folder without a transformers checkpoint is, and what to do about it."""
    if found := sorted(path.name for path in folder.glob("consolidated*.safetensors")):
        return (
            f"{folder} has its weights in Mistral's own layout only ({found[0]}), which"
            " transformers does not load. Give a folder or repository with model.safetensors"
        )
    return f"{folder} is not a model folder: it has no weights ({SINGLE})"


def base_of_adapter(folder: Path) -> str:
    """The model that an adapter names as the one it was trained on; empty if it names none."""
    path = folder / ADAPTER_CONFIG
    return str(read_json(path).get("base_model_name_or_path") or "") if path.is_file() else ""
