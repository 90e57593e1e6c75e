"""A model's name -> Source: what it is, from config, headers and card alone."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from autoquant.core import bundled, cards, licenses
from autoquant.core.errors import InputError
from autoquant.core.records import Source
from autoquant.core.texts import expanded
from autoquant.hub import fetch as hub
from autoquant.hub import look
from autoquant.source import adapter as adapters
from autoquant.source import from_gguf, unquantized
from autoquant.source.headers import (
    Header,
    pickle_header_in_worker,
    read_json,
    safetensors_header,
)
from autoquant.source.tidy import tidied
from autoquant.source.weights import find

log = logging.getLogger(__name__)


# Everything a converter or transformers may read beside the weights. Code (*.py) is left out: it is
# not run.
SIDE_FILES = (
    "*.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "*.model",
    "*.txt",
    "*.tiktoken",
    "README.md",
    *licenses.FILES,
)
# fields of a config that are whole numbers wherever they are given
NUMBERS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


def resolve(model: str | Path, *, allow_pickle: bool = False, base: str = "") -> Source:
    """Look at a model without reading or downloading its weights.

    ``model`` is a folder with a Hugging Face checkpoint, ``owner/name``, ``owner/name@revision`` or
    a URL for the Hub, or ``"demo"`` for the bundled one (``"demo-small"``: its smaller sister); a
    folder of that name goes before the Hub. Raises :class:`~autoquant.core.errors.InputError` for a
    model that is missing, gated, no checkpoint, cut short, incomplete or pickle-only, HubFailed if
    the Hub cannot be reached.

    A LoRA adapter is the model that it is merged to: into the one that it names, or ``base``.

    A GGUF file, or a folder or repository that has no other weights, is one that GGUF can be made
    of anew; of several files one is named by its type or file, ``owner/name:Q8_0``.

    Of a pickle checkpoint on the Hub (``allow_pickle``) the weights are downloaded here already:
    its header cannot be read alone.
    """
    folder = bundled.MODELS.get(str(model)) or expanded(str(model), "model")
    if folder.is_file() and _is_gguf(folder):
        _refuse_base(base, model)
        return _gguf(folder.parent.resolve(), folder.name)
    if folder.is_dir() and adapters.is_adapter(folder):
        folder = folder.resolve()
        return adapters.describe(adapters.adapter_of(folder, base), folder.name, resolve)
    if folder.is_dir():
        _refuse_base(base, model)
        folder = folder.resolve()
        checkpoint = any(path for end in ("safetensors", "bin") for path in folder.glob(f"*.{end}"))
        if not checkpoint and _ggufs(folder):
            return _gguf(folder, "")
        return _from_cache(describe(folder, folder.name, allow_pickle), folder)
    named = look.parse(str(model))
    if (named[0] if named else str(model)).lower().endswith(".gguf"):
        raise InputError(f"no such GGUF file: {model}")
    if named is None:
        raise InputError(
            f"no such folder: {model}. Give a folder with a Hugging Face checkpoint, a GGUF file, a"
            " model on the Hub as owner/name or owner/name@revision, or demo for the bundled demo"
            " model"
        )
    listing = look.look(*named, SIDE_FILES, from_gguf.with_tower)
    known: dict[str, Any] = {
        "revision": listing.revision,
        "gated": listing.gated,
        "private": listing.private,
    }
    if listing.gguf:
        _refuse_base(base, model)
        try:
            source = from_gguf.describe(listing.folder, listing.gguf, listing.id)
        except InputError as error:
            raise InputError(str(error).replace(str(listing.folder), listing.id)) from None
        return dataclasses.replace(
            source,
            **known,
            remote=True,
            tag=named[2],
        )
    if adapters.is_adapter(listing.folder):
        adapter = adapters.adapter_of(listing.folder, base)
        return dataclasses.replace(
            adapters.describe(adapter, listing.id, resolve),
            **known,
            remote=True,
        )
    _refuse_base(base, model)
    remote = not (allow_pickle and any(file.name.endswith(".bin") for file in listing.files))
    folder = listing.folder if remote else hub.fetch(listing)[0]
    try:
        source = describe(folder, listing.id, allow_pickle)
    except InputError as error:
        raise InputError(str(error).replace(str(folder), listing.id)) from None
    return dataclasses.replace(
        source,
        **known,
        remote=remote,
    )


def _from_cache(source: Source, folder: Path) -> Source:
    """A source in huggingface_hub's cache, which knows where it is from; others as they are."""
    cached = re.search(
        r"/models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})(?:/(.+))?$", folder.as_posix()
    )
    if cached is None or (cached[4] and not source.gguf):
        return source
    id = f"{cached[1]}/{cached[2]}"
    gated, private = look.restricted(id, cached[3])
    file = f"{cached[4]}/{source.gguf}" if cached[4] else source.gguf
    return dataclasses.replace(
        source, id=id, revision=cached[3], gated=gated, private=private, tag=file
    )


def _is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do, or is called so."""
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF" or path.suffix.lower() == ".gguf"


def _gguf(folder: Path, name: str) -> Source:
    """The model in a folder's GGUF file of that name, or in the one to choose there."""
    if name:
        chosen = from_gguf.whole(name, [path.name for path in folder.iterdir()], str(folder))
    else:
        chosen = from_gguf.with_tower(_ggufs(folder), "", str(folder))
    source = from_gguf.describe(folder, chosen, from_gguf.id_of(chosen[0], folder.name), name)
    return _from_cache(source, folder)


def _ggufs(folder: Path) -> list[str]:
    """The GGUF files of a folder; if it has none itself, of those in it that no run has made."""
    found = [path.name for path in folder.glob("*.gguf")]
    inner = (path for path in folder.glob("[!.]*/*.gguf"))
    found = found or [
        path.relative_to(folder).as_posix()
        for path in inner
        if not (path.parent / ".autoquant").is_dir()
    ]
    return sorted(found)


def _refuse_base(base: str, model: str | Path) -> None:
    if base:
        raise InputError(
            f"base: {model} is a whole model; base is for LoRA adapters (a folder or repository"
            " with adapter_config.json and no other weights). Leave it out"
        )


def describe(folder: Path, id: str, allow_pickle: bool) -> Source:
    """A Source from a folder's config, weight headers and card. Of a quantized one that can be read
    it is the 16-bit form that is described, though not made yet.
    """
    source = describe_as_stored(folder, id, allow_pickle)
    if not source.quantized or source.pickle:
        return source
    outline = unquantized.outline(source)
    form = describe_as_stored(outline, id, allow_pickle=False)
    return dataclasses.replace(
        form,
        bytes=source.bytes,
        given=source.given or folder,
        stored_as=str(source.quantized),
        stored_in=source.folder,
    )


def describe_as_stored(folder: Path, id: str, allow_pickle: bool) -> Source:
    """A Source as its files are."""
    if not (folder / "config.json").is_file():
        raise InputError(_no_config(folder))
    config = read_json(folder / "config.json")
    language_config = _language_config(folder, config)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise InputError(
            f'{folder / "config.json"} names no architecture (its "architectures" list is missing'
            " or empty)"
        )
    weights = find(folder, allow_pickle=allow_pickle)
    tensors: dict[str, Header] = {}
    for path in weights.files.values():
        tensors.update(
            pickle_header_in_worker(path) if weights.pickled else safetensors_header(path)
        )
    lost = sorted(set(weights.index) - set(tensors))
    if lost:
        raise InputError(
            f"{weights.files[weights.index[lost[0]]]} lacks the tensor {lost[0]} that the index"
            f" promises ({len(lost)} are lost); download it again"
        )
    elements = {name: math.prod(shape) for name, (_, shape) in tensors.items()}
    sizes = Counter[str]()
    for name, (dtype, _) in tensors.items():
        sizes[dtype] += elements[name]
    card, unread = cards.read(folder)
    if unread:
        log.warning(
            "the model's card cannot be read (%s): its licence and language are not known", unread
        )
    quantization = config.get("quantization_config")
    tidy = tidied(folder, weights, side_files(folder))
    return Source(
        id=id,
        folder=tidy,
        revision=None,
        architecture=str(architectures[0]),
        parameters=sum(elements.values()),
        largest_tensor=max(elements.values()),
        dtype=sizes.most_common(1)[0][0],
        bytes=sum(path.stat().st_size for path in weights.files.values()),
        weights=tuple(sorted(weights.files)),
        pickle=weights.pickled,
        license=card.get("license"),
        language=tuple(card.get("language", ())),
        base_model=next(iter(card.get("base_model", ())), None),
        chat_template=any((folder / f"chat_template.{end}").is_file() for end in ("jinja", "json"))
        or bool(_tokenizer_config(folder).get("chat_template")),
        vocab_size=int(language_config.get("vocab_size") or 0),
        context=int(language_config.get("max_position_embeddings") or 2048),
        quantized=(
            str(quantization.get("quant_method", "unknown"))
            if isinstance(quantization, dict) and quantization
            else None
        ),
        license_name=card.get("license_name"),
        license_link=card.get("license_link"),
        given=folder if tidy != folder else None,
    )


def side_files(folder: Path) -> list[Path]:
    """The files beside the weights that say something about the model."""
    found = {path for pattern in SIDE_FILES for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


def _no_config(folder: Path) -> str:
    """What a folder without config.json is, and what to do about it."""
    try:
        find(folder, allow_pickle=True)
    except InputError as error:
        if "not a model folder" not in str(error):
            return str(error)
    return f"{folder} is not a model folder: it has no config.json"


def _language_config(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the language model. Raises InputError for a field that
    is no number where one belongs.
    """
    inner = config.get("text_config")
    inner = inner if isinstance(inner, dict) else config
    for name in NUMBERS:
        value = inner.get(name)
        if (name in inner and not isinstance(value, (int, float))) or isinstance(value, bool):
            raise InputError(
                f"{folder / 'config.json'}: {name} is {json.dumps(value)}, where a whole number"
                " belongs. Correct it, or download the file again"
            )
    return inner


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}
