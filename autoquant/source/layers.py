"""The layers of a source that can be quantized, and sources that cannot be."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path

from autoquant.core.errors import InputError
from autoquant.core.records import Source
from autoquant.runtime import process
from autoquant.source.headers import shapes
from autoquant.source.snapshot import bytes_to_fetch

LINEAR = re.compile(r"(^|\.)layers\.\d+\..*\.weight$")
BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.")
EXPERTS = re.compile(r"\.experts\.")
MUCH = 100 << 20  # bytes to download, above which a process is started to look first
FUSED = (
    "transformers 5 keeps the experts of a block in one tensor, which is not a linear layer and"
    " would stay unquantized, and most of the model with it"
)
KNOWN = "autoquant.source.layers:refuse_unknown"


def linears(source: Source) -> dict[str, tuple[int, int]]:
    """The layers that are quantized: the blocks' matrices, name -> (outputs, inputs). Embeddings
    and output head stay as they are.
    """
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in shapes(source).items()
        if len(shape) == 2 and LINEAR.search(name)
    }


def weights_of_blocks(layers: dict[str, tuple[int, int]]) -> dict[str, int]:
    """How many weights each block's layers have, by the block's number."""
    blocks: dict[str, int] = defaultdict(int)
    for name, (outputs, inputs) in layers.items():
        block = BLOCK.search(name)
        blocks[block[1] if block else ""] += outputs * inputs
    return blocks


def check(source: Source, title: str, experts: str = FUSED) -> dict[str, tuple[int, int]]:
    """Refuse a source that is quantized, a mixture of experts (why: ``experts``) or more than a
    language model, and return the layers that can be quantized.
    """
    if source.quantized:
        raise InputError(
            f"{source.id} is quantized already ({source.quantized}); {title} needs the unquantized"
            " model"
        )
    config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    towers = [name for name in ("vision_config", "audio_config") if config.get(name)]
    if towers:
        raise InputError(
            f"{source.id} ({source.architecture}) is not a pure language model"
            f" ({', '.join(towers)}); {title} is offered for language models only. GGUF takes many"
            " such models"
        )
    if any(EXPERTS.search(name) for name in shapes(source)):
        raise InputError(
            f"{source.id} ({source.architecture}) is a mixture of experts: {experts}. GGUF takes"
            " such models"
        )
    layers = linears(source)
    if not layers:
        raise InputError(
            f"{source.id} ({source.architecture}) has no layers that {title} could quantize: none"
            " of its tensors is named …layers.N.….weight"
        )
    if bytes_to_fetch(source) > MUCH:
        _refuse_unknown(str(config.get("model_type")), title)
    return layers


@functools.cache
def _refuse_unknown(model_type: str, title: str) -> None:
    """Refuse an architecture that transformers does not load, before much is downloaded for it (the
    worker that quantizes would say so only then).
    """
    with tempfile.TemporaryDirectory() as scratch:
        process.call(KNOWN, log=Path(scratch) / "log", model_type=model_type, who=title)


def refuse_unknown(model_type: str, who: str) -> None:
    """Refuse an architecture that transformers, with which ``who`` loads models, does not know.
    Imports transformers: runs in workers.
    """
    import difflib

    from transformers import CONFIG_MAPPING, __version__

    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type, list(CONFIG_MAPPING), n=5, cutoff=0.4)
        raise InputError(
            f"transformers {__version__}, with which {who} loads models, does not know the"
            f" architecture {model_type!r}; nearest of {len(CONFIG_MAPPING)} it knows:"
            f" {', '.join(near) or 'none'}"
        )
