"""Whether GPTQ files gain from bits by module (`dynamic` of GPTQModel and vLLM): KL divergence of
files whose modules have 4 or 8 bits, by the Fisher information, beside files of one width.

usage: python -m bench.module_bits WORK FOLDER [CHUNKS]

Each width and group size is made once of the whole model, and a mixed file is put together of what
they hold: GPTQ quantizes a block on what the quantized ones before it give, and that they were a
little more exact changes its codes hardly. What runtimes join (queries, keys and values; gate and
up) has one width. Bits per weight are those of the quantized matrices, scales and zero points and
all.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import autoquant
from autoquant.core import texts
from autoquant.core.bundled import EVALUATION, SENSITIVITY, suited
from autoquant.evaluate.scoring import Measure, predicting, targets_of, tokenize
from autoquant.fisher.choice import Cost, choose
from autoquant.formats.dequantized import Values
from autoquant.runtime import preload

SAMPLES, CONTEXT = 32, 512
JOINED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "in", "up_proj": "in"}
BETWEEN = (5.0, 5.5, 6.0)


def group_of(module: str) -> str:
    """The modules that have one width, by a name."""
    before, _, last = module.rpartition(".")
    return f"{before}.{JOINED.get(last, last)}"


def chunks_of(folder: str, part: str, count: int) -> list[list[int]]:
    """Token ids of the built-in text."""
    parts = texts.parts(suited("builtin", Path(folder)), "text", part)
    return list(tokenize(folder, parts, count, CONTEXT)["chunks"])


def information(model: Any, chunks: list[list[int]], wanted: set[str]) -> dict[str, Any]:
    """Squared gradients of the modules' weights, a token's, labels drawn from the model."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: one for name, one in model.named_parameters() if name in wanted}
    squares = {name: torch.zeros_like(one) for name, one in weights.items()}
    for chunk in chunks:
        logits = model(torch.tensor([chunk])).logits[0]
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        for name, found in zip(
            weights, torch.autograd.grad(loss, list(weights.values())), strict=True
        ):
            squares[name].addcmul_(found, found)
    return {name: one / (len(chunks) * CONTEXT) for name, one in squares.items()}


def scored(model: Any, chunks: list[list[int]], reference: list[Any]) -> float:
    """The KL divergence; without a ``reference`` logits are put there."""
    measure, first = Measure(), not reference
    for i, chunk in enumerate(chunks):
        with torch.inference_mode():
            logits = model(torch.tensor([chunk])).logits[0, len(chunk) // 2 : -1].float()
        assert len(logits) == predicting(len(chunk))
        if first:
            reference.append(logits)
        measure.add(logits, targets_of(chunk), reference[i])
    return measure.result("", "").kl_mean


@preload.kept()
def main(work: Path, folder: str, count: int) -> None:
    """Print a table in Markdown."""
    made: dict[str, Values] = {}
    bits_of: dict[str, float] = {}
    for bits in (4, 8):
        largest = 0
        for size in (0, 32):
            out = work / f"{bits}-{size}"
            run = autoquant.gptq(folder, bits=bits, group_size=size, evaluate="off", out=out)
            one = run.artifacts[0]
            size = size or int(one.facts["settings"]["group_size"])
            if size != largest:
                made[one.type] = Values(str(run.path(one.type)))
                bits_of[one.type] = bits + (bits + 16) / size
            largest = size
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    own = dict(model.named_parameters())
    wanted = {f"{layer}.weight" for layer in next(iter(made.values())).layers}
    squares = information(model, chunks_of(folder, SENSITIVITY, SAMPLES), wanted)
    costs: dict[str, dict[str, Cost]] = {}
    for kind, values in made.items():
        for name in wanted:
            off = values.value(name) - own[name].detach()
            nats = float((squares[name] * off * off).sum()) / 2
            size = math.ceil(own[name].numel() * bits_of[kind] / 8)
            group = costs.setdefault(group_of(name.removesuffix(".weight")), {})
            before = group.get(kind, Cost(0, 0.0))
            group[kind] = Cost(before.bytes + size, before.nats + nats)
    weights = sum(own[name].numel() for name in wanted)
    chunks = chunks_of(folder, EVALUATION, count)
    reference: list[Any] = []
    scored(model, chunks, reference)
    originals = {name: own[name].detach().clone() for name in wanted}
    print(
        "| bits | file | predicted | KL | modules at 8 bits |\n| ---: | --- | ---: | ---: | ---: |"
    )

    def show(label: str, types: dict[str, str]) -> None:
        total = sum(costs[group][kind].bytes for group, kind in types.items())
        nats = sum(costs[group][kind].nats for group, kind in types.items())
        with torch.no_grad():
            for name in wanted:
                kind = types[group_of(name.removesuffix(".weight"))]
                own[name].copy_(made[kind].value(name))
        kl = scored(model, chunks, reference)
        wide = sum(kind.startswith("8") for kind in types.values())
        rate = 8 * total / weights
        print(
            f"| {rate:.3f} | {label} | {nats:.5f} | {kl:.5f} | {wide} of {len(types)} |", flush=True
        )
        with torch.no_grad():
            for name in wanted:
                own[name].copy_(originals[name])

    for kind in made:
        show(kind, dict.fromkeys(costs, kind))
    for rate in sorted({*bits_of.values(), *BETWEEN}):
        for label, offered in (
            ("4 and 8 bits, one group size", [k for k in made if not k.endswith("-32g")]),
            ("4 and 8 bits, both group sizes", list(made)),
        ):
            some = {g: {k: c for k, c in one.items() if k in offered} for g, one in costs.items()}
            if rate < min(bits_of[kind] for kind in offered):
                continue
            # each joined group's bytes were rounded up
            room = int(rate * weights / 8) + len(costs)
            show(label, choose(some, room).types)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]).resolve(),
        str(Path(sys.argv[2]).resolve()),
        int(sys.argv[3]) if sys.argv[3:] else 40,
    )
