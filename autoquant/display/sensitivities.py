"""How sensitive a model's tensors are, and what files of any size would lose, as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoquant.display.tables import size as in_words

ABOUT = (
    "Predicted KL divergence, thousandths of a nat per token, if all tensors of a kind had one type"
    " and everything else were unquantized; the losses of several kinds add up. Loss per weight:"
    " at {type}, relative to the average of all weights. Suffers most: the layer with the largest"
    " part of its kind's loss."
)


@dataclass(frozen=True)
class Part:
    """All tensors of a ``kind`` (attn_q, ffn_down …): how many, their share of all weights, how
    much a weight of theirs loses by the average weight's (``sensitive``), and the predicted nats
    per token by type. ``worst`` is the layer that suffers most, with its ``worst_share`` of the
    loss; None of what lies outside the layers.
    """

    kind: str
    tensors: int
    share: float
    sensitive: float
    nats: Mapping[str, float]
    worst: int | None
    worst_share: float


@dataclass(frozen=True)
class Grid:
    """Predicted nats per token and million weights at one ``type``: of each kind of tensor by
    layer, and of those ``outside`` the layers.
    """

    type: str
    layers: Mapping[str, Mapping[int, float]]
    outside: Mapping[str, float]


@dataclass(frozen=True)
class Point:
    """A file that was not made: the ``type`` in its name, its exact bytes, all tensor bytes by all
    weights in bits, and the KL divergence that is predicted (``nats`` per token). ``size`` is what
    was asked for, ``types`` what each tensor gets, ``near`` llama.cpp's own type that is nearest in
    size; empty of llama.cpp's own.
    """

    type: str
    bytes: int
    bits_per_weight: float
    nats: float
    size: str = ""
    types: Mapping[str, str] | None = None
    near: str = ""


def nats(value: float) -> str:
    """A divergence: two digits that count, and four decimals or more."""
    if value <= 0:
        return f"{value:.4f}"
    return f"{value:.{min(9, max(4, 1 - math.floor(math.log10(value))))}f}"


def _thousandths(value: float) -> str:
    """A divergence in thousandths of a nat, which can be compared at a glance."""
    small = 1000 * value
    return "<0.01" if 0 < small < 0.005 else f"{small:.{0 if small >= 100 else 2}f}"


def _times(value: float) -> str:
    digits = 0 if value >= 9.95 else 1 if value >= 0.1 else 3
    return f"{value:.{digits}f} ×"


def parts(
    found: Sequence[Part], types: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows: of each kind of tensor its share, and what it loses by type."""
    body = [
        (
            one.kind,
            f"{one.tensors}",
            f"{one.share:.1%}",
            _times(one.sensitive),
            *(_thousandths(one.nats[kind]) if kind in one.nats else "–" for kind in types),
            "–" if one.worst is None else f"layer {one.worst} ({one.worst_share:.0%})",
        )
        for one in found
    ]
    sums = [
        _thousandths(sum(one.nats[kind] for one in found))
        if all(kind in o.nats for o in found)
        else "–"
        for kind in types
    ]
    count = f"{sum(one.tensors for one in found)}"
    head = ("kind", "tensors", "share of weights", "loss per weight", *types, "suffers most")
    return head, [*body, ("all", count, "100.0%", "1.0 ×", *sums, "")]


def frontier(
    points: Sequence[Point], stock: Mapping[str, Point]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows: files of several sizes, each beside llama.cpp's type that is nearest."""
    head = ("file", "bits/weight", "size", "predicted KL", "llama.cpp's", "size", "predicted KL")
    body = list[tuple[str, ...]]()
    for one in points:
        other = stock.get(one.near)
        beside = (in_words(other.bytes), nats(other.nats)) if other else ("–", "–")
        own = (one.type, f"{one.bits_per_weight:.2f}", in_words(one.bytes), nats(one.nats))
        body.append((*own, one.near, *beside))
    return head, body
