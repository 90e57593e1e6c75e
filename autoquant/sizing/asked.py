"""What each GGUF type of a model has of bytes, and what llama.cpp takes beside them: asked of
llama.cpp itself, by a header that its converter writes. No weight is read or downloaded; it takes
the seconds that importing transformers takes.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import converter as llama
from autoquant.backends.llamacpp.types import TYPES
from autoquant.core import gguf_head
from autoquant.core.errors import AutoQuantError, InputError
from autoquant.core.options import build
from autoquant.core.records import Source
from autoquant.methods.gguf import Gguf, mmproj, requantize
from autoquant.methods.gguf.convert import convert, fallback_note, precision
from autoquant.methods.gguf.options import GgufOptions
from autoquant.runtime import process
from autoquant.sizing.memory import Beside

BLOCK = re.compile(r"^blk\.(\d+)\.")


@dataclass(frozen=True)
class File:
    """A GGUF file to be: bytes of all of it, of each block's tensors (``blocks``), and of its
    ``largest`` tensor. ``exact``: by llama.cpp's own plan; else bits per weight times weights.
    """

    type: str
    bytes: int
    bits_per_weight: float
    needs_imatrix: bool
    exact: bool = False
    note: str = ""
    blocks: tuple[int, ...] = ()
    largest: int = 0


@dataclass(frozen=True)
class Asked:
    """What llama.cpp says of a model: its files, and what it takes beside them."""

    files: tuple[File, ...]
    beside: Beside


def ask(
    source: Source, context: int, kv_type: str, types: Sequence[str], pre_tokenizer: str = ""
) -> Asked:
    """Convert a source to a header, plan all types on it, and let llama.cpp open it without
    allocating. Raises AutoQuantError where the converter, or llama.cpp, does not take the model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        header, logs = Path(scratch) / "header.gguf", Path(scratch) / "log"
        plans = _plans(source, header, logs, list(types), pre_tokenizer)
        head = gguf_head.read(header)
        files = [_file(plan, head) for plan in plans if "impossible" not in plan]
        if source.gguf:
            own = _own(source, head)
            smaller = (file for file in files if file.bits_per_weight < own.bits_per_weight)
            files = [own, *smaller]
        beside = beside_of(header, context, kv_type, logs)
        return Asked(tuple(files), replace(beside, tower=tower_of(source)))


def beside_of(header: Path, context: int, kv_type: str, logs: Path) -> Beside:
    """What llama.cpp takes beside the weights of a GGUF file, or of its header and a hole."""
    said = process.call(
        "autoquant.backends.llamacpp.memory:buffers",
        log=logs,
        env=llama.environment(llama.locate()),
        fresh=True,  # it needs nothing that takes seconds to import
        header=str(header),
        context=context,
        kv_type=kv_type,
    )
    return Beside(said["cache"], said["state"], said["compute"] + said["output"], asked=True)


def tower_of(source: Source) -> int:
    """Bytes of the mmproj file of a model that sees or hears, which is made with its GGUF files or
    lies beside them; 0 if there is none.
    """
    if source.gguf:
        name = tower_name(source)
        return (source.folder / name).stat().st_size if name else 0
    return int(mmproj.plan(source, GgufOptions()).get("bytes", 0))


def tower_name(source: Source) -> str:
    """How that file is called; of a GGUF file's, empty if none of the same model's name lies beside
    it.
    """
    if not source.gguf:
        return mmproj.file_name(source, GgufOptions())
    if source.mmproj:
        return source.mmproj if (source.folder / source.mmproj).is_file() else ""
    for one in sorted(source.folder.glob("mmproj-*.gguf")):
        model = one.stem.removeprefix("mmproj-").rpartition("-")[0]
        if model and source.gguf.startswith(model):
            return one.name
    return ""


def by_bits(source: Source, types: Sequence[str]) -> tuple[File, ...]:
    """The same files by bits per weight, where llama.cpp cannot be asked."""
    return tuple(
        File(
            name,
            int(TYPES[name].bits_per_weight * source.parameters / 8),
            TYPES[name].bits_per_weight,
            TYPES[name].imatrix == "needed",
        )
        for name in types
    )


def _plans(
    source: Source, header: Path, logs: Path, types: list[str], pre_tokenizer: str
) -> list[dict[str, Any]]:
    """llama.cpp's plan of each type; ``header`` is written."""
    given = {"types": types, "evaluate": "off", "pre_tokenizer": pre_tokenizer}
    built = build(GgufOptions, given)
    options = Gguf().resolve_defaults(source, built)
    if source.gguf:
        return requantize.plans(
            source, options, types, folder=source.folder, header=header, logs=logs
        )
    said = convert(
        source,
        options,
        header=header,
        logs=logs,
        types=types,
        outtype=precision(source, options),
        room=None,
        need={},
    )
    return list(said["plans"])


def _file(plan: dict[str, Any], head: gguf_head.Head) -> File:
    """One type of a plan."""
    sizes = {name: _bytes(head.tensors[name], kind) for name, kind in plan["tensors"].items()}
    blocks: dict[int, int] = {}
    for name, size in sizes.items():
        if match := BLOCK.match(name):
            blocks[int(match[1])] = blocks.get(int(match[1]), 0) + size
    return File(
        plan["type"],
        plan["bytes"],
        plan["bits_per_weight"],
        plan["needs_imatrix"],
        exact=True,
        note=fallback_note(plan),
        blocks=tuple(blocks[number] for number in sorted(blocks)),
        largest=max(size for name, size in sizes.items() if BLOCK.match(name)),
    )


def _own(source: Source, head: gguf_head.Head) -> File:
    """A source that is a GGUF file, as it is."""
    planned = {
        "type": source.dtype,
        "bytes": source.bytes,
        "bits_per_weight": 8 * source.bytes / source.parameters,
        "needs_imatrix": False,
        "tensors": {name: tensor.type for name, tensor in head.tensors.items()},
        "fallbacks": {},
    }
    return _file(planned, head)


def _bytes(tensor: gguf_head.Entry, kind: str) -> int:
    """Bytes of a tensor in a type."""
    _, block, size = gguf_head.TYPES[gguf_head.NUMBERS[kind]]
    return math.prod(tensor.shape) // block * size


def why_not(error: AutoQuantError) -> str:
    """Why llama.cpp was not asked, in the words of a note."""
    failed = "" if isinstance(error, InputError) else "llama.cpp failed; "
    return (
        f"{failed}all sizes are computed from config.json and nominal bits per weight, for: {error}"
    )
