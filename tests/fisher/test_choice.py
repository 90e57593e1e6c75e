"""The choice of types for a number of bytes."""

from __future__ import annotations

import itertools
import random

import pytest

from autoquant.fisher.choice import Cost, choose, least


def costs(seed: int, tensors: int = 6) -> dict[str, dict[str, Cost]]:
    """Types of 2 to 8 bits of tensors that differ a thousandfold in how sensitive they are."""
    own = random.Random(seed)
    found = {}
    for i in range(tensors):
        size, sensitive = own.randint(1, 30) * 1000, 10 ** own.uniform(-3, 0)
        found[f"t{i}"] = {
            f"{bits}": Cost(size * bits, sensitive * 4.0**-bits * own.uniform(0.7, 1.4))
            for bits in (2, 3, 4, 5, 6, 8)
        }
    return found


def best(given: dict[str, dict[str, Cost]], budget: int) -> float:
    """By trying all."""
    every = itertools.product(*(kinds.values() for kinds in given.values()))
    return min(sum(c.nats for c in one) for one in every if sum(c.bytes for c in one) <= budget)


@pytest.mark.parametrize("seed", range(12))
def test_it_is_within_the_bytes_and_nearly_the_best_there_is(seed: int) -> None:
    given = costs(seed)
    smallest = least(given)
    for part in (1.02, 1.3, 1.8, 2.4, 3.1):
        budget = int(smallest * part)
        found = choose(given, budget)
        assert found.bytes <= budget
        assert found.bytes == sum(given[n][kind].bytes for n, kind in found.types.items())
        assert found.nats == pytest.approx(sum(given[n][k].nats for n, k in found.types.items()))
        assert found.nats <= 1.35 * best(given, budget), "of six tensors, which is few"


@pytest.mark.parametrize("tensors", [30, 200])
def test_of_a_models_tensors_it_is_the_best_but_for_little(tensors: int) -> None:
    """No choice can be better than the multiplier's bound (Lagrange)."""
    given = costs(7, tensors)
    for part in (1.1, 1.6, 2.2, 3.0):
        budget = int(least(given) * part)
        bound = max(
            sum(min(c.nats + price * c.bytes for c in kinds.values()) for kinds in given.values())
            - price * budget
            for price in (2.0 ** (-step / 8) for step in range(80, 320))
        )
        assert choose(given, budget).nats <= bound * (1.1 if tensors == 30 else 1.05)


def test_of_many_tensors_next_to_nothing_is_left_over() -> None:
    given = costs(5, tensors=300)
    smallest = least(given)
    for part in (1.05, 1.5, 2.2, 3.5):
        budget = int(smallest * part)
        found = choose(given, budget)
        assert 0.999 * budget <= found.bytes <= budget


def test_the_ends_of_what_can_be_asked() -> None:
    given = costs(1)
    smallest = choose(given, least(given))
    assert set(smallest.types.values()) == {"2"}
    everything = choose(given, 10**9)
    assert set(everything.types.values()) == {"8"}


def test_bytes_are_not_spent_for_nothing() -> None:
    given = {"a": {"small": Cost(10, 1.0), "large": Cost(20, 1.0), "worse": Cost(15, 2.0)}}
    assert choose(given, 100).types == {"a": "small"}
