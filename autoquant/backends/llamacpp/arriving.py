"""Files of a checkpoint that arrive one after the other, and go again, while tensors are made of
them. Runs in the converter's worker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
from gguf.utility import LocalTensor, LocalTensorRange

from autoquant.backends.llamacpp.reading import Reading, Span
from autoquant.core.errors import ProcessFailed
from autoquant.runtime.worker import Emit

FAILED = "failed"  # stands there if no more files will come
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
        """The stored tensors of those that are read, but for those that are kept."""
        every = {span for leaf in leaves for span in self.reading.spans(leaf)}
        return {span for span in every if not self._place(span).is_file()}

    def _place(self, span: Span) -> Path:
        place = self.reading.place(span)
        assert place is not None
        return place

    def in_turn(
        self, tensors: dict[str, list[LocalTensor]], settle: Callable[[], None]
    ) -> Iterator[str]:
        """The names of ``tensors``, each when the files are there with those of the checkpoint that
        it is made of. ``settle`` waits until nothing of those that were given reads from a file any
        more.

        A tensor that is made of two files does not hold the first one: its part of that is copied
        away.
        """
        left = {name: self._spans(leaves) for name, leaves in tensors.items()}
        spare = {name: self._spans([leaf]) for name, leaf in self.spare.items()}
        every = set[Span]().union(*left.values(), *spare.values())
        wanted = sorted({span.file for span in every})
        self.emit({"fetch": wanted, "needs": self.needs})
        here: set[str] = set()

        def ready(waiting: dict[str, set[Span]]) -> list[str]:
            at_hand = [
                name for name, spans in waiting.items() if {span.file for span in spans} <= here
            ]
            for name in at_hand:
                del waiting[name]
            return at_hand

        for file in ("", *wanted):
            if file:
                self._wait_for(file)
                here.add(file)
            yield from ready(left)
            for name in ready(spare):
                self._spare(name)
            settle()
            if file:
                for waiting in (*left.values(), *spare.values()):
                    for span in [span for span in waiting if span.file == file]:
                        self._keep(span)
                        waiting.remove(span)
                here.remove(file)
                self.emit({"release": file})

    def _wait_for(self, file: str) -> None:
        while not (self.folder / file).is_file():
            if (self.folder / FAILED).exists():
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
