"""Sources whose weights stay on the Hub: which can be read from there tensor by tensor, and what of
them is on the disk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

from autoquant.core.cache import cache_folder
from autoquant.core.files import key_of, sha256_of
from autoquant.core.records import Snapshot, Source
from autoquant.formats.checkpoint import weight_files
from autoquant.hub import look
from autoquant.source.snapshot import both, fetch_adapter

# quantized checkpoints whose tensors are read one by one, by headers alone
TENSORWISE = ("fp8", "compressed-tensors", "mxfp4")


def origin(source: Source) -> Source:
    """The source whose files come: of an adapter's, the base."""
    return source.adapted or source


def listing_of(source: Source) -> look.Look:
    """What the Hub lists of a source's files; of an adapter's, the base's."""
    base = origin(source)
    assert base.revision is not None
    return look.known(base.id, base.revision, base.tag)


def names(source: Source) -> set[str]:
    """The names of the weight files that come."""
    base = origin(source)
    if base.stored_in is not None:
        return {path.name for path in weight_files(base.stored_in)}
    return set(base.weights)


def weight_bytes(source: Source) -> int:
    """Bytes of the weight files, as the Hub lists them."""
    own = names(source)
    return sum(file.bytes for file in listing_of(source).files if file.name in own)


def why_not(source: Source) -> str:
    """Why all of a source's files are needed at once; empty if they are not."""
    base = origin(source)
    if not base.remote or base.revision is None:
        return f"{base.id} is not on the Hub"
    if base.gguf or base.pickle:
        return f"{base.id} is no checkpoint of safetensors"
    if not names(source) <= {file.name for file in listing_of(source).files}:
        return f"{base.id} has its weights under other names than usual"
    if base.stored_in is not None and base.stored_as not in TENSORWISE:
        return f"{base.id} is quantized ({base.stored_as}), which is read from all files at once"
    return ""


def needs_made(source: Source) -> bool:
    """Whether a source at hand that is quantized, or an adapter's, is made into a checkpoint: one
    whose tensors cannot be made as they are read.
    """
    base = origin(source)
    return base.stored_in is not None and base.stored_as not in TENSORWISE


def snapshot(source: Source) -> Snapshot:
    """A source whose weights stay on the Hub, with the hashes that it lists; an adapter's own files
    are fetched.
    """
    known = listing_of(source)
    files = {file.name: file.sha256 or sha256_of(known.folder / file.name) for file in known.files}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    if source.adapter is not None:
        adapter = fetch_adapter(source).folder
        files, digest = both(adapter, files)
        source = dataclasses.replace(source, adapter=adapter, remote=True)
    unmade = source.adapter is not None or source.stored_in is not None
    return Snapshot(source, source.folder, digest, files, unmade)


def copy_bytes(source: Source) -> int:
    """Bytes of the 16-bit copies in the cache that having a source at hand makes, beside its files:
    of one that is quantized, and of an adapter's. None if they are there.
    """
    if source.adapter is None and source.stored_in is None:
        return 0
    kind = "16bit" if source.adapter is None else "merged"
    place = cache_folder() / "sources" / f"{key_of(snapshot(source).sha256)}-{kind}"
    if (place / "config.json").is_file():
        return 0
    base = source.adapter is not None and origin(source).stored_in is not None
    return 2 * source.parameters * (1 + base)
