"""An importance matrix of what enters a model's matrices when transformers runs it, under the names
that llama.cpp has for them. Runs in workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from autoquant.backends.llamacpp import graphs
from autoquant.backends.llamacpp.library import Floats
from autoquant.forward.parameters import Parameters
from autoquant.forward.products import Inputs


def named(
    found: Mapping[str, Inputs],
    parameters: Parameters,
    made: Mapping[str, graphs.Graph],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Sums and counts of the matrices of blocks of a GGUF file, of those of a model's parameters.

    What the converter does to a matrix it does to one whose every row has the sums of its inputs:
    where the result has the same in every row, these are the sums of its inputs; a matrix whose
    inputs are others in llama.cpp gets none.
    """
    sums: dict[str, Floats] = {}
    counts: dict[str, Floats] = {}
    places = parameters.places()
    for name, graph in made.items():
        known = [places[one][0] in found for one in graph.names() if one in places]
        if not name.startswith("blk.") or not known:
            continue
        if len(known) < len(graph.sources) or not all(known):
            continue
        summed = _through(graph, found, places, shapes, lambda one: one.sums)
        if summed is None:
            continue
        counted = _through(
            graph, found, places, shapes, lambda one: one.counts[:, None].expand(one.sums.shape)
        )
        sums[name] = summed
        counts[name] = np.ascontiguousarray(counted[:, 0])
    return sums, counts


def _through(
    graph: graphs.Graph,
    found: Mapping[str, Inputs],
    places: Mapping[str, tuple[str, int | None]],
    shapes: Mapping[str, tuple[int, ...]],
    of: Any,
) -> Any:
    """[experts or 1, inputs] of a tensor in GGUF; None if its rows differ."""

    def spread(tensor: str) -> Any:
        parameter, expert = places[tensor]
        one = found[parameter]
        values, shape = of(one), shapes[tensor]
        values = values if expert is None else values[expert : expert + 1]
        values = values[:, None, :] if one.last else values[:, :, None]
        return (
            values.expand(-1, *shape[-2:]).reshape(shape)
            if len(shape) == 3
            else (values[0].expand(shape))
        )

    out = graph.run(spread)
    if out.ndim < 2:
        return None
    rows = out.reshape(-1, *out.shape[-2:])
    if not (rows == rows[:, :1]).all():
        return None
    return np.ascontiguousarray(rows[:, 0].float().numpy())
