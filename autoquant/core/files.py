"""Files: hashes, writing in one step, free space."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(*parts: Any) -> str:
    """A short hash of JSON-able values: what a step depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_atomically(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a text file beside its place, then rename it into it. ``shared``: several processes and
    threads may do so at once.
    """
    own = f"{os.getpid()}.{threading.get_ident()}." if shared else ""
    part = path.with_name(f".{path.name}.{own}part")
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def move_into_place(made: Path, place: Path) -> None:
    """Rename a folder to its final name, unless another process was first: theirs is the same."""
    try:
        os.replace(made, place)
    except OSError:
        if not place.is_dir():
            raise


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(one for one in (path, *path.parents) if one.exists())


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that a path lies on, or would lie on."""
    return shutil.disk_usage(existing_parent(path)).free


def bytes_in(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk, holes left out; of files that go away
    meanwhile, nothing.
    """
    taken = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                taken += 512 * os.lstat(os.path.join(place, name)).st_blocks
    return taken
