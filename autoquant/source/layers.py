"""The layers of a source that can be quantized, and sources that cannot be."""

from __future__ import annotations

import importlib.metadata
import re
from collections import defaultdict

from autoquant.core.errors import InputError
from autoquant.core.records import Source
from autoquant.formats.tensors import Part
from autoquant.source.headers import read_json
from autoquant.source.parts import Division, division
from autoquant.source.structure import Structure, refuse, refuse_tokenizer, structure

BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def linears(source: Source) -> dict[str, tuple[int, int]]:
    """The layers that are quantized: the blocks' matrices, name -> (outputs, inputs). Embeddings
    and output head stay as they are, and so do gates of mixtures of experts.
    """
    found = {}
    for layer in structure(source).layers:
        if not layer.expert:
            outputs, inputs = layer.shape
            found[layer.module] = (outputs, inputs)
    return found


def parts_by_module(source: Source) -> dict[str, Part]:
    """The layers of :func:`linears` as parts of the source's files."""
    return {
        layer.module: Part(layer.module, layer.tensors[0], (layer.shape[0], layer.shape[1]))
        for layer in structure(source).layers
        if not layer.expert
    }


def weights_of_blocks(layers: dict[str, tuple[int, int]]) -> dict[str, int]:
    """How many weights each block's layers have, by the block's number."""
    blocks: dict[str, int] = defaultdict(int)
    for name, (outputs, inputs) in layers.items():
        block = BLOCK.search(name)
        blocks[block[1] if block else ""] += outputs * inputs
    return blocks


def check(source: Source, title: str, *, towers: bool = False) -> dict[str, tuple[int, int]]:
    """Refuse what :func:`check_parts` does, mixtures of experts and, unless ``towers`` may be
    there, what is more than a language model; return the layers that can be quantized.
    """
    found = check_known(source, title)
    config = read_json(source.folder / "config.json")
    more = [name for name in ("vision_config", "audio_config") if config.get(name)]
    if not towers and (more or found.towers):
        raise InputError(
            f"{source.id} ({source.architecture}) is not a pure language model"
            f" ({', '.join(more or found.towers)}); {title} is offered for language models only."
            " GGUF takes many such models, and so do HQQ, bitsandbytes and W8A8"
        )
    if found.experts:
        raise InputError(
            f"{source.id} ({source.architecture}) is a mixture of experts, which {title} does not"
            " take. GGUF takes such models, and so do GPTQ, AWQ, HQQ, bitsandbytes and W8A8"
        )
    return some(linears(source), source, title)


def check_parts(source: Source, title: str) -> Division:
    """Refuse a source that is incomplete, quantized, unknown to transformers or without layers that
    can be quantized; return how it is divided.
    """
    check_known(source, title)
    divided = division(source)
    some(divided.shapes, source, title)
    return divided


def some(
    layers: dict[str, tuple[int, int]], source: Source, title: str
) -> dict[str, tuple[int, int]]:
    """The layers; refused if there are none."""
    if not layers:
        raise InputError(
            f"{source.id} ({source.architecture}) has no layers that {title} could quantize: its"
            " blocks have no linear layers (torch.nn.Linear)"
        )
    return layers


def check_known(source: Source, title: str) -> Structure:
    """Refuse a source that is incomplete, quantized or unknown to transformers."""
    refuse(source)
    refuse_tokenizer(source)
    if source.quantized:
        raise InputError(
            f"{source.id} is quantized already ({source.quantized}); {title} needs the unquantized"
            " model"
        )
    found = structure(source)
    if not found.known:
        version = importlib.metadata.version("transformers")
        raise InputError(
            f"transformers {version}, with which {title} loads models, {found.why}. GGUF may take"
            " it: llama.cpp's converter has a list of its own"
        )
    return found
