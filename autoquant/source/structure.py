"""What a source is made of, as transformers sees it: looked at once, in a worker, and kept."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant.core.errors import InputError
from autoquant.core.files import key_of, sha256_of
from autoquant.core.records import Source
from autoquant.core.version import __version__
from autoquant.runtime import answers
from autoquant.source.headers import headers_of, read_json

log = logging.getLogger(__name__)
# what config and tokenizer are read from
READ = (
    "config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "tekken.json",
)
NAMED = 3  # tensors named in a message
# leftovers that have a name of their own: how they are called, and what their tensors' names have
LEFTOVERS = (
    ("of a draft block for multi-token prediction (MTP)", ("mtp.", ".eh_proj.", ".enorm.")),
    ("of rotary frequencies, which are computed", ("inv_freq",)),
    ("of an adapter that is not merged", ("lora_A", "lora_B", "lora_embedding", "lora_magnitude")),
)
ADAPTERS, WRAPPED = ("lora_A", "lora_B", ".base_layer."), "base_model.model."
BLOCK = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True)
class Layer:
    """A matrix of the language model's blocks that can be quantized, or a block's experts.

    ``module`` is its name in the model, without ".weight"; ``tensors`` are those of the files that
    make it (several for experts that the files hold one by one); ``shape`` is [outputs, inputs], of
    experts [experts, …]. For the rest see skeleton.build.
    """

    module: str
    tensors: tuple[str, ...]
    shape: tuple[int, ...]
    expert: bool
    transposed: bool = False
    interleaved: bool = False


@dataclass(frozen=True)
class Structure:
    """A source as transformers builds it from config and headers (see skeleton.build).

    ``why`` is transformers' reason where it does not build it; the other fields are then empty.
    ``auto`` is the Auto class that loads it, ``towers`` are the parts that see or hear. Where the
    tokenizer does not load, ``tokenizer_why`` says it; ``last_token`` is the one with the largest
    id, and that id.
    """

    why: str
    kind: str = ""
    auto: str = ""
    missing: tuple[str, ...] = ()
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    unused: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    towers: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    prefix: str = ""
    rows: int = 0
    tokenizer_why: str = ""
    last_token: tuple[str, int] = ("", -1)

    @property
    def known(self) -> bool:
        """Whether transformers builds it."""
        return not self.why

    @property
    def experts(self) -> bool:
        """Whether it is a mixture of experts."""
        return any(layer.expert for layer in self.layers)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Structure:
        """From what the worker says."""
        tuples = {
            name: tuple(data.get(name, ()))
            for name in ("missing", "unused", "towers", "unread", "narrow", "plain", "tied")
        }
        return cls(
            why=data["why"],
            kind=data.get("kind", ""),
            auto=data.get("auto", ""),
            prefix=data.get("prefix", ""),
            rows=data.get("rows", 0),
            tokenizer_why=data["tokenizer"]["why"],
            last_token=(data["tokenizer"]["token"], data["tokenizer"]["id"]),
            misshapen=tuple(
                (name, tuple(found), tuple(wanted))
                for name, found, wanted in data.get("misshapen", ())
            ),
            layers=tuple(
                Layer(**{**one, "tensors": tuple(one["tensors"]), "shape": tuple(one["shape"])})
                for one in data.get("layers", ())
            ),
            **tuples,
        )


def structure(source: Source) -> Structure:
    """Look at a source's modules, unless that was done before at the same config and headers. A
    worker does it: in some milliseconds where one is preloaded, else in the seconds that importing
    transformers takes.
    """
    headers = {} if source.pickle else headers_of(source.folder, list(source.weights))
    key = key_of(
        [sha256_of(source.folder / name) for name in READ if (source.folder / name).is_file()],
        sorted((name, *header) for name, header in headers.items()),
        importlib.metadata.version("transformers"),
        __version__,
    )
    said = answers.kept(
        "structures",
        key,
        "autoquant.source.skeleton:build",
        folder=str(source.folder),
        weights=list(source.weights if headers else ()),
    )
    return _parsed(said)


@functools.lru_cache(maxsize=64)
def _parsed(said: str) -> Structure:
    return Structure.from_json(json.loads(said))


def refuse(source: Source) -> None:
    """Refuse a source that is no language model, or that lacks tensors of one, or has tensors of
    another shape; say what is left out. Raises InputError.
    """
    found = structure(source)
    if not found.known:
        return
    if not found.auto:
        raise InputError(
            f"{source.id} is a {found.kind}, which is no causal language model: it does not"
            " continue a text. AutoQuant quantizes models that do, also with vision and experts"
        )
    if source.pickle or source.quantized:
        return
    adapters = [name for name in found.unused if any(part in name for part in ADAPTERS)]
    if adapters and found.missing:
        raise InputError(
            f"{source.id} has an adapter that is not merged into the model's own weights"
            f" ({listed(adapters)}). Merge it first (peft: merge_and_unload, then save_pretrained)"
        )
    if found.missing and any(name.startswith(WRAPPED) for name in found.unused):
        raise InputError(
            f"{source.id}: the tensors' names begin with {WRAPPED!r}: the model was saved from"
            " within peft's wrapper. Save it again after merge_and_unload, or rename the tensors"
        )
    if found.missing:
        raise InputError(
            f"{source.id} ({found.kind}) lacks {counted(len(found.missing), 'tensor')} that its"
            f" architecture needs: {listed(found.missing)}. Download the model again, or save it"
            " again from a complete one"
        )
    if found.misshapen:
        name, shape, wanted = found.misshapen[0]
        more = len(found.misshapen) - 1
        raise InputError(
            f"{source.id}: {name} has shape {list(shape)}, but by config.json it is"
            f" {list(wanted)}{f' (and {more} more)' if more else ''}. Config and weights are not of"
            " the same model: correct config.json, or download both again"
        )


def refuse_tokenizer(source: Source, *, rows: bool = False) -> None:
    """Refuse a source without a tokenizer that loads; with ``rows``, also one whose tokenizer has
    tokens that the embeddings have no row for. Raises InputError.
    """
    found = structure(source)
    if found.tokenizer_why and not any((source.folder / name).is_file() for name in READ[1:]):
        raise InputError(
            f"{source.given or source.folder} has no tokenizer (tokenizer.json or tokenizer.model);"
            " download it too"
        )
    if found.tokenizer_why:
        raise InputError(
            f"{source.id}: transformers does not load the tokenizer ({found.tokenizer_why})."
            " Tokenizers that need the model's own code are not offered, for none is run: save it"
            " as tokenizer.json, or take a repository that has one"
        )
    if rows and (said := _tokens_without_rows(found)) and not _of_pieces(source.folder):
        raise InputError(
            f"{source.id}: {said}. GGUF has a row for every token: resize the embeddings"
            " (model.resize_token_embeddings), or take the tokens out of tokenizer.json"
        )


def _of_pieces(folder: Path) -> bool:
    """Whether a tokenizer is SentencePiece's, of which GGUF leaves out tokens without a row."""
    path = folder / "tokenizer.json"
    model = (read_json(path).get("model") or {}) if path.is_file() else {}
    return bool(model.get("byte_fallback")) or (folder / "tokenizer.model").is_file()


def _tokens_without_rows(found: Structure) -> str:
    """Which token has no row in the embeddings; empty if there is none."""
    token, id = found.last_token
    if not found.rows or id < found.rows:
        return ""
    return f"the tokenizer's token {token!r} has id {id}, and the embeddings have {found.rows} rows"


def drafts(source: Source) -> set[str]:
    """The tensors of blocks for multi-token prediction: those named so, and of the blocks after
    the last where config.json counts drafts.
    """
    config = read_json(source.folder / "config.json")
    inner = config.get("text_config") or config
    counted_there = inner.get("num_nextn_predict_layers") or inner.get("mtp_num_hidden_layers")
    found = structure(source)
    blocks = {number for layer in found.layers if (number := _block(layer.module)) is not None}
    beyond = (
        {name for name in found.unused if (_block(name) or 0) > max(blocks, default=1 << 30)}
        if counted_there
        else set()
    )
    return beyond | {name for name in found.unused if name.startswith("mtp.")}


def unread(source: Source) -> set[str]:
    """Tensors of blocks that take other blocks' keys and values: transformers reads none of them,
    and llama.cpp wants them to be there. They are named like those of blocks that are read.
    """
    found = structure(source)
    blocks = {_block(layer.module) for layer in found.layers}
    left = set(found.unused)
    read = {
        BLOCK.sub(".", name)
        for name in headers_of(source.folder, list(source.weights))
        if name not in left
    }
    return {name for name in left if _block(name) in blocks and BLOCK.sub(".", name) in read}


def notes_on(source: Source, *, copy: bool = True) -> list[str]:
    """What somebody should know of a source: tensors that are no part of the model, by what they
    are; tokens without a row. ``copy``: of one that is quantized, or an adapter's, a model is made
    in the cache; else its tensors are made as they are read.
    """
    if source.gguf:
        return []  # llama.cpp has no other idea of a model than its file
    found = structure(source)
    notes = []
    if source.adapted is not None:
        how = "in the cache" if copy else "tensor by tensor, as it is read"
        notes.append(f"a LoRA adapter, merged into {source.adapted.id} ({how})")
        notes += notes_on(source.adapted, copy=copy) if source.adapted.stored_as else []
    elif source.stored_as:
        size = f"{2 * source.parameters / 1e9:.2f} GB"
        how = f"first ({size}, in the cache)" if copy else "tensor by tensor, as it is read"
        notes.append(
            f"the source is quantized ({source.stored_as}): it is made 16-bit {how}; what its"
            " quantization has lost stays lost, and quality is measured against that form"
        )
    if not found.known:
        return notes
    unused = unread(source) if found.unused else set()
    if unused:
        notes.append(
            f"{counted(len(unused), 'tensor')} of blocks that take other blocks' keys and values"
            f" are read by nobody ({listed(sorted(unused))}); only GGUF keeps them"
        )
    rest = [name for name in found.unused if name not in unused]
    for what, parts in LEFTOVERS:
        these = [name for name in rest if any(part in name for part in parts)]
        rest = [name for name in rest if name not in these]
        if these:
            notes.append(f"left out: {counted(len(these), 'tensor')} {what} ({listed(these)})")
    blocks = {number for layer in found.layers if (number := _block(layer.module)) is not None}
    beyond = [name for name in rest if (_block(name) or 0) > max(blocks, default=1 << 30)]
    if beyond:
        rest = [name for name in rest if name not in beyond]
        number = len({_block(name) for name in beyond})
        notes.append(
            f"left out: {counted(len(beyond), 'tensor')} of {counted(number, 'block')} beyond the"
            f" {len(blocks)} that config.json counts ({listed(beyond)})"
        )
    if rest:
        notes.append(
            f"left out: {counted(len(rest), 'tensor')} that {found.kind} does not have"
            f" ({listed(rest)})"
        )
    if found.tied:
        notes.append(
            f"{listed(found.tied)}: not read, for config.json ties the output head to the"
            " embeddings (tie_word_embeddings). If it was trained apart, set that to false"
        )
    if said := _tokens_without_rows(found):
        notes.append(f"{said}: a text with it cannot be run")
    return notes


def _block(name: str) -> int | None:
    """The number of the block that a tensor or module belongs to."""
    match = BLOCK.search(name)
    return int(match[1]) if match else None


def listed(names: tuple[str, ...] | list[str]) -> str:
    """The first few names, and whether there are more."""
    return ", ".join(names[:NAMED]) + (" …" if len(names) > NAMED else "")


def counted(number: int, what: str, several: str = "") -> str:
    """1 tensor, 2 tensors."""
    return f"{number} {what if number == 1 else several or what + 's'}"
