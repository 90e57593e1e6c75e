"""Where a model's weights come from: a function of a tensor's name. Runs in workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from autoquant.core.errors import CheckFailed, InputError
from autoquant.formats import awq, dequantized
from autoquant.formats.checkpoint import quantization
from autoquant.formats.tensors import Tensors
from autoquant.source.headers import Header, headers_of
from autoquant.source.merge import Model, Plain, model_of
from autoquant.source.unquantized import Form


class Weights(Protocol):
    """The tensors of a checkpoint, by the names that transformers knows, in any dtype of floats;
    each is made when it is asked for.
    """

    shapes: Mapping[str, Sequence[int]]

    def value(self, name: str) -> Any:
        """One tensor, as torch has it."""

    def rows(self, name: str, first: int, last: int) -> Any:
        """Some rows of one (of its first dimension); None where only the whole can be made."""

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
        """Some rows of one, if nothing else need be read for them."""
        return self.model.rows(name, first, last)

    def expect(self, names: Iterable[str]) -> None:
        """Say which will be asked for soon."""
        self.tensors.expect(stored for name in names for stored in self.model.needs(name))


class Quantized(dequantized.Values):
    """Those that a quantized folder stands for, in float32. Raises CheckFailed for scales of
    activations, which are no weights, that are not finite.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        for name in self.tensors.names():
            if name.endswith((".input_scale", *awq.ACTIVATIONS)):
                scale = self.tensors.get(name)
                if not scale.size or not np.isfinite(scale).all():
                    raise CheckFailed(f"{name} is empty, or has NaN or Inf values")

    def inputs(self) -> dict[str, Callable[[Any], Any]]:
        """What is done to the inputs of each layer that has something done to them. Raises
        CheckFailed where its scale is missing.
        """
        try:
            return super().inputs()
        except LookupError as error:
            raise CheckFailed(f"the scale of a layer's inputs is missing: {error}") from error

    def rows(self, name: str, first: int, last: int) -> Any:
        """Some rows of one, of what is not quantized."""
        if name in self.tensors and name.removesuffix(".weight") not in self.layers:
            return self.tensors.rows(name, first, last)
        return None

    def expect(self, names: Iterable[str]) -> None:
        """There is nothing to prepare."""


def of_folder(folder: str) -> Weights:
    """Those of a folder of safetensors, quantized in a format that our readers know or not. Raises
    CheckFailed or InputError for one that is not whole.
    """
    if dequantized.readable(folder):
        try:
            return Quantized(folder)
        except (LookupError, ValueError) as error:
            raise CheckFailed(f"{folder} cannot be read back: {error}") from error
    tensors = Tensors(folder)
    if not quantization(folder):
        return Checkpoint(Plain(tensors), tensors.headers(), tensors)
    try:
        form = Form(Path(folder), tensors)
    except ValueError as error:
        raise InputError(f"{folder} is quantized, and cannot be read back: {error}") from None
    made = {name: ("BF16", list(one.shape)) for name, one in form.made.items()}
    return Checkpoint(form, made, tensors)


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
