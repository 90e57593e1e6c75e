"""Whether a model's files are kept while GGUF types are made of them, or come and go."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from autoquant.backends.llamacpp.types import TYPES
from autoquant.core.errors import InputError
from autoquant.core.files import free_bytes
from autoquant.core.records import Snapshot, Source
from autoquant.evaluate.artifacts import SMALL
from autoquant.hub.fetch import cache_free, same_disk
from autoquant.methods.gguf import feed
from autoquant.methods.gguf.options import GgufOptions
from autoquant.source import bytes_to_fetch
from autoquant.source.structure import structure


def estimated(source: Source, name: str) -> int:
    """Bytes of a type's file, by its usual bits per weight."""
    return int(source.parameters * TYPES[name].bits_per_weight / 8)


def why_not(source: Source, options: GgufOptions) -> str:
    """Why all of a source's files are needed at once; empty if they are not."""
    if not source.remote or source.revision is None:
        return f"{source.id} is not on the Hub"
    if source.gguf or source.adapter or source.stored_in or source.pickle:
        return f"{source.id} is no plain checkpoint of safetensors"
    if options.mmproj and structure(source).towers:
        return "what it sees or hears with is converted from all files (--no-mmproj leaves it out)"
    if options.needs_whole:
        return "the unquantized file is asked for, or needed to collect an importance matrix"
    small = source.parameters <= SMALL
    if options.evaluate == "on" or (options.evaluate == "auto" and small):
        return "measuring needs all weights (--evaluate off leaves it out)"
    return ""


def check(source: Source, options: GgufOptions) -> None:
    """Refuse to stream what cannot be."""
    if options.download == "auto":
        return
    if not source.remote:
        raise InputError(f"download: {source.id} is not on the Hub; leave download out")
    if options.download == "stream" and (why := why_not(source, options)):
        raise InputError(f"download: {source.id} cannot be streamed: {why}")


def streams(source: Source, options: GgufOptions, out: Path) -> bool:
    """Whether the files come and go: as asked, or because there is no room for all of them."""
    if options.download != "auto" or why_not(source, options):
        return options.download == "stream"
    download, made = bytes_to_fetch(source), sum(estimated(source, n) for n in options.types)
    if not download:
        return False
    room = free_bytes(out) - made
    return download > (room if same_disk(out) else cache_free())


def needed(source: Source) -> int:
    """Bytes on the disk for the files that lie there at a time, at least."""
    return feed.largest(source)


def note(source: Source) -> str:
    """What a plan says of it."""
    return (
        f"the {len(source.weights)} weight files come one after the other and are removed again:"
        f" the disk holds one of at most {needed(source) / 1e9:.3f} GB beside the results, or two"
        " where there is room"
    )


def snapshot(source: Source) -> Snapshot:
    """A source whose weights stay on the Hub, with the hashes that it lists."""
    files = feed.hashes(source)
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return Snapshot(source, source.folder, digest, files)
