"""Source -> Snapshot: its files at hand, and hashed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from autoquant.core.files import sha256_of
from autoquant.core.records import Snapshot, Source
from autoquant.hub import fetch as hub
from autoquant.hub import look
from autoquant.source.describe import describe, side_files


def bytes_to_fetch(source: Source) -> int:
    """Bytes that :func:`fetch` would download."""
    if not source.remote or source.revision is None:
        return 0
    return hub.bytes_missing(look.known(source.id, source.revision))


def fetch(source: Source) -> Snapshot:
    """Have the files at hand and hash them. Of a folder nothing is copied; from the Hub the missing
    files are downloaded and checked.
    """
    if source.remote:
        assert source.revision is not None
        folder, files = hub.fetch(look.known(source.id, source.revision))
        here = describe(folder, source.id, allow_pickle=False)
        source = dataclasses.replace(
            here, revision=source.revision, gated=source.gated, private=source.private
        )
        return _snapshot(source, files)
    side = (path.relative_to(source.folder).as_posix() for path in side_files(source.folder))
    names = sorted({*side, *source.weights})
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
