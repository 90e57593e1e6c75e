"""All that the stages take from inside the package; everything else goes through public functions.

When modules of the package move, this file alone follows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import autoquant
from autoquant.backends.exllamav2.environment import EXLLAMAV2
from autoquant.core import bundled
from autoquant.formats import dequantized
from autoquant.formats.architecture import config_of
from autoquant.formats.checkpoint import quantization
from autoquant.formats.tensors import Tensors
from autoquant.forward import head
from autoquant.forward.blockwise import Blockwise
from autoquant.forward.gradients import backward
from autoquant.forward.weights import of_folder
from autoquant.methods import METHODS
from autoquant.runtime import environments, process

DEMO: Path = bundled.MODEL
HELD_OUT: Path = bundled.EVALUATION_TEXT
EXL2_VARIABLES: dict[str, str] = dict(EXLLAMAV2.variables)


def lacking() -> list[str]:
    """The extras whose packages are not installed here in the versions that are asked for: a run
    would make an environment for them, from an index."""
    return sorted({m.extra for m in METHODS.values() if not environments.here(m.extra)})


def read(folder: str) -> tuple[Any, dict[str, Any], list[str]]:
    """A quantized folder's tensors, its config's quantization block, and its quantized layers."""
    block, tensors = quantization(folder), Tensors(folder)
    return tensors, block, sorted(dequantized.format_of(block).layers(tensors))


def weight(tensors: Any, name: str, block: dict[str, Any]) -> Any:
    """One quantized layer's weight [out, in] as float32, by our own reader."""
    return dequantized.weight(tensors, name, block)


def rounding(tensors: Any, name: str, block: dict[str, Any]) -> Any:
    """Our simulation of a layer's quantized inputs, a function; None if they are not quantized."""
    return dequantized.format_of(block).inputs(tensors, name, block)


def model(folder: str) -> Any:
    """A folder in float32, weights by our own readers, activations rounded as its format says."""
    return dequantized.load(folder)


def runtime(folder: str) -> Any:
    """A folder loaded by the library that runs such files, on a GPU if there is one."""
    block = quantization(folder)
    return dequantized.format_of(block).loader(folder)


@contextlib.contextmanager
def timed() -> Iterator[list[tuple[str, float]]]:
    """What a run starts meanwhile, with the seconds it took: functions and EXL2's command lines."""
    took: list[tuple[str, float]] = []
    real_call, real_run = process.call, process.run

    def call(target: str, /, **more: Any) -> Any:
        begin = time.monotonic()
        try:
            return real_call(target, **more)
        finally:
            took.append((target, time.monotonic() - begin))

    def run(words: Any, **more: Any) -> None:
        begin = time.monotonic()
        real_run(words, **more)
        kind = "measure" if "-om" in words else "quantize" if "-cf" in words else str(words[0])
        took.append((kind, time.monotonic() - begin))

    process.call, process.run = call, run  # type: ignore[assignment]
    try:
        yield took
    finally:
        process.call, process.run = real_call, real_run


def plan(method: str, folder: str, out: str, options: dict[str, Any]) -> dict[str, int]:
    """What the plan of a run says it needs, in bytes."""
    made = autoquant.plan(method, folder, out=out, **options)
    return {"memory": made.memory_needed, "size": sum(item.bytes for item in made.items)}


def blockwise(folder: str, device: str, part: int) -> Any:
    """A model that runs block by block."""
    return Blockwise(config_of(folder), of_folder(folder), device=device, part=part)


def logits(model: Any, ids: Any) -> Any:
    """The logits of the second half of each row of token ids, all of the last row's."""
    hidden = head.final(model, ids, ids.shape[1] // 2)
    model.close()
    last = head.Head(model)
    return [last.logits(one[None]) for one in hidden][-1]


def squared_gradients(model: Blockwise, ids: Any) -> dict[str, Any]:
    """Squared gradients of the blocks' matrices, sample by sample, and of the embeddings' output;
    labels are the tokens in the opposite order.
    """
    import torch

    labels, found = ids.flip(1), dict[str, Any]()

    def loss(logits: Any, sample: int) -> Any:
        wanted = labels[sample].to(logits.device)
        return torch.nn.functional.cross_entropy(logits[0], wanted, reduction="sum")

    def sink(block: str, _: int, gradients: Any) -> None:
        for name, one in gradients.items():
            if one.ndim > 1:
                key = f"{block}.{name}"
                found[key] = found.get(key, 0) + one.square().cpu()

    ends = backward(model, ids, loss, sink)
    return {**found, "embedded": ends.embedded.cpu(), "final": ends.final.cpu()}
