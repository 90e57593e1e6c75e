"""Where the converter's bytes are read from: a checkpoint's files as they lie somewhere, or tensors
that are made of them as they are read. Runs in the converter's worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf.utility import LocalTensor, SafetensorsLocal

from autoquant.formats.checkpoint import weight_files
from autoquant.formats.tensors import Read
from autoquant.source.merge import model_of


class Span(NamedTuple):
    """A stored tensor's place: file, offset, bytes."""

    file: str
    offset: int
    size: int


class Reading:
    """Lets gguf-py's LocalTensors be read from the files in ``folder``, or what is ``kept`` of
    those that are gone, whatever file they were found in.

    Tensors that are ``made`` of others: ``outline`` is the folder that the converter knows, of
    headers and holes; ``files`` one with the headers of the stored tensors; for the rest see
    source.merge.model_of.
    """

    def __init__(self, folder: Path, kept: Path | None, made: Mapping[str, Any] | None) -> None:
        self.folder, self.kept = folder, kept
        self._names: dict[tuple[str, int], str] = {}
        self._leaves: dict[str, LocalTensor] = {}
        self._model: Any = None
        if made:
            self._names = {
                (leaf.data_range.filename.name, leaf.data_range.offset): name
                for name, leaf in _tensors(Path(made["outline"])).items()
                if leaf.data_range.size
            }
            files = Path(made["files"])
            self._leaves = _tensors(files)
            headers = {name: (leaf.dtype, list(leaf.shape)) for name, leaf in self._leaves.items()}
            self._model = model_of(
                files,
                Read(headers, lambda name: self.stored(_span(self._leaves[name]))),
                stored=made["stored"],
                adapter=made["adapter"],
                modules=made["modules"],
            )
        read = self.read
        LocalTensor.mmap_bytes = lambda leaf: read(leaf)

    def spans(self, leaf: LocalTensor) -> list[Span]:
        """The stored tensors that one is read from."""
        if self._model is None:
            return [_span(leaf)]
        return [_span(self._leaves[name]) for name in self._model.needs(self._name(leaf))]

    def read(self, leaf: LocalTensor) -> Any:
        """A tensor's bytes."""
        if self._model is None:
            return self.stored(_span(leaf))
        import torch

        value = self._model.value(self._name(leaf)).contiguous()
        return value.flatten().view(torch.uint8).numpy()

    def _name(self, leaf: LocalTensor) -> str:
        return self._names[leaf.data_range.filename.name, leaf.data_range.offset]

    def place(self, span: Span) -> Path | None:
        """Where a stored tensor is kept when its file is gone; None if nothing is kept."""
        return self.kept and self.kept / f"{span.file}-{span.offset}"

    def stored(self, span: Span) -> Any:
        """A stored tensor's bytes."""
        place = self.place(span)
        if place is not None and place.is_file():
            return np.memmap(place, mode="c", shape=span.size)
        return np.memmap(self.folder / span.file, mode="c", offset=span.offset, shape=span.size)


def _span(leaf: LocalTensor) -> Span:
    where = leaf.data_range
    return Span(where.filename.name, where.offset, where.size)


def _tensors(folder: Path) -> dict[str, LocalTensor]:
    """The tensors of a folder's weight files."""
    return {
        name: leaf
        for path in weight_files(folder)
        for name, leaf in SafetensorsLocal(path).tensors.items()
    }
