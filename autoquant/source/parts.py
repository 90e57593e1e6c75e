"""A source tensor by tensor: what is quantized, under which name, and what stays."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from autoquant.core.records import Source
from autoquant.formats.tensors import Part, stored_width
from autoquant.source.headers import Header, headers_of
from autoquant.source.structure import Layer, Structure, structure

GATE_UP, DOWN = "gate_up_proj", "down_proj"


def written(found: Structure, tensor: str) -> str:
    """The name of a tensor in a folder that is written: the source's, with what the names of a bare
    model lack.
    """
    known = tensor.startswith((found.prefix, "lm_head."))
    return tensor if known else f"{found.prefix}{tensor}"


def parts_of(found: Structure, headers: Mapping[str, Header]) -> dict[str, Part]:
    """All matrices that are quantized by themselves, by the name they are written under."""
    parts: dict[str, Part] = {}
    for layer in found.layers:
        for tensor in layer.tensors:
            name, shape = written(found, tensor.removesuffix(".weight")), headers[tensor][1]
            if len(shape) == 2:
                parts[name] = Part(name, tensor, (shape[0], shape[1]))
            elif len(shape) == 3:
                parts |= _experts(layer, name, tensor, shape)
    return parts


def _experts(layer: Layer, name: str, tensor: str, shape: list[int]) -> dict[str, Part]:
    """The matrices of one tensor that holds a projection of all experts, named as in checkpoints
    that hold them one by one.
    """
    base, _, last = name.rpartition(".")
    experts, outputs, inputs = shape
    if layer.transposed:
        outputs, inputs = inputs, outputs
    halves = ("gate_proj", "up_proj") if last == GATE_UP else (last,)
    rows, parts = outputs // len(halves), {}
    for expert in range(experts):
        for i, half in enumerate(halves):
            one = f"{base}.{expert}.{half}"
            first, step = (i, 2) if layer.interleaved and last == GATE_UP else (i * rows, 1)
            parts[one] = Part(one, tensor, (rows, inputs), expert, layer.transposed, first, step)
    return parts


def kept(found: Structure, headers: Mapping[str, Header]) -> dict[str, str]:
    """The tensors that stay as they are: tensor -> the name it is written under. Left out are those
    that are no part of the model, and those that config.json ties to others.
    """
    gone = {*found.unused, *found.tied}
    gone |= {tensor for layer in found.layers for tensor in layer.tensors}
    return {name: written(found, name) for name in headers if name not in gone}


@dataclass(frozen=True)
class Division:
    """A source's tensors: the matrices that are quantized, and what stays as it is: ``kept_values``
    in ``kept`` bytes, of which the largest tensor has ``largest`` values.
    """

    parts: dict[str, Part]
    kept_values: int
    kept: int
    largest: int

    @property
    def parameters(self) -> int:
        """Values of the model."""
        return self.kept_values + sum(math.prod(part.shape) for part in self.parts.values())

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The matrices' shapes [outputs, inputs]."""
        return {name: part.shape for name, part in self.parts.items()}


def main_dtype(headers: Mapping[str, Header]) -> str:
    """The dtype that most values of a checkpoint have."""
    sizes = Counter[str]()
    for dtype, shape in headers.values():
        sizes[dtype] += math.prod(shape)
    return sizes.most_common(1)[0][0]


def division(source: Source) -> Division:
    """A source's tensors, from headers alone."""
    found, headers = structure(source), headers_of(source.folder, list(source.weights))
    stay, main = kept(found, headers), main_dtype(headers)
    sizes = {name: math.prod(headers[name][1]) for name in stay}
    bytes = sum(
        size * stored_width(headers[name][0], len(headers[name][1]), main)
        for name, size in sizes.items()
    )
    largest = max(sizes.values(), default=0)
    return Division(parts_of(found, headers), sum(sizes.values()), bytes, largest)
