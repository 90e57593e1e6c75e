"""The weights that a GGUF file stands for, by the names of the checkpoint that it was made of: what
the converter did to them is undone. Runs in workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from autoquant.backends.llamacpp import graphs
from autoquant.backends.llamacpp.ggml import Floats, Ggml
from autoquant.core.errors import ProcessFailed
from autoquant.formats.gguf import Header, Tensor

UNQUANTIZED = ("F32", "F16", "BF16")
PIECE = 1 << 20  # weights that a thread makes at a time


class File:
    """The values of a GGUF file's tensors, or of all its shards, in float32, by ggml's own
    functions on ``threads``.
    """

    def __init__(self, paths: Sequence[str], threads: int) -> None:
        self._where = {
            name: (header, tensor)
            for header in map(Header, paths)
            for name, tensor in header.tensors.items()
        }
        self._ggml, self._pool = Ggml(), ThreadPoolExecutor(threads)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> list[str]:
        """Those that it has."""
        return list(self._where)

    def tensor(self, name: str) -> Tensor:
        """What the header says of one."""
        return self._where[name][1]

    def rows(self, name: str, first: int = 0, last: int | None = None) -> Floats:
        """Rows [n, width] of one, the last dimensions of its shape taken together."""
        header, tensor = self._where[name]
        raw = header.rows(tensor)[first:last]
        out = np.empty((len(raw), tensor.shape[0]), np.float32)
        step = max(1, PIECE // tensor.shape[0])

        def piece(at: int) -> None:
            part = np.ascontiguousarray(raw[at : at + step])
            out[at : at + step] = self._ggml.floats(part, tensor.type)

        list(self._pool.map(piece, range(0, len(raw), step)))
        return out


class GgufWeights:
    """The checkpoint's tensors that a GGUF ``file`` holds. What is ``known`` of them is said by
    graphs.of_model; ``source`` gives the checkpoint's own: of what the converter computes, such as
    norms with 1 added, which such a file has in float32, and of what it leaves out.

    Raises ProcessFailed for a file that lacks tensors of the model or has some of other shapes, and
    for a quantized tensor that is computed.
    """

    def __init__(
        self,
        file: File,
        known: tuple[Mapping[str, graphs.Graph], Mapping[str, tuple[int, ...]]],
        source: Any,
    ) -> None:
        made, shapes = known
        self.shapes, self._file, self._source, self._made = source.shapes, file, source, made
        self._by: dict[str, list[str]] = {}
        if strange := sorted(set(file.names()) - set(made)):
            raise ProcessFailed(f"the GGUF file has {strange[0]}, which is not of this model")
        for name, graph in made.items():
            _refuse_other(file, name, graph)
            for one in graph.names():
                self._by.setdefault(one, []).append(name)
        self._stored = shapes
        self._moves: dict[str, bool] = {}

    def value(self, name: str) -> Any:
        """One tensor, as torch has it."""
        outputs = self._by.get(name, [])
        if not outputs:
            return self._source.value(name)
        if len(outputs) == 1 and (found := self._straight(name, outputs[0])) is not None:
            return found
        return self._undone(name, outputs)

    def rows(self, name: str, first: int, last: int) -> Any:
        """Some rows of one; of a matrix that lies in the file as it is nothing else is read."""
        import torch

        outputs = self._by.get(name, [])
        if not outputs:
            return self._source.rows(name, first, last)
        shape = self._stored[name]
        if len(outputs) == 1 and len(shape) > 1 and self._is_straight(outputs[0]):
            begin, each = self._place(name, outputs[0])
            each //= shape[0]
            found = self._file.rows(outputs[0], begin + first * each, begin + last * each)
            return torch.from_numpy(found).reshape(-1, *shape[1:])
        return None

    def expect(self, names: Iterable[str]) -> None:
        """Say which will be asked for soon."""
        self._source.expect(name for name in names if name not in self._by)

    def _is_straight(self, output: str) -> bool:
        """Whether a tensor of the file is one of the checkpoint as it is, or experts stacked."""
        graph = self._made[output]
        if output not in self._moves:
            self._moves[output] = straight(graph)
        return self._moves[output]

    def _straight(self, name: str, output: str) -> Any:
        """A tensor that lies in the file as it is."""
        import torch

        if not self._is_straight(output):
            return None
        begin, each = self._place(name, output)
        found = self._file.rows(output, begin, begin + each)
        return torch.from_numpy(found).reshape(self._stored[name])

    def _place(self, name: str, output: str) -> tuple[int, int]:
        """Where a tensor's rows begin in one of the file, and how many there are."""
        names, tensor = self._made[output].names(), self._file.tensor(output)
        each = tensor.elements // tensor.shape[0] // len(names)
        return names.index(name) * each, each

    def _undone(self, name: str, outputs: list[str]) -> Any:
        """A tensor by the transposed function of what the converter did."""
        import torch

        shape = self._stored[name]
        total, seen = torch.zeros(shape), torch.zeros(shape)
        zero = torch.zeros(())
        for output in outputs:
            graph = self._made[output]
            shapes = {one: self._stored[one] for one in graph.names()}
            with torch.no_grad():
                out = graph.run(lambda one, shapes=shapes: zero.expand(shapes[one]))  # type: ignore[misc]
            if out.count_nonzero():
                return self._computed(name, output)
            ones = graph.backward(torch.ones(()).expand(out.shape), shapes)[name]
            if not ((ones == 0) | (ones == 1)).all():  # it is multiplied, or there several times
                return self._computed(name, output)
            total += graph.backward(torch.from_numpy(self._file.rows(output)), shapes)[name]
            seen += ones
        if not seen.all():
            return self._computed(name, outputs[0])
        return total / seen

    def _computed(self, name: str, output: str) -> Any:
        """Of a tensor that the converter computes the source's own."""
        if self._file.tensor(output).type not in UNQUANTIZED:
            raise ProcessFailed(
                f"{output} is quantized, and llama.cpp's converter computes it of the model's"
                f" {name}: its weights cannot be given back"
            )
        return self._source.value(name)


def _refuse_other(file: File, name: str, graph: graphs.Graph) -> None:
    """Refuse a file that lacks a tensor of the model, or has one of another shape: it is of another
    model, or of another converter.
    """
    if name not in file:
        raise ProcessFailed(f"the GGUF file has no {name}, which llama.cpp's converter makes")
    found = [size for size in reversed(file.tensor(name).shape) if size != 1]
    wanted = [int(size) for size in graph.made.shape if size != 1]
    if found != wanted:
        raise ProcessFailed(
            f"{name} has shape {found} in the GGUF file; of this model llama.cpp's converter makes"
            f" {wanted}"
        )


def straight(graph: graphs.Graph) -> bool:
    """Whether a graph takes its sources as they are, stacked if there are several."""
    import torch

    def plain(one: Any) -> bool:
        if len(one._args) == 1 and id(one._args[0]) in graph.sources:
            return True
        arguments = one._args
        if len(arguments) != 2 or not hasattr(arguments[0], "_args"):
            return False
        # rows that are cut off where there are none (Gemma's of tokens that a tokenizer lacks)
        cuts = getattr(one._func, "__name__", "") == "__getitem__"
        same = arguments[1] is torch.float32 or (cuts and one.shape == arguments[0].shape)
        return same and plain(arguments[0])

    made = graph.made
    if len(graph.sources) == 1:
        return plain(made)
    stacks = getattr(made, "_func", None) is torch.stack and made._kwargs in ({}, {"dim": 0})
    return stacks and len(made._args) == 1 and all(plain(one) for one in made._args[0])
