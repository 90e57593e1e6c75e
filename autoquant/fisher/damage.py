"""What quantizing a matrix costs, in nats per token: half the sum of each weight's Fisher
information times its squared error, by ggml's own quantizing. Runs in workers.

Of a large matrix some rows are quantized: drawn with probabilities in proportion to what a row
would cost if it were zero, which is what its damage by any type is nearly proportional to, so that
few rows tell the sum of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoquant.backends.llamacpp.ggml import Floats, Ggml
from autoquant.fisher.table import SAMPLE

TASK = 1 << 18  # weights that one thread quantizes at a time
PIECE = 1 << 22  # weights of a matrix that are looked at at a time
FLOOR = 1e-6  # of the mean importance; no column has less, for ggml divides by sums of it


@dataclass(frozen=True)
class Matrix:
    """One tensor of a GGUF file: ``rows`` of ``width`` weights, those of ``experts`` one after the
    other. ``piece`` gives the Fisher information and the weights of rows from one number to
    another, each [n, width] in float32.
    """

    name: str
    rows: int
    width: int
    experts: int
    piece: Callable[[int, int], tuple[Floats, Floats]]

    def pieces(self) -> Iterator[tuple[int, Floats, Floats]]:
        """Of all rows, some at a time: the first one's number, information, weights."""
        step = max(1, PIECE // self.width)
        for first in range(0, self.rows, step):
            yield first, *self.piece(first, min(first + step, self.rows))


@dataclass(frozen=True)
class Found:
    """Of one matrix: its damage in ``nats`` per token by type; the ``importance`` [experts, width]
    of its columns, which is their mean Fisher information; and how many rows were quantized. Of one
    whose information is not finite all are NaN.
    """

    nats: dict[str, float]
    importance: Floats
    quantized: int


def measure(
    matrix: Matrix,
    kinds: Sequence[str],
    ggml: Ggml,
    *,
    importance: Floats | None = None,
    by_itself: bool = True,
    sample: int = SAMPLE,
    threads: int = 1,
    seed: int = 0,
) -> Found:
    """The damage of a matrix by each of ``kinds``. ``importance`` [experts, width] is what its
    columns weigh when it is quantized: that of an importance matrix, or without one its own; or
    nothing, where it is not ``by_itself``.
    """
    columns = np.zeros((matrix.experts, matrix.width))
    costs = np.zeros(matrix.rows)
    each = matrix.rows // matrix.experts
    for first, squares, weights in matrix.pieces():
        costs[first : first + len(squares)] = np.einsum("rc,rc,rc->r", squares, weights, weights)
        for expert in range(first // each, (first + len(squares) - 1) // each + 1):
            rows = slice(max(0, expert * each - first), max(0, (expert + 1) * each - first))
            columns[expert] += squares[rows].sum(0, dtype=np.float64)
    if not np.isfinite(costs).all():
        return Found(dict.fromkeys(kinds, float("nan")), columns.astype(np.float32), 0)
    own = (columns / each).astype(np.float32)
    if not kinds:
        return Found({}, own, 0)
    used = _floored(own) if importance is None and by_itself else importance
    chosen, shares = _rows(costs, max(1, sample // matrix.width), seed)
    totals = dict.fromkeys(kinds, 0.0)

    def damage(kind: str, expert: int, rows: Any, squares: Floats, weights: Floats) -> float:
        values = np.ascontiguousarray(weights)
        weighed = None if used is None else used[expert]
        back = ggml.floats(ggml.quantize(values, kind, weighed), kind)
        back -= values
        return float(shares[rows] @ np.einsum("rc,rc,rc->r", squares, back, back)) / 2

    with ThreadPoolExecutor(threads) as pool:
        for first, squares, weights in matrix.pieces():
            here = chosen[(chosen >= first) & (chosen < first + len(squares))]
            tasks = []
            for expert, rows in _parts(here, each, max(1, TASK // matrix.width)):
                at = rows - first
                part = (expert, rows, squares[at], weights[at])
                tasks += [(kind, pool.submit(damage, kind, *part)) for kind in kinds]
            for kind, task in tasks:
                totals[kind] += task.result()
    return Found(totals, own, len(chosen))


def _rows(costs: Any, count: int, seed: int) -> tuple[Any, Any]:
    """The numbers of the rows to quantize, and by row how much each counts: all once, or ``count``
    draws in proportion to ``costs``.
    """
    total = costs.sum()
    if count >= len(costs) or not total:
        return np.arange(len(costs)), np.ones(len(costs))
    draws = np.random.default_rng(seed).multinomial(count, costs / total)
    shares = np.zeros(len(costs))
    chosen = np.flatnonzero(draws)
    shares[chosen] = draws[chosen] * total / (count * costs[chosen])
    return chosen, shares


def _parts(rows: Any, each: int, most: int) -> Iterator[tuple[int, Any]]:
    """Rows in parts of one expert, of at most as many."""
    for expert in np.unique(rows // each):
        own = rows[rows // each == expert]
        for at in range(0, len(own), most):
            yield int(expert), own[at : at + most]


def _floored(importance: Floats) -> Floats:
    """Columns that nothing passed through count a little."""
    least = FLOOR * importance.mean(axis=1, keepdims=True)
    floored = np.maximum(importance, least)
    floored[~(floored.sum(axis=1) > 0)] = 1.0
    return np.ascontiguousarray(floored, dtype=np.float32)


def by_tensor(importance: Mapping[str, Floats], name: str, experts: int) -> Floats | None:
    """A tensor's part of an importance matrix, [experts, width]; None if it has none."""
    found = importance.get(name)
    return None if found is None else np.ascontiguousarray(found.reshape(experts, -1))
