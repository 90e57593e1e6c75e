"""The files that a run writes: what is to be in each, and where."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp.ggml import Bytes, Floats
from autoquant.backends.llamacpp.types import file_type
from autoquant.core import gguf_head


class File:
    """A file, or a shard of one, into which tensors are written at their offsets, in any order.
    ``left`` are the names of those that it lacks. Its hash costs no reading where they come in the
    file's own order. One that is ``gone`` was finished, and taken away.
    """

    def __init__(self, path: Path, laid: gguf_head.Laid, *, gone: bool) -> None:
        self.path, self.laid, self.gone = path, laid, gone
        self.left = set(laid.offsets)
        self._hash: Any = None
        self._at = 0
        self._file = -1

    @property
    def there(self) -> bool:
        """Whether it was begun."""
        return self.gone or (self.path.is_file() and self.path.stat().st_size == self.laid.size)

    def begin(self) -> None:
        """Make it, all hole but for its head."""
        with open(self.path, "wb") as file:
            file.write(self.laid.head)
            file.truncate(self.laid.size)
        self.gone = False
        self._hash, self._at = hashlib.sha256(self.laid.head), len(self.laid.head)

    def to_write(self) -> int:
        """Bytes that it does not take on the disk yet."""
        there = 512 * self.path.stat().st_blocks if self.path.is_file() else self.laid.size
        return max(0, self.laid.size - there)

    def open(self) -> None:
        """Have it ready to be written to."""
        if not self.gone:
            self._file = os.open(self.path, os.O_WRONLY)

    def close(self) -> None:
        """The opposite; it may be closed already."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def write(self, name: str, at: int, data: Bytes) -> None:
        """Write a part of a tensor, from its byte ``at``. Several threads may."""
        view, offset = data.reshape(-1).data, self.laid.offsets[name] + at
        while view:
            n = os.pwrite(self._file, view, offset)
            view, offset = view[n:], offset + n

    def count(self, name: str, at: int, data: Bytes) -> None:
        """Take a written part into the hash."""
        offset = self.laid.offsets[name] + at
        gap = offset - self._at
        if self._hash is None or not 0 <= gap < self.laid.alignment:
            self._hash = None
            return
        self._hash.update(bytes(gap))
        self._hash.update(data.reshape(-1).data)
        self._at = offset + data.nbytes

    @property
    def sha256(self) -> str:
        """Of the whole file; empty if its tensors have come in another order."""
        gap = self.laid.size - self._at
        if self._hash is None or self.left or gap >= self.laid.alignment:
            return ""
        self._hash.update(bytes(gap))
        self._at = self.laid.size
        return str(self._hash.hexdigest())


@dataclass(frozen=True)
class Target:
    """What a job makes: a file or its shards, each tensor's type in it, and the importance of each
    one's inputs. ``file_of`` gives the file of a tensor, by names in the order of the files.
    """

    job: dict[str, Any]
    files: tuple[File, ...]
    types: dict[str, str]
    imatrix: dict[str, Floats]
    file_of: dict[str, File] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.file_of.update((name, file) for file in self.files for name in file.laid.offsets)

    @classmethod
    def of(
        cls,
        job: dict[str, Any],
        head: gguf_head.Head,
        split: int,
        imatrix: dict[str, Floats],
        gone: Container[str],
    ) -> Target:
        """A job is ``{"type", "target", "plan", "ready", "imatrix", "kept"}``. One that is
        ``ready`` is what the converter would write, with this ``head``; it is cut into shards of
        ``split`` bytes, but for one that is kept for ourselves. ``gone`` are the names of files
        that an earlier run has finished and taken away.
        """
        path, planned, split = Path(job["target"]), job["plan"], 0 if job["kept"] else split
        if job["ready"]:
            types = {name: one.type for name, one in head.tensors.items()}
            laid, imatrix = gguf_head.unchanged(head, split), {}
        else:
            types = planned["tensors"]
            number = file_type(job["type"]).number
            laid = gguf_head.quantized(
                head, types, planned["order"], number, split, planned.get("keys")
            )
        names = [gguf_head.shard_name(path.name, i, len(laid)) for i in range(len(laid))]
        files = tuple(
            File(path.with_name(name), one, gone=name in gone)
            for name, one in zip(names, laid, strict=True)
        )
        return cls(job, files, types, imatrix if job["imatrix"] else {})
