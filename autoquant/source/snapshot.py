"""Source -> Snapshot: its files at hand, and hashed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autoquant.core.files import sha256_of
from autoquant.core.records import Snapshot, Source
from autoquant.formats.checkpoint import weight_files
from autoquant.hub import fetch as hub
from autoquant.hub import look
from autoquant.source import adapter as adapters
from autoquant.source import from_gguf, unquantized
from autoquant.source.describe import describe, describe_as_stored, side_files


def bytes_to_fetch(source: Source) -> int:
    """Bytes that :func:`fetch` would download."""
    base = bytes_to_fetch(source.adapted) if source.adapted else 0
    if not source.remote or source.revision is None:
        return base
    return base + hub.bytes_missing(look.known(source.id, source.revision, source.tag))


def adapter_bytes(source: Source) -> int:
    """Bytes that :func:`fetch_adapter` would download."""
    if not source.remote or source.revision is None:
        return 0
    return hub.bytes_missing(look.known(source.id, source.revision))


def fetch_adapter(source: Source) -> Snapshot:
    """Have an adapter's own files at hand, and hash them; the model that it changes stays where it
    is. The snapshot's folder is the adapter's.
    """
    assert source.adapter is not None
    adapter = source.adapter
    if source.remote and source.revision is not None:
        adapter, _ = hub.fetch(look.known(source.id, source.revision))
    names = sorted(path.name for path in adapter.iterdir() if path.is_file())
    files = {name: sha256_of(adapter / name) for name in names}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    source = dataclasses.replace(source, adapter=adapter, remote=False)
    return Snapshot(source=source, folder=adapter, sha256=digest, files=files)


def fetch(source: Source, *, make: bool = True) -> Snapshot:
    """Have the files at hand and hash them. Of a folder nothing is copied; from the Hub the missing
    files are downloaded and checked. A quantized source is made 16-bit, and an adapter merged,
    once, in the cache; or not, for who does so as tensors are read (``make``).
    """
    if source.adapter is not None and source.adapted is not None:
        adapter, base = source.adapter, source.adapted
        if source.remote and source.revision is not None:
            adapter, _ = hub.fetch(look.known(source.id, source.revision, source.tag))
        source = dataclasses.replace(source, adapter=adapter, remote=False)
        return _merged(source, adapter, fetch(base, make=make), make=make)
    if source.remote:
        assert source.revision is not None
        folder, files = hub.fetch(look.known(source.id, source.revision, source.tag))
        here = (
            from_gguf.describe(folder, _ggufs(source), source.id)
            if source.gguf
            else describe(folder, source.id, allow_pickle=False)
        )
        source = dataclasses.replace(
            here,
            revision=source.revision,
            gated=source.gated,
            private=source.private,
            tag=source.tag,
        )
    else:
        files = _hashes(source.stored_in or source.folder, source)
    digest = hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()
    if source.stored_in is not None and make:
        place = unquantized.place_of(source.stored_in, digest)
        form = describe_as_stored(place, source.id, allow_pickle=False)
        source = dataclasses.replace(source, folder=place, weights=form.weights)
    unmade = source.stored_in is not None and not make
    return Snapshot(source, source.folder, digest, dict(files), unmade)


def both(adapter: Path, base: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The hashes of an adapter's files and its base's, and one of all."""
    names = sorted(path.name for path in adapter.iterdir() if path.is_file())
    files = {f"adapter/{name}": sha256_of(adapter / name) for name in names}
    files |= {f"base/{name}": value for name, value in base.items()}
    return files, hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _merged(source: Source, adapter: Path, base: Snapshot, *, make: bool) -> Snapshot:
    """An adapter's merged model, with the hashes of both."""
    files, digest = both(adapter, base.files)
    if not make:
        source = dataclasses.replace(source, adapted=base.source)
        return Snapshot(source, source.folder, digest, files, unmade=True)
    place = adapters.merged(source, base.folder, digest)
    form = describe_as_stored(place, source.id, allow_pickle=False)
    source = dataclasses.replace(source, folder=place, weights=form.weights)
    return Snapshot(source=source, folder=place, sha256=digest, files=files)


def _ggufs(source: Source) -> list[str]:
    """The files of a source that is GGUF."""
    return [*source.weights, *([source.mmproj] if source.mmproj else [])]


def _hashes(folder: Path, source: Source) -> dict[str, str]:
    """The sha256 of the files in a folder, by name."""
    weights = source.weights
    if source.stored_in is not None:
        weights = tuple(path.name for path in weight_files(folder))
    side = (path.relative_to(folder).as_posix() for path in side_files(folder))
    # a GGUF file is the whole model, whatever lies beside it
    names = sorted(_ggufs(source) if source.gguf else {*side, *weights})
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = pool.map(lambda name: sha256_of(folder / name), names)
        return dict(zip(names, found, strict=True))
