"""A table of sensitivities summed up for people: by kind of tensor, and by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from autoquant.display.sensitivities import Grid, Part
from autoquant.fisher.table import Row, Sensitivities

LADDER = ("Q8_0", "Q6_K", "Q4_K", "Q3_K", "Q2_K")
LEGACY = ("Q5_0", "Q4_0")  # for rows that are no multiple of 256
COMMON = ("Q4_K", "IQ4_NL", "Q8_0")  # the first that all have is what tensors are compared at
# in the order of a block; others follow as they come
USUAL = (
    "attn_qkv", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
)  # fmt: skip
_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.")


def place(name: str) -> tuple[str, int | None]:
    """Of a GGUF tensor's name the kind (attn_q, ffn_down …) and the layer, None outside of them."""
    block = _BLOCK.search(name)
    kind = name.removesuffix(".weight").split(".")[-1]
    return kind, int(block[1]) if block else None


def common(table: Sensitivities) -> str:
    """The type that tensors are compared at: of about four bits, if all have one."""
    for kind in COMMON:
        if all(kind in row.nats for row in table.tensors.values()):
            return kind
    every = [kind for row in table.tensors.values() for kind in row.nats]
    return max(dict.fromkeys(every), key=every.count)


def types(table: Sensitivities) -> tuple[str, ...]:
    """The types that a summary shows, those of llama.cpp that people know."""
    rows = table.tensors.values()
    short = any(row.shape[0] % 256 for row in rows)
    return tuple(
        kind
        for kind in (*LADDER, *(LEGACY if short else ()))
        if any(kind in row.nats for row in rows)
    )


def parts(table: Sensitivities) -> list[Part]:
    """The kinds of tensors, the most sensitive first."""
    at, kinds = common(table), dict[str, dict[str, Row]]()
    for name, row in table.tensors.items():
        kinds.setdefault(place(name)[0], {})[name] = row
    weights, damage = _weights(table.tensors.values()), _nats(table.tensors.values(), at)
    average = damage / weights if weights else 0.0
    found = []
    for kind, rows in kinds.items():
        own, lost = _weights(rows.values()), _nats(rows.values(), at)
        by_layer = dict[int, float]()
        for name, row in rows.items():
            if (layer := place(name)[1]) is not None:
                by_layer[layer] = by_layer.get(layer, 0.0) + row.nats.get(at, 0.0)
        worst = max(by_layer, key=by_layer.__getitem__, default=None)
        found.append(
            Part(
                kind,
                len(rows),
                own / weights,
                lost / own / average if average else 0.0,
                {
                    one: _nats(rows.values(), one)
                    for one in types(table)
                    if all(one in row.nats for row in rows.values())
                },
                worst,
                by_layer[worst] / lost if worst is not None and lost else 0.0,
            )
        )
    return sorted(found, key=lambda part: -part.sensitive)


def grid(table: Sensitivities) -> Grid:
    """What a million weights of each tensor lose, for a picture."""
    at = common(table)
    layers, outside = dict[str, dict[int, float]](), dict[str, float]()
    for name, row in table.tensors.items():
        if at not in row.nats:
            continue
        kind, layer = place(name)
        lost = 1e6 * row.nats[at] / math.prod(row.shape)
        if layer is None:
            outside[kind] = lost
        else:
            layers.setdefault(kind, {})[layer] = lost
    return Grid(at, _ordered(layers), outside)


def _ordered(layers: Mapping[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    names = [*(kind for kind in USUAL if kind in layers), *layers]
    return {name: layers[name] for name in dict.fromkeys(names)}


def _weights(rows: Iterable[Row]) -> int:
    return sum(math.prod(row.shape) for row in rows)


def _nats(rows: Iterable[Row], kind: str) -> float:
    return sum(row.nats.get(kind, 0.0) for row in rows)
