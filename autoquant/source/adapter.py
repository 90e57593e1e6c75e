"""LoRA adapters as sources: merged into the model that they were trained on, which then goes
through any method like a model of its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant.core.cache import cache_folder
from autoquant.core.errors import InputError
from autoquant.core.files import free_bytes, key_of, move_into_place, sha256_of
from autoquant.core.progress import Bar
from autoquant.core.records import Source
from autoquant.runtime import environments, process
from autoquant.source.headers import headers_of, read_json, safetensors_header
from autoquant.source.outline import beside, write
from autoquant.source.structure import structure
from autoquant.source.weights import ADAPTER, ADAPTER_CONFIG, base_of_adapter

EXTRA = "adapters"  # of this package, with peft; laid over the environment where it is missing
PREFIX = "base_model.model."
PARTS = (
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_embedding_A",
    ".lora_embedding_B",
    ".lora_magnitude_vector",
    ".lora_magnitude_vector.weight",
)


@dataclass(frozen=True)
class Adapter:
    """An adapter's files: ``folder``, the ``base`` model that it names and that one's
    ``revision``.
    """

    folder: Path
    base: str
    revision: str


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter and no whole model."""
    whole = [path for path in folder.glob("*.safetensors") if path.name != ADAPTER]
    return (folder / ADAPTER_CONFIG).is_file() and not whole


def adapter_of(folder: Path, base: str) -> Adapter:
    """The adapter in a folder; ``base`` overrides the model that it names. Raises InputError for
    one of another kind than LoRA, and one without a base or weights.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(
            f"{folder} is an adapter of the kind {kind}; LoRA adapters are merged (with rsLoRA and"
            " DoRA). Merge it yourself (peft: merge_and_unload, save_pretrained), and give the"
            " result"
        )
    if config.get("target_parameters"):
        raise InputError(
            f"{folder} adapts parameters of experts (target_parameters), which is not read. Merge"
            " it yourself (peft: merge_and_unload, save_pretrained), and give the result"
        )
    if not (folder / ADAPTER).is_file():
        raise InputError(f"{folder} is an adapter without its weights ({ADAPTER})")
    named = base or base_of_adapter(folder)
    if not named:
        raise InputError(
            f"{folder} is an adapter that does not name its model; name it: base='owner/name'"
            " (--base owner/name)"
        )
    return Adapter(folder, named, "" if base else str(config.get("revision") or ""))


def describe(adapter: Adapter, id: str, resolve: Callable[[str], Source]) -> Source:
    """The merged model to be, from headers alone. ``resolve`` looks at the base. Raises InputError
    if the base cannot be had or does not fit.
    """
    where = f"{adapter.base}@{adapter.revision}" if adapter.revision else adapter.base
    try:
        base = resolve(where)
    except InputError as error:
        raise InputError(
            f"{id} is an adapter of {adapter.base}, which cannot be had: {error}. Name another copy"
            " of that model: base='…' (--base …)"
        ) from None
    if base.gguf:
        made_of = f", {base.base_model}" if base.base_model else ""
        raise InputError(
            f"base: {adapter.base} is a GGUF file; name the checkpoint that it was made of{made_of}"
        )
    headers = headers_of(base.folder, list(base.weights))
    entries = {**headers, **_replaced(adapter, base)}
    place = cache_folder() / "sources" / f"{_key(adapter, base)}-outline"
    if not (place / "config.json").is_file():
        config = read_json(base.folder / "config.json")
        _resize(config, base, entries)
        folders = (base.folder, adapter.folder)  # the adapter's tokenizer goes first
        write(place, entries, config, folders)
    return dataclasses.replace(
        base,
        id=id,
        folder=place,
        revision=None,
        weights=("model.safetensors",),
        parameters=sum(math.prod(shape) for _, shape in entries.values()),
        base_model=adapter.base,
        given=adapter.folder,
        remote=False,
        adapter=adapter.folder,
        adapted=base,
    )


def _key(adapter: Adapter, base: Source) -> str:
    of = sha256_of(adapter.folder / ADAPTER), str(base.folder), base.revision
    return key_of("in the base's dtypes", *of)


def _replaced(adapter: Adapter, base: Source) -> dict[str, tuple[str, list[int]]]:
    """The base's tensors that the adapter brings whole (modules_to_save), in its shapes; all
    others are checked against the base's shapes. Raises InputError for what does not fit.
    """
    tensors = tensors_by_module(base)
    headers = headers_of(base.folder, list(base.weights))
    whole = {}
    for name, (_, shape) in safetensors_header(adapter.folder / ADAPTER).items():
        module, part = split(name)
        if module not in tensors:
            raise InputError(
                f"the adapter changes {module}, which {base.id} does not have: it was trained on"
                " another model. Name that: base='owner/name' (--base owner/name)"
            )
        own = headers[tensors[module]][1]
        if not part:
            whole[tensors[module]] = (headers[tensors[module]][0], shape)
        elif part == ".lora_A.weight" and shape[-1] != own[-1]:
            raise InputError(
                f"the adapter changes {module} with {shape[-1]} inputs, and in {base.id} it has"
                f" {own[-1]}: it was trained on a model of another size"
            )
    return whole


def split(name: str) -> tuple[str, str]:
    """A tensor of an adapter -> the module that it changes, and the part (empty: it is the whole
    weight).
    """
    own = name.removeprefix(PREFIX).replace(".modules_to_save", "").replace(".default", "")
    # of embeddings that have grown the base's own weight comes along
    own = own.replace(".base_layer", "")
    for part in PARTS:
        if own.endswith(part):
            return own.removesuffix(part), part.replace("vector.weight", "vector")
    return own.removesuffix(".weight"), ""


def of_pattern(config: dict[str, Any], patterns: str, field: str, module: str) -> float:
    """A module's value: of the first pattern that its name ends with, or of all."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(config.get(field) or 8)


def tensors_by_module(source: Source) -> dict[str, str]:
    """A model's weights in the files, by the module that has them."""
    found = structure(source)
    known = {layer.module: layer.tensors[0] for layer in found.layers if len(layer.tensors) == 1}
    for tensor in headers_of(source.folder, list(source.weights)):
        known.setdefault(tensor.removesuffix(".weight"), tensor)
    return known


def _resize(config: dict[str, Any], base: Source, entries: dict[str, Any]) -> None:
    """Let a config count the tokens of embeddings that the adapter brings."""
    for name, (_, shape) in entries.items():
        if name.endswith("embed_tokens.weight") and shape[0] != base.vocab_size:
            (config.get("text_config") or config)["vocab_size"] = shape[0]


def merged(source: Source, base: Path, sha256: str) -> Path:
    """The folder of the merged model, made in the cache if it is not there. ``base`` is the folder
    with the base's files, ``sha256`` covers both. One that another version of peft has merged is
    not taken. Raises InputError without room.
    """
    assert source.adapter is not None
    key = key_of(sha256, environments.version("peft"))
    place = cache_folder() / "sources" / f"{key}-merged"
    if (place / "config.json").is_file():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    needed = 2 * source.parameters
    if needed > free_bytes(place.parent):
        raise InputError(
            f"the merged model needs {needed / 1e9:.2f} GB in {place.parent};"
            f" {free_bytes(place.parent) / 1e9:.2f} GB are free. Set AUTOQUANT_CACHE to a larger"
            " disk"
        )
    assert source.adapted is not None
    modules = tensors_by_module(dataclasses.replace(source.adapted, folder=base))
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch, Bar("merge") as progress:
        made, logs = Path(scratch) / "model", Path(scratch) / "log"
        process.call(
            "autoquant.source.merge:merge",
            log=logs,
            python=environments.beside(EXTRA, logs),
            progress=progress,
            base=str(base),
            adapter=str(source.adapter),
            target=str(made),
            modules=modules,
        )
        config = read_json(source.folder / "config.json")
        (made / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        beside((base, source.adapter), made)
        move_into_place(made, place)
    return place
