"""A source tensor by tensor: what is quantized, under which name, and what stays."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from autoquant.core.records import Source
from autoquant.formats.tensors import Part, stored_width
from autoquant.source.headers import Header, headers_of
from autoquant.source.structure import Layer, Structure, structure

GATE_UP, GATE_AND_UP = "gate_up_proj", ("gate_proj", "up_proj")
BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")
NUMBER = re.compile(r"\.(\d+)(?=\.)")


def place(module: str) -> tuple[int, str]:
    """A module's block, and its name in it: the same whatever class holds the blocks."""
    found = BLOCK.search(module)
    return (int(found[1]), found[2]) if found else (-1, module)


def written(found: Structure, tensor: str) -> str:
    """The name of a tensor in a folder that is written: the source's, with what the names of a bare
    model lack.
    """
    known = tensor.startswith((found.prefix, "lm_head."))
    return tensor if known else f"{found.prefix}{tensor}"


def parts_of(found: Structure, headers: Mapping[str, Header]) -> dict[str, Part]:
    """All matrices that are quantized by themselves, by the name they are written under."""
    return {part.name: part for part in by_module(found, headers).values()}


def by_module(found: Structure, headers: Mapping[str, Header]) -> dict[str, Part]:
    """The same by the model's modules. Each expert counts as one, as libraries take a block's
    experts apart: <experts>.<number>.gate_proj, up_proj and down_proj.
    """
    modules: dict[str, Part] = {}
    for layer in found.layers:
        parts: list[Part] = []
        for tensor in layer.tensors:
            name, shape = written(found, tensor.removesuffix(".weight")), headers[tensor][1]
            if len(shape) == 2:
                parts.append(Part(name, tensor, (shape[0], shape[1])))
            elif len(shape) == 3:
                parts += _experts(layer, name, tensor, shape).values()
        if not layer.expert:
            modules[layer.module] = parts[0]
            continue
        base, _, last = layer.module.rpartition(".")
        halves = GATE_AND_UP if last == GATE_UP else (last,)
        # gate and up of an expert follow each other, whatever they are called there
        numbered = Counter[int]()
        for part in parts:
            expert = int(NUMBER.findall(part.name)[-1])
            modules[f"{base}.{expert}.{halves[numbered[expert] % len(halves)]}"] = part
            numbered[expert] += 1
    return modules


def _experts(layer: Layer, name: str, tensor: str, shape: list[int]) -> dict[str, Part]:
    """The matrices of one tensor that holds a projection of all experts, named as in checkpoints
    that hold them one by one.
    """
    base, _, last = name.rpartition(".")
    experts, outputs, inputs = shape
    if layer.transposed:
        outputs, inputs = inputs, outputs
    halves = GATE_AND_UP if last == GATE_UP else (last,)
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


def _looked_at(source: Source) -> tuple[Structure, dict[str, Header]]:
    return structure(source), headers_of(source.folder, list(source.weights))


def modules(source: Source) -> dict[str, Part]:
    """A source's matrices by the model's modules (:func:`by_module`)."""
    return by_module(*_looked_at(source))


def division(source: Source) -> Division:
    """A source's tensors, from headers alone."""
    found, headers = _looked_at(source)
    stay, main = kept(found, headers), main_dtype(headers)
    sizes = {name: math.prod(headers[name][1]) for name in stay}
    bytes = sum(
        size * stored_width(headers[name][0], len(headers[name][1]), main)
        for name, size in sizes.items()
    )
    largest = max(sizes.values(), default=0)
    return Division(parts_of(found, headers), sum(sizes.values()), bytes, largest)
