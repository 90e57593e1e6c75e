"""A model's name -> Source: what it is, from config, headers and card alone."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

from autoquant.core import bundled, licenses
from autoquant.core.errors import InputError
from autoquant.core.records import Source
from autoquant.hub import fetch as hub
from autoquant.hub import look
from autoquant.source.headers import (
    pickle_header_in_worker,
    read_json,
    safetensors_header,
    weight_files,
)

log = logging.getLogger(__name__)


# Everything a converter or transformers may read beside the weights. Code (*.py) is left out: it is
# not run.
SIDE_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "README.md", *licenses.FILES)


def _card_data(folder: Path) -> dict[str, Any]:
    """The front matter of the folder's README.md, or nothing."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    import yaml
    from huggingface_hub import ModelCard

    try:
        return dict(ModelCard.load(path, ignore_metadata_errors=True).data.to_dict())
    except (yaml.YAMLError, ValueError) as error:
        log.warning(
            "the model's card cannot be read (%s): its licence and language are not known",
            type(error).__name__,
        )
        return {}


def resolve(model: str | Path, *, allow_pickle: bool = False) -> Source:
    """Look at a model without reading or downloading its weights.

    ``model`` is a folder with a Hugging Face checkpoint, ``owner/name``, ``owner/name@revision`` or
    a URL for the Hub, or ``"demo"`` for the bundled one (``"demo-small"``: its smaller sister); a
    folder of that name goes before the Hub. Raises :class:`~autoquant.core.errors.InputError` for a
    model that is missing, gated, no checkpoint, cut short, incomplete or pickle-only, HubFailed if
    the Hub cannot be reached.

    Of a pickle checkpoint on the Hub (``allow_pickle``) the weights are downloaded here already:
    its header cannot be read alone.
    """
    folder = bundled.MODELS.get(str(model)) or Path(model).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        # huggingface_hub's cache knows where it is from
        cached = re.search(
            r"/models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})$", folder.as_posix()
        )
        if cached:
            gated, private = look.restricted(f"{cached[1]}/{cached[2]}", cached[3])
            return dataclasses.replace(
                describe(folder, f"{cached[1]}/{cached[2]}", allow_pickle),
                revision=cached[3],
                gated=gated,
                private=private,
            )
        return describe(folder, folder.name, allow_pickle)
    named = look.parse(str(model))
    if named is None:
        raise InputError(
            f"no such folder: {model}. Give a folder with a Hugging Face checkpoint, a model on the"
            " Hub as owner/name or owner/name@revision, or demo for the bundled demo model"
        )
    listing = look.look(*named, SIDE_FILES)
    remote = not (allow_pickle and any(file.name.endswith(".bin") for file in listing.files))
    folder = listing.folder if remote else hub.fetch(listing)[0]
    try:
        source = describe(folder, listing.id, allow_pickle)
    except InputError as error:
        raise InputError(str(error).replace(str(folder), listing.id)) from None
    return dataclasses.replace(
        source,
        revision=listing.revision,
        gated=listing.gated,
        private=listing.private,
        remote=remote,
    )


def describe(folder: Path, id: str, allow_pickle: bool) -> Source:
    """A Source from a folder's config, weight headers and card."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model folder: it has no config.json")
    config = read_json(folder / "config.json")
    text_config = (
        config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    )
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise InputError(
            f'{folder / "config.json"} names no architecture (its "architectures" list is missing'
            " or empty)"
        )
    weights, pickled, weight_map = weight_files(folder, allow_pickle)
    tensors: dict[str, tuple[str, list[int]]] = {}
    for name in weights:
        if pickled:
            tensors.update(pickle_header_in_worker(folder / name))
        else:
            tensors.update(safetensors_header(folder / name))
    lost = sorted(set(weight_map) - set(tensors))
    if lost:
        raise InputError(
            f"{folder / weight_map[lost[0]]} lacks the tensor {lost[0]} that the index promises"
            f" ({len(lost)} are lost); download it again"
        )
    sizes = Counter[str]()
    elements = {name: _product(shape) for name, (_, shape) in tensors.items()}
    for name, (dtype, _) in tensors.items():
        sizes[dtype] += elements[name]
    card = _card_data(folder)
    language = card.get("language") or ()
    base = card.get("base_model")
    quantization = config.get("quantization_config")
    return Source(
        id=id,
        folder=folder,
        revision=None,
        architecture=str(architectures[0]),
        parameters=sum(elements.values()),
        largest_tensor=max(elements.values()),
        dtype=sizes.most_common(1)[0][0],
        bytes=sum((folder / name).stat().st_size for name in weights),
        weights=tuple(weights),
        pickle=pickled,
        license=str(card["license"]) if card.get("license") else None,
        language=licenses.languages([language] if isinstance(language, (str, bool)) else language),
        base_model=(
            base[0] if isinstance(base, list) and base else base if isinstance(base, str) else None
        ),
        chat_template=(folder / "chat_template.jinja").is_file()
        or "chat_template" in _tokenizer_config(folder),
        vocab_size=int((text_config or config).get("vocab_size") or 0),
        context=int((text_config or config).get("max_position_embeddings") or 2048),
        quantized=(
            str(quantization.get("quant_method", "unknown"))
            if isinstance(quantization, dict)
            else None
        ),
        license_name=str(card["license_name"]) if card.get("license_name") else None,
        license_link=str(card["license_link"]) if card.get("license_link") else None,
    )


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
