"""Files of a checkpoint that arrive one after the other, and go again, while tensors are made of
them. Runs in the converter's worker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
from gguf.utility import LocalTensor, LocalTensorRange

from autoquant.backends.llamacpp.reading import Reading, Span
from autoquant.core.errors import ProcessFailed
from autoquant.runtime.worker import Emit

GOING = "going"  # stands there while files are to come; to take it away needs no room
EVERY = 0.02  # seconds between two looks


class Arriving:
    """The checkpoint's files as they come into ``folder``, where somebody else puts and removes
    them. What is told by ``emit``: ``{"fetch": names, "needs": bytes}``, the files that are needed,
    in order, and what will be written beside them; and ``{"release": name}`` when one is not needed
    any more. The converter has seen headers alone, in files of the same names, or of a model that
    is ``made`` of these (see reading.Reading).

    What is ``spare`` ([file, offset, bytes], of files that the converter has seen) is for others:
    it is written to its place in the file of that name in ``folder/spared``.
    """

    def __init__(
        self,
        folder: str,
        emit: Emit,
        *,
        spare: list[list[Any]],
        needs: int,
        made: Mapping[str, Any] | None,
    ) -> None:
        self.folder, self.emit, self.needs = Path(folder), emit, needs
        self.kept = self.folder / "kept"
        self.kept.mkdir(exist_ok=True)
        self.reading = Reading(self.folder, self.kept, made)
        self._have = {path.name for path in self.kept.iterdir() if path.suffix != ".part"}
        self._spared = self.kept / "spared.txt"  # what is in its place already
        done = self._spared.read_text().splitlines() if self._spared.exists() else []
        self.spare = {
            f"{file}-{offset}": LocalTensor(
                "U8", (size,), LocalTensorRange(Path(file), offset, size)
            )
            for file, offset, size in spare
            if f"{file}-{offset}" not in done
        }

    def _spans(self, leaves: list[LocalTensor]) -> set[Span]:
        """The stored tensors that these are made of."""
        return {span for leaf in leaves for span in self.reading.spans(leaf)}

    def _place(self, span: Span) -> Path:
        place = self.reading.place(span)
        assert place is not None
        return place

    def _files(self, spans: set[Span]) -> set[str]:
        """The files that have stored tensors which are not kept."""
        return {span.file for span in spans if self._place(span).name not in self._have}

    def in_turn(
        self, tensors: dict[str, list[LocalTensor]], settle: Callable[[], None]
    ) -> Iterator[str]:
        """The names of ``tensors``, each when the files are there with those of the checkpoint that
        it is made of. ``settle`` waits until nothing of those that were given reads from a file any
        more.

        A tensor that is made of two files does not hold the first one: its part of that is copied
        away, until the tensor is made.
        """
        left = {name: self._spans(leaves) for name, leaves in tensors.items()}
        spare = {name: self._spans([leaf]) for name, leaf in self.spare.items()}
        every = set[Span]().union(*left.values(), *spare.values())
        wanted = sorted(self._files(every))
        self.emit({"fetch": wanted, "needs": self.needs})
        self._forget(every)
        for file in ("", *wanted):
            if file:
                self._wait_for(file)
            for name in [name for name, spans in left.items() if self._files(spans) <= {file}]:
                del left[name]
                yield name
            for name in [name for name, spans in spare.items() if self._files(spans) <= {file}]:
                del spare[name]
                self._spare(name)
            settle()
            still = set[Span]().union(*left.values(), *spare.values())
            for span in still:
                if span.file == file:
                    self._keep(span)
            self._forget(still)
            if file:
                self.emit({"release": file})

    def _forget(self, still: set[Span]) -> None:
        """Remove what is kept and not needed ``still``."""
        needed = {self._place(span) for span in still}
        for path in self.kept.iterdir():
            if path not in needed and path != self._spared:
                path.unlink()
                self._have.discard(path.name)

    def _wait_for(self, file: str) -> None:
        while not (self.folder / file).is_file():
            if not (self.folder / GOING).exists():
                raise ProcessFailed(f"{file} does not come")
            time.sleep(EVERY)

    def _spare(self, name: str) -> None:
        leaf = self.spare[name]
        with open(self.folder / "spared" / leaf.data_range.filename, "r+b") as out:
            out.seek(leaf.data_range.offset)
            self.reading.read(leaf).tofile(out)
        with open(self._spared, "a", encoding="utf-8") as journal:
            journal.write(f"{name}\n")

    def _keep(self, span: Span) -> None:
        place = self._place(span)
        if not place.is_file():
            part = place.with_suffix(".part")
            self.reading.stored(span).tofile(part)
            os.replace(part, place)
            self._have.add(place.name)


def kept_at_most(tensors: Iterable[set[Span]]) -> int:
    """The bytes that are kept of files which are gone, at most, while tensors that are made of
    these come :meth:`Arriving.in_turn`.
    """
    left, seen, most = list(tensors), set[str](), 0
    for file in sorted({span.file for spans in left for span in spans}):
        seen.add(file)
        left = [spans for spans in left if not {span.file for span in spans} <= seen]
        kept = {span for spans in left for span in spans if span.file in seen}
        most = max(most, sum(span.size for span in kept))
    return most


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
            raise ProcessFailed(
                "the converter does not say which files it makes a tensor of, so they cannot come"
                " one after the other: use download='whole' (--download whole)"
            )
        elif isinstance(one, gguf.LazyBase) and one._data is None:
            stack += [*one._args, *one._kwargs.values()]
    return list(found.values())
