"""Looking at a repository without fetching a weight, and fetching from it: only what is needed,
checked against the Hub's hashes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autoquant.core import rates
from autoquant.core.errors import CheckFailed, InputError
from autoquant.core.files import existing_parent, free_bytes, sha256_of
from autoquant.hub.client import (
    connect,
    offline,
)
from autoquant.hub.download import download, not_cached
from autoquant.hub.look import Look, RemoteFile
from autoquant.hub.resume import LARGE, fetch_large, fetch_to

log = logging.getLogger(__name__)


def missing(listing: Look) -> list[RemoteFile]:
    """The files of a look that are not in huggingface_hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    return [
        file
        for file in listing.files
        if not isinstance(
            try_to_load_from_cache(listing.id, file.name, revision=listing.revision), str
        )
    ]


def bytes_missing(listing: Look) -> int:
    """Bytes that :func:`fetch` would download: what is there of a large file already is not
    counted.
    """
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{listing.id.replace('/', '--')}" / "blobs"
    parts = {file.name: blobs / f"{file.sha256}.part" for file in listing.files}
    return sum(
        file.bytes - (parts[file.name].stat().st_size if parts[file.name].is_file() else 0)
        for file in missing(listing)
    )


def same_disk(folder: Path) -> bool:
    """Whether a folder lies on the disk that downloads go to."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    return existing_parent(cache).stat().st_dev == existing_parent(folder).stat().st_dev


def cache_free() -> int:
    """Free bytes of the disk that downloads go to."""
    from huggingface_hub import constants

    return free_bytes(Path(constants.HF_HUB_CACHE))


def fetch(listing: Look) -> tuple[Path, dict[str, str]]:
    """Fetch the files of a look, check each one's size and hash, and return the folder and the
    sha256 by name.

    What a killed download left of a large file is resumed, and of other files removed; files
    that are complete are kept. Raises InputError (no room, no access), CheckFailed (a file's bytes
    are not those the Hub lists: it is removed from the cache) or HubFailed.
    """
    client = connect()
    from huggingface_hub import constants, try_to_load_from_cache

    cache = Path(constants.HF_HUB_CACHE)
    absent, known, begun = missing(listing), dict[str, str](), time.monotonic()
    if absent:
        if offline():
            raise not_cached(listing.id, None, client)
        _remove_leftovers(cache / f"models--{listing.id.replace('/', '--')}", absent)
        needed, free = bytes_missing(listing), free_bytes(cache)
        if needed > free:
            raise InputError(
                f"downloading {listing.id} needs {needed / 1e9:.2f} GB in {cache}, {free / 1e9:.2f}"
                " GB are free. Free some space or set HF_HOME to a larger disk"
            )
        log.info("downloading %s: %d files, %.1f MB", listing.id, len(absent), needed / 1e6)
        large = [
            (file.name, file.sha256, file.bytes)
            for file in absent
            if file.sha256 and file.bytes >= LARGE
        ]
        known = fetch_large(
            client,
            listing.id,
            listing.revision,
            large,
            cache / f"models--{listing.id.replace('/', '--')}",
        )
    if absent:
        folder = download(client, listing.id, listing.revision, [f.name for f in listing.files])
        rates.note_download(needed, time.monotonic() - begun)
    else:
        name = listing.files[0].name
        there = try_to_load_from_cache(listing.id, name, revision=listing.revision)
        folder = Path(str(there)).parents[name.count("/")]
    with ThreadPoolExecutor(max_workers=4) as pool:
        hashes = dict(
            zip(
                [file.name for file in listing.files],
                pool.map(
                    lambda file: _verified(
                        folder / file.name, file, listing, known.get(file.name, "")
                    ),
                    listing.files,
                ),
                strict=True,
            )
        )
    return folder, hashes


def fetch_one(
    listing: Look, name: str, place: Path, stopped: Callable[[], bool] = lambda: False
) -> None:
    """Fetch one file of a look to ``place``, or link it there from huggingface_hub's cache; its
    size and hash are checked. What a killed download left is resumed. Ends early when it is
    ``stopped``. Raises what :func:`fetch` does.
    """
    from huggingface_hub import try_to_load_from_cache

    file = next(one for one in listing.files if one.name == name)
    there = try_to_load_from_cache(listing.id, name, revision=listing.revision)
    if isinstance(there, str):
        _verified(Path(there), file, listing)
        place.symlink_to(Path(there).resolve())
        return
    part = place.with_name(f"{place.name}.part")
    begun, there_already = time.monotonic(), part.stat().st_size if part.exists() else 0
    sha256 = fetch_to(connect(), listing.id, listing.revision, name, file.bytes, part, stopped)
    if stopped():
        return
    rates.note_download(file.bytes - there_already, time.monotonic() - begun)
    _verified(part, file, listing, sha256)
    os.replace(part, place)


def _verified(path: Path, file: RemoteFile, listing: Look, sha256: str = "") -> str:
    """The sha256 of a fetched file, unless it was taken as it came; if it is not what the Hub
    lists, the file is removed from the cache and CheckFailed raised.
    """
    sha256 = sha256 or sha256_of(path)
    if file.same_as(path, sha256):
        return sha256
    size = path.stat().st_size
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise CheckFailed(
        f"{listing.id}: {file.name} has arrived with {size:,} bytes and sha256 {sha256}, but the"
        f" Hub lists {file.bytes:,} bytes{' and ' + file.sha256 if file.sha256 else ''}. It was"
        " removed; run again to fetch it anew. If that does not help, the file on the Hub is"
        " damaged"
    )


def _remove_leftovers(repo_cache: Path, files: Iterable[RemoteFile]) -> None:
    """Remove what killed downloads have left of these files: huggingface_hub (1.27, 2.4) neither
    resumes nor removes it.
    """
    from filelock import FileLock, Timeout

    for file in files:
        name = file.sha256 or file.blob
        lock = repo_cache.parent / ".locks" / repo_cache.name / f"{name}.lock"
        left = list((repo_cache / "blobs").glob(f"{name}*.incomplete"))
        if not left:
            continue
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock, timeout=0):
                for path in left:
                    path.unlink(missing_ok=True)
        except Timeout:
            continue  # somebody is fetching it right now
