"""A model's name -> Source (what it is, from headers alone) -> Snapshot (its files, hashed)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from autoquant.core import licenses
from autoquant.core.errors import InputError
from autoquant.core.files import sha256_of
from autoquant.core.records import Snapshot, Source
from autoquant.hub import fetch as hub

log = logging.getLogger(__name__)

DEMO = "demo"

DEMOS = {
    DEMO: Path(__file__).parent / "demo" / "tiny-austen-4m",
    "demo-small": Path(__file__).parent / "demo" / "tiny-austen-2m",
}

DEMO_FOLDER = DEMOS[DEMO]

# Everything a converter or transformers may read beside the weights. Code (*.py) is left out: it is
# not run.
SIDE_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "README.md", *licenses.FILES)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} does not hold a JSON object; download it again")
    return data


def _weight_files(folder: Path, allow_pickle: bool) -> tuple[list[str], bool, dict[str, str]]:
    """The weight files' names, whether they are pickles, and the index's tensor -> file map (empty
    without an index).
    """
    for pickled, single, pattern in (
        (False, "model.safetensors", "*.safetensors"),
        (True, "pytorch_model.bin", "pytorch_model*.bin"),
    ):
        index = folder / f"{single}.index.json"
        if not index.is_file() and not any(folder.glob(pattern)):
            continue
        if pickled and not allow_pickle:
            raise InputError(
                f"{folder} has only pickle weights (.bin), and loading a pickle can run code hidden"
                " in it. Convert it to safetensors, or, if you trust where it comes from, take"
                " method gguf with allow_pickle=True (--allow-pickle)"
            )
        if index.is_file():
            weight_map = _read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise InputError(f"{index} has no weight_map; download it again")
            names = sorted(set(weight_map.values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise InputError(
                    f"{folder} lacks {len(missing)} of its {len(names)} shards:"
                    f" {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}; download the"
                    " missing files"
                )
            if not pickled and single not in names and (folder / single).is_file():
                raise InputError(
                    f"{folder} has two checkpoints: {single}, and {len(names)} shards that"
                    f" {index.name} names; loaders differ in which they take. Take one away"
                )
            return names, pickled, weight_map
        if (folder / single).is_file():
            return [single], pickled, {}
        raise InputError(
            f"{folder} has weight files but neither {single} nor {single}.index.json: "
            f"{', '.join(sorted(p.name for p in folder.glob(pattern))[:3])}. Download the index too"
        )
    raise InputError(f"{folder} is not a model folder: it has no weights (model.safetensors)")


def _safetensors_header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Tensor -> (dtype, shape). Opening checks that header and file size agree, so a cut file is
    found without reading it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {
                name: (part.get_dtype(), list(part.get_shape())) for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is damaged or cut short ({error}; it has {path.stat().st_size:,} bytes)."
            " Download it again"
        ) from None


def pickle_header(path: str) -> dict[str, tuple[str, list[int]]]:
    """Tensor -> (dtype, shape) of a pickle checkpoint, through torch's weights_only loader. Runs in
    a worker process.
    """
    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    try:
        state = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # noqa: BLE001 (torch raises RuntimeError, UnpicklingError, EOFError …: all mean the same to the user)
        raise InputError(
            f"{path} cannot be read as a plain state dict ({type(error).__name__}:"
            f" {str(error).splitlines()[0]})"
        ) from None
    return {name: (names.get(t.dtype, str(t.dtype)), list(t.shape)) for name, t in state.items()}


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
    a URL for the Hub, or ``"demo"`` for the embedded one (``"demo-small"``: its smaller sister); a
    folder of that name goes before the Hub. Raises :class:`~autoquant.core.errors.InputError` for a
    model that is missing, gated, no checkpoint, cut short, incomplete or pickle-only, HubFailed if
    the Hub cannot be reached.

    Of a pickle checkpoint on the Hub (``allow_pickle``) the weights are downloaded here already:
    its header cannot be read alone.
    """
    folder = DEMOS.get(str(model)) or Path(model).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        # huggingface_hub's cache knows where it is from
        cached = re.search(
            r"/models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})$", folder.as_posix()
        )
        if cached:
            gated, private = hub.restricted(f"{cached[1]}/{cached[2]}", cached[3])
            return dataclasses.replace(
                _describe(folder, f"{cached[1]}/{cached[2]}", allow_pickle),
                revision=cached[3],
                gated=gated,
                private=private,
            )
        return _describe(folder, folder.name, allow_pickle)
    named = hub.parse(str(model))
    if named is None:
        raise InputError(
            f"no such folder: {model}. Give a folder with a Hugging Face checkpoint, a model on the"
            " Hub as owner/name or owner/name@revision, or demo for the embedded model"
        )
    seen = hub.look(*named, SIDE_FILES)
    remote = not (allow_pickle and any(file.name.endswith(".bin") for file in seen.files))
    folder = seen.folder if remote else hub.fetch(seen)[0]
    try:
        found = _describe(folder, seen.id, allow_pickle)
    except InputError as error:
        raise InputError(str(error).replace(str(folder), seen.id)) from None
    return dataclasses.replace(
        found, revision=seen.revision, gated=seen.gated, private=seen.private, remote=remote
    )


def _describe(folder: Path, id: str, allow_pickle: bool) -> Source:
    """A Source from a folder's config, weight headers and card."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model folder: it has no config.json")
    config = _read_json(folder / "config.json")
    text_config = (
        config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    )
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise InputError(
            f'{folder / "config.json"} names no architecture (its "architectures" list is missing'
            " or empty)"
        )
    weights, pickled, weight_map = _weight_files(folder, allow_pickle)
    tensors: dict[str, tuple[str, list[int]]] = {}
    for name in weights:
        if pickled:
            tensors.update(_pickle_header_in_worker(folder / name))
        else:
            tensors.update(_safetensors_header(folder / name))
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


def shapes(source: Source) -> dict[str, list[int]]:
    """The shape of every tensor, from the weight files' headers."""
    return {
        name: shape
        for file in source.weights
        for name, (_, shape) in _safetensors_header(source.folder / file).items()
    }


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return _read_json(path) if path.is_file() else {}


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _pickle_header_in_worker(path: Path) -> dict[str, tuple[str, list[int]]]:
    import tempfile

    from autoquant import process

    with tempfile.TemporaryDirectory() as scratch:
        return dict(
            process.call(
                "autoquant.source:pickle_header", log=Path(scratch) / "log", path=str(path)
            )
        )


def bytes_to_fetch(source: Source) -> int:
    """Bytes that :func:`fetch` would download."""
    if not source.remote or source.revision is None:
        return 0
    return hub.bytes_missing(hub.known(source.id, source.revision))


def fetch(source: Source) -> Snapshot:
    """Have the files at hand and hash them. Of a folder nothing is copied; from the Hub the missing
    files are downloaded and checked.
    """
    if source.remote:
        assert source.revision is not None
        folder, files = hub.fetch(hub.known(source.id, source.revision))
        here = _describe(folder, source.id, allow_pickle=False)
        source = dataclasses.replace(
            here, revision=source.revision, gated=source.gated, private=source.private
        )
        return _snapshot(source, files)
    side = {
        path.name
        for pattern in SIDE_FILES
        for path in source.folder.glob(pattern)
        if path.is_file()
    }
    names = sorted(side | set(source.weights))
    with ThreadPoolExecutor(max_workers=4) as pool:
        return _snapshot(
            source,
            dict(
                zip(
                    names,
                    pool.map(lambda name: sha256_of(source.folder / name), names),
                    strict=True,
                )
            ),
        )


def _snapshot(source: Source, files: Mapping[str, str]) -> Snapshot:
    digest = hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()
    return Snapshot(source=source, folder=source.folder, sha256=digest, files=dict(files))
