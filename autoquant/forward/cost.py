"""What running a model block by block takes, from headers alone: memory, and time by what this
machine was measured to do.
"""

from __future__ import annotations

import importlib.metadata
import math
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant.core import rates
from autoquant.core.machine import cores, nvidia_gpu
from autoquant.core.records import Source
from autoquant.forward.blockwise import PART
from autoquant.forward.head import KEPT
from autoquant.runtime import process
from autoquant.source.headers import headers_of, read_json
from autoquant.source.parts import BLOCK
from autoquant.source.structure import structure

LIBRARIES = 500 << 20  # bytes of torch and transformers (measured: bench/RESULTS.md)
ON_GPU = (16, 4, 1)  # chunks that go through a block at a time there, where there is room
# of a block's speed what is left beside products: attention, norms, reading (bench/RESULTS.md)
SHARE = 0.65
TRIED = 1.0  # seconds
READ = 150e6  # weights a second that a core reads of the slowest format (EXL2 apart)
USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_k")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Cost:
    """Of a model: the weights of its largest ``block``, and of that with one ``expert`` only; of
    what lies ``outside`` and stays; ``multiplied`` by each token in the blocks, and at the
    ``head``. ``width`` of hidden states, the widest ``inner`` one, the ``vocabulary``, and how many
    ``blocks`` there are.
    """

    weights: int
    block: int
    expert: int
    outside: int
    multiplied: int
    head: int
    width: int
    inner: int
    vocabulary: int
    blocks: int

    def gradients(self, chunks: int, length: int) -> int:
        """Bytes that a run forward and backward takes: what enters each block, of a block its
        weights, a sample's gradients, their squares, and both as the checkpoint has them (of
        experts that are stacked with the places of weights, measured: bench/RESULTS.md), and the
        logits of a chunk with what they are differentiated by.
        """
        states = 4 * chunks * length * self.width * (self.blocks + 4)
        times = 9 if self.expert < self.block else 5
        inside = times * 4 * self.block + 4 * length * (8 * self.inner + 12 * self.width)
        ends = 4 * length * self.vocabulary * 6 + min(8 * self.head, KEPT)
        return LIBRARIES + 4 * self.outside + states + max(inside, ends)

    def memory(self, chunks: int, length: int, *, ahead: bool, single: bool, part: int) -> int:
        """Bytes that a run over ``chunks`` of ``length`` tokens takes."""
        running = self.running(chunks, length, single=single, part=part)
        return LIBRARIES + running + (4 * self.block if ahead else 0)

    def running(self, chunks: int, length: int, *, single: bool, part: int) -> int:
        """Bytes of what computes: a block, what stays, the hidden states, and what is inside a
        block while ``part`` chunks go through, or at the heads (see forward.head).
        """
        states = 4 * chunks * length * (3 * self.width)
        inside = 4 * part * length * (4 * self.inner + 6 * self.width)
        weights = 4 * (self.expert if single else self.block)
        ends = 4 * (length // 2) * self.vocabulary * 6 + max(128 << 20, min(8 * self.head, KEPT))
        return 4 * self.outside + states + max(weights + inside, ends)

    def how(self, chunks: int, length: int, available: int) -> dict[str, Any] | None:
        """How it runs in ``available`` bytes (arguments of Blockwise); None if it cannot. Of a GPU
        only the worker knows the memory: ``on_gpu`` has parts with the bytes that they take.
        """
        for ahead, single, part in (
            (True, False, PART),
            (False, False, PART),
            (False, False, 1),
            (False, True, chunks),  # each expert is read once then
            (False, True, PART),
            (False, True, 1),
        ):
            how: dict[str, Any] = {"ahead": ahead, "single": single, "part": min(part, chunks)}
            if self.memory(chunks, length, **how) <= available:
                if nvidia_gpu():
                    how["on_gpu"] = [
                        [one, self.running(chunks, length, single=single, part=one)]
                        for one in ON_GPU
                    ]
                return how
        return None

    def least(self, chunks: int, length: int) -> int:
        """The fewest bytes it can run in."""
        return self.memory(chunks, length, ahead=False, single=True, part=1)

    def seconds(self, chunks: int, length: int) -> float:
        """Seconds of one run over the chunks."""
        tokens = chunks * length
        products = 2 * tokens * self.multiplied + tokens * self.head
        return products / (SHARE * rate()) + self.weights / (READ * cores())


def of(source: Source) -> Cost:
    """The cost of a source that transformers knows. Of one whose tensors are made as they are read,
    that of the made ones.
    """
    headers = headers_of(source.folder, list(source.weights))
    found = structure(source)
    config = read_json(source.folder / "config.json")
    text = config.get("text_config") or config
    sizes, experts = Counter[int](), Counter[int]()
    outside, head = 0, 0
    largest = max((math.prod(shape) for _, shape in headers.values()), default=0)
    expert = {tensor for layer in found.layers if layer.expert for tensor in layer.tensors}
    left = {*found.unused, *found.tied}
    for name, (_, shape) in headers.items():
        size = math.prod(shape)
        if name in left or any(f".{tower}." in f".{name}" for tower in found.towers):
            continue
        block = BLOCK.search(name)
        if block is not None:
            sizes[int(block[1])] += size
            experts[int(block[1])] += size if name in expert else 0
        elif found.rows and shape and shape[0] == found.rows:
            head = max(head, size)
        else:
            outside += size if size < largest or size < 1 << 24 else 0
    count = next((int(text[name]) for name in EXPERTS if text.get(name)), 1)
    used = next((int(text[name]) for name in USED if text.get(name)), 1)
    multiplied = 0.0
    for layer in found.layers:
        multiplied += math.prod(layer.shape) * (used / count if layer.expert else 1)
    one = max(sizes[n] - experts[n] + experts[n] // max(1, count) for n in sizes or [0])
    width = head // found.rows if found.rows else int(text.get("hidden_size") or 0)
    shapes = [layer.shape[-2:] for layer in found.layers] or [(width, width)]
    return Cost(
        weights=sum(sizes.values()),
        block=max(sizes.values(), default=0),
        expert=one,
        outside=outside,
        multiplied=int(multiplied),
        head=head,
        width=width,
        inner=max(max(shape) for shape in shapes),
        vocabulary=found.rows,
        blocks=len(sizes),
    )


def rate(*, gpu: bool = True) -> float:
    """Floating-point operations a second of products in float32 on this machine; on its CPU where
    ``gpu`` is False.
    """
    gpu = gpu and nvidia_gpu()
    kind = "cuda" if gpu else f"{cores()} cores"
    name = f"products in float32 by torch {importlib.metadata.version('torch')} on {kind}"
    if (known := rates.known().get(name)) is not None:
        return known
    with tempfile.TemporaryDirectory() as scratch:
        found = process.call(
            "autoquant.forward.cost:products", log=Path(scratch) / "log", threads=cores(), gpu=gpu
        )
    rates.note({name: found})
    return float(found)


def products(threads: int, gpu: bool) -> float:
    """Floating-point operations a second of products as large as a block's. Takes a second. Runs in
    a worker.
    """
    import time

    import torch

    torch.set_num_threads(threads)
    on = "cuda" if gpu and torch.cuda.is_available() else "cpu"
    tokens, width = 1024, 2048
    left, right = torch.randn(tokens, width, device=on), torch.randn(width, width, device=on)
    left @ right

    def settle() -> None:
        if on == "cuda":
            torch.cuda.synchronize()

    settle()
    best, begun = 0.0, time.perf_counter()
    while time.perf_counter() - begun < TRIED:  # the best: other programs may run beside
        start = time.perf_counter()
        for _ in range(4):
            left @ right
        settle()
        best = max(best, 4 / (time.perf_counter() - start))
    return 2 * tokens * width * width * best
