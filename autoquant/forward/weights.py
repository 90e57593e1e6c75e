"""Where a model's weights come from: a function of a tensor's name. Runs in workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from autoquant.formats import dequantized
from autoquant.formats.tensors import Tensors
from autoquant.source.headers import Header, headers_of
from autoquant.source.merge import Model, Plain, model_of


class Weights(Protocol):
    """The tensors of a checkpoint, by the names that transformers knows, in any dtype of floats;
    each is made when it is asked for.
    """

    shapes: Mapping[str, Sequence[int]]

    def value(self, name: str) -> Any:
        """One tensor, as torch has it."""

    def rows(self, name: str, first: int, last: int) -> Any:
        """Some rows of one (of its first dimension)."""

    def expect(self, names: Iterable[str]) -> None:
        """Say which will be asked for soon."""


class Checkpoint:
    """Those of a source: ``model`` gives them, ``headers`` are theirs."""

    def __init__(self, model: Model, headers: Mapping[str, Header], tensors: Tensors) -> None:
        self.model, self.tensors = model, tensors
        self.shapes: Mapping[str, Sequence[int]] = {n: shape for n, (_, shape) in headers.items()}

    def value(self, name: str) -> Any:
        """One tensor, as torch has it."""
        return self.model.value(name)

    def rows(self, name: str, first: int, last: int) -> Any:
        """Some rows of one; of a plain checkpoint nothing else is read."""
        if isinstance(self.model, Plain):
            return self.tensors.rows(name, first, last)
        return self.model.value(name)[first:last]

    def expect(self, names: Iterable[str]) -> None:
        """Say which will be asked for soon."""
        self.tensors.expect(stored for name in names for stored in self.model.needs(name))


class Quantized(dequantized.Values):
    """Those that a quantized folder stands for, in float32."""

    def rows(self, name: str, first: int, last: int) -> Any:
        """Some rows of one; of a layer that is not quantized nothing else is read."""
        if name in self.tensors and name.removesuffix(".weight") not in self.layers:
            return self.tensors.rows(name, first, last)
        return self.value(name)[first:last]

    def expect(self, names: Iterable[str]) -> None:
        """There is nothing to prepare."""


def of_folder(folder: str) -> Weights:
    """Those of a folder of safetensors, quantized in a format that our readers know or not."""
    if dequantized.readable(folder):
        return Quantized(folder)
    tensors = Tensors(folder)
    return Checkpoint(Plain(tensors), tensors.headers(), tensors)


def of_source(folder: str, made: Mapping[str, Any] | None, tensors: Tensors) -> Checkpoint:
    """Those of a source whose stored ``tensors`` are read somewhere. ``folder`` has the headers;
    ``made`` says what is made of the stored ones, see backends.llamacpp.reading.
    """
    if made is None:
        return Checkpoint(Plain(tensors), tensors.headers(), tensors)
    model = model_of(
        Path(made["files"]),
        tensors,
        stored=made["stored"],
        adapter=made["adapter"],
        modules=made["modules"],
    )
    names = sorted(path.name for path in Path(folder).glob("*.safetensors"))
    return Checkpoint(model, headers_of(Path(folder), names), tensors)
