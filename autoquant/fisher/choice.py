"""The choice of a type for each tensor that loses the least within a number of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

STEPS = 100  # of the bisection of the multiplier, in powers of two: to the last digit
WORTH = 1e-3  # of all damage; less is not looked for in pairs of changes
PAIRS = 1 << 24  # of changes that are looked at, at most


class Cost(NamedTuple):
    """What a type takes and loses: bytes of a tensor, nats per token."""

    bytes: int
    nats: float


class Choice(NamedTuple):
    """Of each tensor a type, and what all of them take and lose."""

    types: dict[str, str]
    bytes: int
    nats: float


def least(costs: Mapping[str, Mapping[str, Cost]]) -> int:
    """The fewest bytes that the tensors can take."""
    return sum(min(one.bytes for one in kinds.values()) for kinds in costs.values())


def choose(costs: Mapping[str, Mapping[str, Cost]], budget: int) -> Choice:
    """A type for each tensor by its ``costs``, in at most ``budget`` bytes, which must suffice for
    the smallest types.

    A Lagrange multiplier prices bytes: with a price each tensor's best type is its own affair, and
    the price is bisected until the bytes fit (Everett, 1963). What is left over then, for types
    come in steps, goes to the single changes, and then to the pairs of them, that save the most.
    """
    names = list(costs)
    shares: dict[str, float] = {}  # of a tensor's most bytes
    for every in costs.values():
        top = max(one.bytes for one in every.values())
        shares |= {kind: one.bytes / top for kind, one in every.items()}
    kinds = sorted(shares, key=shares.__getitem__)  # of equals the first is taken, the smallest
    sizes = np.full((len(names), len(kinds)), np.inf)
    nats = np.full((len(names), len(kinds)), np.inf)
    for i, name in enumerate(names):
        for kind, one in costs[name].items():
            sizes[i, kinds.index(kind)], nats[i, kinds.index(kind)] = one
    rows = np.arange(len(names))

    def priced(price: float) -> Any:
        with np.errstate(invalid="ignore"):
            return np.where(np.isinf(sizes), np.inf, nats + price * sizes).argmin(1)

    low, high = 0.0, 1.0
    picked = np.lexsort((nats, sizes))[:, 0]  # the smallest, and of these the best
    if sizes[rows, priced(low)].sum() <= budget:
        picked = priced(low)
    else:
        for _ in range(STEPS):
            price = (low + high) / 2 if low else high / 2**8
            if sizes[rows, (found := priced(price))].sum() > budget:
                low = price
            else:
                high, picked = price, found
    picked = _filled(picked, sizes, nats, budget)
    types = {name: kinds[k] for name, k in zip(names, picked, strict=True)}
    return Choice(types, int(sizes[rows, picked].sum()), float(nats[rows, picked].sum()))


def _filled(picked: Any, sizes: Any, nats: Any, budget: int) -> Any:
    """The picked types with what is left over used."""
    rows = np.arange(len(picked))
    while True:
        more = sizes - sizes[rows, picked][:, None]
        with np.errstate(invalid="ignore"):
            gain = np.where(np.isinf(sizes), 0.0, nats[rows, picked][:, None] - nats)
        left = budget - sizes[rows, picked].sum()
        gain_now = np.where(more <= left, gain, 0.0)
        if gain_now.max() > 0:
            i, k = map(int, np.unravel_index(gain_now.argmax(), gain.shape))
        elif (pair := _pair(more, gain, left, WORTH * nats[rows, picked].sum())) is not None:
            i, k, other, instead = pair
            picked[other] = instead
        else:
            return picked
        picked[i] = k


def _pair(more: Any, gain: Any, left: float, worth: float) -> tuple[int, int, int, int] | None:
    """Two changes of two tensors, of which one pays for the other's bytes; None if none gains more
    than is ``worth`` it.
    """
    finite = np.isfinite(more)
    up, down = np.argwhere(finite & (more > 0) & (gain > 0)), np.argwhere(finite & (more < 0))
    if not len(up) or not len(down) or len(up) * len(down) > PAIRS:
        return None
    bytes_up, bytes_down = more[tuple(up.T)], more[tuple(down.T)]
    gained = gain[tuple(up.T)][:, None] + gain[tuple(down.T)][None, :]
    allowed = (bytes_up[:, None] + bytes_down[None, :] <= left) & (up[:, :1] != down[:, 0])
    gained = np.where(allowed, gained, 0.0)
    if gained.max() <= worth:
        return None
    a, b = np.unravel_index(gained.argmax(), gained.shape)
    return int(up[a][0]), int(up[a][1]), int(down[b][0]), int(down[b][1])
