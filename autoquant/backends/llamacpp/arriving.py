"""Files of a checkpoint that arrive one after the other, and go again, while tensors are made of
them. Runs in the converter's worker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.utility import LocalTensor

from autoquant.core.errors import ProcessFailed
from autoquant.runtime.worker import Emit

FAILED = "failed"  # stands there if no more files will come
PIECE = 16 << 20  # bytes that are copied at a time
EVERY = 0.02  # seconds between two looks


class Arriving:
    """The checkpoint's files as they come into ``folder``, where somebody else puts and removes
    them. What is told by ``emit``: ``{"fetch": names, "needs": bytes}``, the files that are needed,
    in order, and what will be written beside them; and ``{"release": name}`` when one is not needed
    any more. The converter has seen headers alone, in files of the same names. What is ``spare``
    ([file, offset, bytes]) is for others, and copied to its place in the file of that name in
    ``folder/spared``.
    """

    def __init__(self, folder: str, emit: Emit, spare: list[list[Any]], needs: int) -> None:
        self.folder, self.emit, self.needs = Path(folder), emit, needs
        self.spare: dict[str, list[tuple[int, int]]] = {}
        for file, offset, size in spare:
            self.spare.setdefault(file, []).append((offset, size))
        self.kept = self.folder / "kept"
        self.kept.mkdir(exist_ok=True)
        read = self._read
        LocalTensor.mmap_bytes = lambda leaf: read(leaf)

    def _read(self, leaf: LocalTensor) -> Any:
        """A tensor's bytes, from the file that has arrived or what was kept of it."""
        part, size = self._part(leaf), leaf.data_range.size
        if part.is_file():
            return np.memmap(part, mode="c", shape=size)
        path = self.folder / leaf.data_range.filename.name
        return np.memmap(path, mode="c", offset=leaf.data_range.offset, shape=size)

    def _part(self, leaf: LocalTensor) -> Path:
        return self.kept / f"{leaf.data_range.filename.name}-{leaf.data_range.offset}"

    def _files(self, leaves: list[LocalTensor]) -> set[str]:
        """The files that these tensors are read from."""
        return {leaf.data_range.filename.name for leaf in leaves if not self._part(leaf).is_file()}

    def in_turn(
        self, tensors: dict[str, list[LocalTensor]], settle: Callable[[], None]
    ) -> Iterator[str]:
        """The names of ``tensors``, each when the files are there with those of the checkpoint that
        it is made of. ``settle`` waits until nothing of those that were given reads from a file any
        more.

        A tensor that is made of two files does not hold the first one: its part of that is copied
        away.
        """
        left = dict(tensors)
        needed = {file for file in self.spare if not self._marked(file).exists()}
        wanted = sorted(needed.union(*(self._files(leaves) for leaves in left.values())))
        self.emit({"fetch": wanted, "needs": self.needs})
        here: set[str] = set()
        for file in ("", *wanted):
            if file:
                self._wait_for(file)
                here.add(file)
            for name in [one for one, leaves in left.items() if self._files(leaves) <= here]:
                del left[name]
                yield name
            settle()
            if file:
                for leaf in (one for leaves in left.values() for one in leaves):
                    if leaf.data_range.filename.name == file:
                        self._keep(leaf)
                self._spare(file)
                here.remove(file)
                self.emit({"release": file})

    def _wait_for(self, file: str) -> None:
        while not (self.folder / file).is_file():
            if (self.folder / FAILED).exists():
                raise ProcessFailed(f"{file} does not come")
            time.sleep(EVERY)

    def _marked(self, file: str) -> Path:
        """What is there when a file's spare parts are copied."""
        return self.kept / f"{file}.spared"

    def _spare(self, file: str) -> None:
        if file not in self.spare or self._marked(file).exists():
            return
        source, target = self.folder / file, self.folder / "spared" / file
        with open(source, "rb") as given, open(target, "r+b") as out:
            for offset, size in self.spare[file]:
                given.seek(offset)
                out.seek(offset)
                while size:
                    data = given.read(min(size, PIECE))
                    size -= out.write(data)
        self._marked(file).touch()

    def _keep(self, leaf: LocalTensor) -> None:
        place = self._part(leaf)
        if not place.is_file():
            part = place.with_suffix(".part")
            self._read(leaf).tofile(part)
            os.replace(part, place)


def leaves_of(tensor: Any) -> list[LocalTensor]:
    """The tensors of the checkpoint that a lazy tensor of the converter is made of."""
    found: dict[int, LocalTensor] = {}
    seen: set[int] = set()
    stack = [tensor]
    while stack:
        one = stack.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, LocalTensor):
            found[id(one)] = one
        elif isinstance(one, (list, tuple)):
            stack += one
        elif isinstance(one, gguf.LazyChunkedTensor):
            raise ProcessFailed("the converter makes a tensor in a way that hides its files")
        elif isinstance(one, gguf.LazyBase) and one._data is None:
            stack += [*one._args, *one._kwargs.values()]
    return list(found.values())
