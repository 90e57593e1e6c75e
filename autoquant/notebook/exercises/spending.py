"""An exercise with what bits are worth: bytes spent where they save the most damage."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from autoquant.notebook.exercises.base import Exercise, Mistake

# spend(damage, size, budget): bits for each part


def total(table: Mapping[str, Mapping[int, float]], choice: Mapping[str, int]) -> float:
    """The sum of a table's entries, part -> bits -> entry, over a choice, part -> bits."""
    return sum(table[part][bits] for part, bits in choice.items())


def spend(damage: Any, size: Any, budget: float) -> dict[str, int]:
    """The choice, part -> bits, of the least total damage within so many bytes, found by trying
    all. damage and size: part -> bits -> damage or bytes.
    """
    every = (
        dict(zip(damage, bits, strict=True))
        for bits in itertools.product(*(damage[part] for part in damage))
    )
    return min((one for one in every if total(size, one) <= budget), key=lambda c: total(damage, c))


def _upgraded(damage: Any, size: Any, budget: float, per_byte: bool) -> dict[str, int]:
    """From the fewest bits upwards, each time where the most damage is saved (for a byte)."""
    choice = {part: min(size[part], key=size[part].get) for part in size}
    while True:
        steps = []
        for part, now in choice.items():
            for other in damage[part]:
                more = size[part][other] - size[part][now]
                if more > 0 and total(size, choice) + more <= budget:
                    saved = damage[part][now] - damage[part][other]
                    steps.append((saved / (more if per_byte else 1), part, other))
        if not steps:
            return choice
        _, part, other = max(steps)
        choice[part] = other


def _uniform(damage: Any, size: Any, budget: float) -> dict[str, int]:
    """The best number of bits that all parts can have."""
    every = [dict.fromkeys(damage, one) for one in next(iter(damage.values()))]
    return min((c for c in every if total(size, c) <= budget), key=lambda c: total(damage, c))


def _in_order(damage: Any, size: Any, budget: float) -> dict[str, int]:
    """The most bits that still fit for the first part, then for the second …"""
    choice = {part: min(size[part], key=size[part].get) for part in size}
    for part in choice:
        for other in sorted(size[part], key=size[part].get):
            if total(size, {**choice, part: other}) <= budget:
                choice[part] = other
    return choice


def _spend_cases() -> Iterator[tuple[Any, Any, float]]:
    """Parts whose damage quarters with each bit, as a squared error does. The seeds are such that
    taking the best step for a byte, again and again, finds the best choice too.
    """
    for seed, parts, bits in ((6, 4, 3.4), (3, 5, 4.1), (12, 4, 3.4)):
        random = np.random.default_rng(seed)
        names = [f"part {i}" for i in range(parts)]
        weights = {name: int(random.integers(2, 9)) * 1000 for name in names}
        harm = {name: float(random.lognormal(0, 1.5)) for name in names}
        damage = {n: {b: round(harm[n] * 4.0 ** (2 - b), 4) for b in (2, 3, 4, 6)} for n in names}
        size = {n: {b: weights[n] * b // 8 for b in (2, 3, 4, 6)} for n in names}
        yield damage, size, int(sum(weights.values()) * bits / 8)


def _read_spend(answer: Any) -> Any:
    if not isinstance(answer, dict):
        raise ValueError("Return a dictionary: bits for each part.")
    return answer


def _object_to_spend(answer: Any, damage: Any, size: Any, budget: float) -> str:
    if set(answer) != set(damage) or any(answer[one] not in damage[one] for one in damage):
        return "Return a dictionary: bits for each part."
    if total(size, answer) > budget:
        return "Your choice takes more bytes than the budget has."
    return ""


SPEND = Exercise(
    cases=tuple(_spend_cases()),
    right=spend,
    unlike=None,
    mistakes=(
        Mistake(
            "The fewest bits everywhere: there are bytes left to spend.",
            lambda damage, size, budget: {n: min(size[n], key=size[n].get) for n in size},
        ),
        Mistake(
            "The same bits for all waste bytes on parts that need none: let the parts differ.",
            _uniform,
        ),
        Mistake(
            "The first parts got everything, whether they needed it or not: look at the damage.",
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
