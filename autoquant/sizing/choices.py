"""What a model could be made, and whether that runs on a device: one row a method and type."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Literal

from autoquant.backends.llamacpp.types import TYPES
from autoquant.core.errors import InputError
from autoquant.core.records import Source
from autoquant.methods import METHODS
from autoquant.methods.overview import measured
from autoquant.sizing.asked import File
from autoquant.sizing.devices import Device
from autoquant.sizing.memory import Beside
from autoquant.source import shapes
from autoquant.source.structure import Structure

# the types to choose from, without those that another beats at its size (docs/methods.md)
LADDER = (
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q4_K_M",
    "Q4_K_S",
    "IQ4_XS",
    "Q3_K_L",
    "Q3_K_M",
    "IQ3_M",
    "IQ3_XXS",
    "Q2_K",
    "IQ2_M",
    "IQ2_XXS",
    "IQ1_M",
)
LLAMA, SERVER = "llama.cpp", "vLLM"  # what runs GGUF files; what serves folders
WHOLE = 99  # -ngl: more layers than any model has
# share of a card that vLLM takes by default (--gpu-memory-utilization), and bytes for its CUDA
# graphs and larger batches; the second is an assumption
VLLM_SHARE, VLLM_BESIDE = 0.9, 1 << 30


@dataclass(frozen=True)
class Choice:
    """One method and type on a device. ``bits`` are those of a weight, over the whole model;
    ``width`` those of a quantized one, by which types of all methods are ranked. Bytes:
    ``weights``, and ``memory`` with keys, values and buffers; ``layers`` is what llama.cpp takes
    for ``-ngl``, ``elsewhere`` the bytes that then stay in the machine's own memory. ``exact``:
    sizes by llama.cpp's plan, else by bits per weight.
    """

    method: str
    type: str
    width: float
    bits: float
    weights: int
    memory: int
    fits: Literal["whole", "partly", "no"]
    runs: str
    quality: str
    exact: bool
    needs_imatrix: bool = False
    layers: int = WHOLE
    elsewhere: int = 0


def of_gguf(files: Sequence[File], beside: Beside, device: Device) -> list[Choice]:
    """The GGUF types."""
    return [_gguf(file, beside, device) for file in files]


def _gguf(file: File, beside: Beside, device: Device) -> Choice:
    memory = file.bytes + beside.total
    layers, elsewhere = WHOLE, 0
    fits: Literal["whole", "partly", "no"] = "whole" if memory <= device.usable else "no"
    if fits == "no" and device.kind == "gpu" and file.blocks:
        layers, held = on_card(file, beside, device.usable)
        elsewhere = memory - held
        if layers and (not device.beside or elsewhere <= device.beside):
            fits = "partly"
    kind = TYPES.get(file.type)
    width = kind.bits_per_weight if kind else file.bits_per_weight
    if kind and kind.special:
        width = 16.0  # what a model was trained for loses nothing
    return Choice(
        "gguf",
        file.type,
        width,
        file.bits_per_weight,
        file.bytes,
        memory,
        fits,
        LLAMA,
        _quality("gguf", file.type, kind.when if kind else ""),
        file.exact,
        file.needs_imatrix,
        layers,
        elsewhere,
    )


def on_card(file: File, beside: Beside, room: int) -> tuple[int, int]:
    """How many layers go to a card of so much ``room`` (-ngl), and the bytes that they take there.

    llama.cpp moves what sees or hears and the output layer first, then blocks from the last to the
    first, each with its keys and values; the input embeddings stay. For a long prompt it copies
    tensors of the others over, one at a time.
    """
    each = (beside.cache + beside.state) // len(file.blocks)
    held = file.bytes - sum(file.blocks) + beside.compute + beside.tower + file.largest
    layers = 0
    if held > room:
        return 0, 0
    for block in reversed(file.blocks):
        if held + block + each > room:
            break
        held, layers = held + block + each, layers + 1
    return (layers + 1, held) if layers else (0, 0)


def why_not(source: Source) -> dict[str, str]:
    """The other methods that do not take a source, and why."""
    refused = {}
    for name, method in METHODS.items():
        if not method.usual_types:
            continue
        try:
            method.check(source, method.resolve_defaults(source, method.Options()))
        except InputError as error:
            refused[name] = str(error)
    return refused


def of_others(
    source: Source, found: Structure, beside: Beside, device: Device, refused: Container[str]
) -> list[Choice]:
    """The usual types of the other methods, but the ``refused``, on a card with CUDA; ``beside`` is
    that of 16-bit keys and values, without what sees or hears, which their folders have.
    """
    if not found.known:
        return []
    quantized = sum(math.prod(layer.shape) for layer in found.layers)
    head = _head(source)
    choices = []
    usual = [(name, one) for name, method in METHODS.items() for one in method.usual_types]
    for method, one in usual:
        if device.capability < one.least or method in refused:
            continue
        rest = max(0, source.parameters - quantized - head)
        weights = int((one.bits * quantized + 16 * rest + one.head * head) / 8)
        served = one.runs == SERVER
        memory = weights + beside.total + served * VLLM_BESIDE
        room = min(device.usable, int(VLLM_SHARE * device.memory)) if served else device.usable
        choices.append(
            Choice(
                method,
                one.type,
                one.bits,
                8 * weights / source.parameters,
                weights,
                memory,
                "whole" if memory <= room else "no",
                one.runs,
                _quality(method, one.type),
                exact=False,
            )
        )
    return choices


def _head(source: Source) -> int:
    """Weights of an output head of its own; 0 of one that is the embeddings."""
    shape = {} if source.pickle else shapes(source)
    return math.prod(shape.get("lm_head.weight") or [0])


def _quality(method: str, type: str, when: str = "") -> str:
    """What is known of a type: what it was measured to lose, when to take it."""
    row = measured().get(method, {})
    known = f"KL {row['kl_mean']:.4f} (demo model)" if row.get("type") == type else ""
    return "; ".join(filter(None, (known, when)))


def ranked(choices: Sequence[Choice]) -> list[Choice]:
    """What fits whole first, most bits first. Then what fits partly, where more bits mean that
    less runs on the card: from the usual choice (Q4_K_M) on, the larger ones after it.
    """
    order = ("whole", "partly", "no")
    usual = TYPES["Q4_K_M"].bits_per_weight

    def place(one: Choice) -> tuple[int, bool, float]:
        return order.index(one.fits), one.fits == "partly" and one.width > usual, -one.width

    return sorted(choices, key=place)
