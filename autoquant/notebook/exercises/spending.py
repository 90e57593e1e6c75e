"""An exercise with what bits are worth: bytes spent where they save the most damage."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from autoquant.notebook.exercises.base import Exercise, Mistake

# spend(damage, size, budget): a type for each layer


def total(table: Mapping[str, Mapping[int, float]], choice: Mapping[str, int]) -> float:
    """The sum of a table's entries, layer -> type -> entry, over a choice, layer -> type."""
    return sum(table[layer][chosen] for layer, chosen in choice.items())


def spend(damage: Any, size: Any, budget: float) -> dict[str, int]:
    """The choice, layer -> type, of the least total damage within so many bytes, found by trying
    all. damage and size: layer -> type -> damage or bytes.
    """
    every = (
        dict(zip(damage, types, strict=True))
        for types in itertools.product(*(damage[layer] for layer in damage))
    )
    return min((one for one in every if total(size, one) <= budget), key=lambda c: total(damage, c))


def _upgraded(damage: Any, size: Any, budget: float, per_byte: bool) -> dict[str, int]:
    """From the smallest types upwards, each time where the most damage is saved (for a byte)."""
    choice = {layer: min(size[layer], key=size[layer].get) for layer in size}
    while True:
        steps = []
        for layer, now in choice.items():
            for other in damage[layer]:
                more = size[layer][other] - size[layer][now]
                if more > 0 and total(size, choice) + more <= budget:
                    saved = damage[layer][now] - damage[layer][other]
                    steps.append((saved / (more if per_byte else 1), layer, other))
        if not steps:
            return choice
        _, layer, other = max(steps)
        choice[layer] = other


def _uniform(damage: Any, size: Any, budget: float) -> dict[str, int]:
    """The best type that all layers can have."""
    every = [dict.fromkeys(damage, one) for one in next(iter(damage.values()))]
    return min((c for c in every if total(size, c) <= budget), key=lambda c: total(damage, c))


def _in_order(damage: Any, size: Any, budget: float) -> dict[str, int]:
    """The largest type that still fits for the first layer, then for the second …"""
    choice = {layer: min(size[layer], key=size[layer].get) for layer in size}
    for layer in choice:
        for other in sorted(size[layer], key=size[layer].get):
            if total(size, {**choice, layer: other}) <= budget:
                choice[layer] = other
    return choice


def _spend_cases() -> Iterator[tuple[Any, Any, float]]:
    """Layers whose damage quarters with each bit, as a squared error does. The seeds are such that
    taking the best step for a byte, again and again, finds the best choice too.
    """
    for seed, layers, bits in ((6, 4, 3.4), (3, 5, 4.1), (12, 4, 3.4)):
        random = np.random.default_rng(seed)
        names = [f"layer {i}" for i in range(layers)]
        weights = {name: int(random.integers(2, 9)) * 1000 for name in names}
        harm = {name: float(random.lognormal(0, 1.5)) for name in names}
        damage = {n: {b: round(harm[n] * 4.0 ** (2 - b), 4) for b in (2, 3, 4, 6)} for n in names}
        size = {n: {b: weights[n] * b // 8 for b in (2, 3, 4, 6)} for n in names}
        yield damage, size, int(sum(weights.values()) * bits / 8)


def _read_spend(answer: Any) -> Any:
    if not isinstance(answer, dict):
        raise ValueError("Return a dictionary: a type for each layer.")
    return answer


def _object_to_spend(answer: Any, damage: Any, size: Any, budget: float) -> str:
    if set(answer) != set(damage) or any(answer[one] not in damage[one] for one in damage):
        return "Return a dictionary: a type for each layer."
    if total(size, answer) > budget:
        return "Your choice takes more bytes than the budget has."
    return ""


SPEND = Exercise(
    cases=tuple(_spend_cases()),
    right=spend,
    unlike=None,
    mistakes=(
        Mistake(
            "The smallest type everywhere: there are bytes left to spend.",
            lambda damage, size, budget: {n: min(size[n], key=size[n].get) for n in size},
        ),
        Mistake(
            "One type for all layers wastes bytes on layers that need none: let the layers differ.",
            _uniform,
        ),
        Mistake(
            "The first layers got everything, whether they needed it or not: look at the damage.",
            _in_order,
        ),
        Mistake(
            "You looked at the damage that is saved; look at what is saved for each byte.",
            lambda damage, size, budget: _upgraded(damage, size, budget, per_byte=False),
        ),
    ),
    read=_read_spend,
    same=lambda answer, expected: bool(answer == expected),
    objection=_object_to_spend,
)
