"""The sensitivities of a model's matrices, collected block by block. Runs in a worker."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from autoquant.core.errors import ProcessFailed
from autoquant.evaluate import models
from autoquant.fisher import damage, ends
from autoquant.fisher.damage import Found, Matrix
from autoquant.fisher.walk import walk
from autoquant.forward.places import place
from autoquant.runtime.worker import Emit, Report


def collect(
    source: Mapping[str, Any],
    chunks: list[list[int]],
    kinds: Mapping[str, list[str]],
    *,
    imatrix: str,
    own: str,
    dataset: str,
    sample: int,
    threads: int,
    known: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
    plan: Mapping[str, Any] | None = None,
    report: Report | None = None,
    emit: Emit,
) -> dict[str, Any]:
    """Run a model (see evaluate.models, with what graphs.of_model takes) over chunks of token ids,
    forward and backward, with labels drawn from its own predictions; of each GGUF tensor in
    ``kinds`` emit ``{"tensor", "nats", "quantized", "rows"}``: its damage by each of these types.

    ``imatrix`` is the importance matrix that will be used; if it is empty, the mean Fisher
    information of the columns takes its place, and goes to the file ``own`` in its format. Tensors
    that are ``known`` from an interrupted run are not quantized again. Returns how many experts no
    token was sent to (``unseen``), and the tensors that nothing is ``unknown`` of, because they are
    computed by the converter or lie outside the blocks.
    """
    import torch

    from autoquant.backends.llamacpp import graphs
    from autoquant.backends.llamacpp.ggml import Ggml
    from autoquant.backends.llamacpp.imatrix import read_imatrix, write

    made, _ = graphs.of_model(
        str(source["folder"]), source["converter"], source["taking"], source["name"]
    )
    ggml, given = Ggml(), read_imatrix(imatrix) if imatrix else {}
    for kind in {kind for every in kinds.values() for kind in every}:
        ggml.begin(kind)
    model = models.opened(source, place(plan, emit), threads=threads, emit=emit)
    ids = torch.tensor(chunks)
    places = model.parameters.places()
    columns: dict[str, Any] = {}

    def finished(matrix: Matrix) -> None:
        earlier = (known or {}).get(matrix.name)
        importance = damage.by_tensor(given, matrix.name, matrix.experts)
        usable = _usable(kinds[matrix.name], with_importance=importance is not None or not imatrix)
        found: Found = damage.measure(
            matrix,
            usable if earlier is None else (),
            ggml,
            importance=importance,
            by_itself=not imatrix,
            sample=sample,
            threads=threads,
            seed=zlib.crc32(matrix.name.encode()) + seed,
        )
        columns[matrix.name] = found.importance
        if earlier is None:
            if not all(np.isfinite(one) for one in found.nats.values()):
                raise ProcessFailed(
                    f"the gradients of {matrix.name} are not finite: the model itself computes NaN"
                    " or Inf on this text"
                )
            emit(
                {
                    "tensor": matrix.name,
                    "nats": found.nats,
                    "quantized": found.quantized,
                    "rows": matrix.rows,
                }
            )

    wanted = {places[one][0] for name in kinds for one in made[name].names() if one in places}

    def of_block(information: dict[str, Any], values: dict[str, Any]) -> None:
        for name in kinds:
            graph = made[name]
            if name in columns or not graph.sources or not set(graph.names()) <= set(information):
                continue
            moved = _moved(graph, information, values, ids.numel())
            if moved is not None:
                finished(_in_memory(name, *moved))

    reached, unseen = walk(model, ids, wanted, of_block, seed=seed, report=report)
    for matrix in _ends(model, made, kinds, ids, reached):
        finished(matrix)
    model.close()
    if not columns:
        raise ProcessFailed("no matrix of the model was found by the names that llama.cpp has")
    if own:
        experts = {name: len(one) for name, one in columns.items()}
        write(
            own,
            columns,
            {name: np.ones(n, np.float32) for name, n in experts.items()},
            dataset=dataset,
            chunks=len(chunks),
            context=len(chunks[0]),
        )
    return {"unseen": unseen, "unknown": [name for name in kinds if name not in columns]}


def _usable(kinds: list[str], *, with_importance: bool) -> list[str]:
    """The types that can be made of a tensor."""
    from autoquant.backends.llamacpp.quantize import NEEDING

    return [kind for kind in kinds if with_importance or kind not in NEEDING]


def _moved(
    graph: Any, information: Mapping[str, Any], values: Mapping[str, Any], tokens: int
) -> tuple[Any, Any] | None:
    """Information and weights of a tensor in GGUF, of those of the checkpoint's; None for one that
    is not just moved and multiplied.
    """
    import torch

    from autoquant.backends.llamacpp.weights import straight

    squares = graph.run(lambda one: information[one].float().cpu())
    if squares.ndim < 2:
        return None
    weights = graph.run(lambda one: values[one].float().cpu())
    if not straight(graph):
        shapes = {name: information[name].shape for name in graph.names()}
        ones = graph.run(lambda one: torch.ones(()).expand(shapes[one]))
        zeros = graph.run(lambda one: torch.zeros(()).expand(shapes[one]))
        if zeros.count_nonzero() or not ones.all():
            return None
        if not (ones == 1).all():  # multiplied: gradients are divided, and the squares were not
            squares = squares / ones**3
    return squares / tokens, weights


def _in_memory(name: str, squares: Any, weights: Any) -> Matrix:
    width, experts = squares.shape[-1], squares.shape[0] if squares.ndim == 3 else 1
    rows_of_squares = squares.reshape(-1, width).float().numpy()
    rows_of_weights = weights.reshape(-1, width).float().numpy()
    return Matrix(
        name,
        len(rows_of_squares),
        width,
        experts,
        lambda first, last: (rows_of_squares[first:last], rows_of_weights[first:last]),
    )


def _ends(
    model: Any, made: Mapping[str, Any], kinds: Mapping[str, Any], ids: Any, reached: Any
) -> list[Matrix]:
    """The matrices of embeddings and output head, one if they are the same."""
    from autoquant.backends.llamacpp.weights import straight

    parameters = model.parameters
    head = parameters.origin(f"{model.name_of(model.head)}.weight")
    rows = parameters.origin(f"{model.name_of(model.model.get_input_embeddings())}.weight")
    parts: dict[str, list[Any]] = {}
    parts.setdefault(head, []).append(ends.HeadInformation(model, reached))
    parts.setdefault(rows, []).append(ends.EmbeddingInformation(ids, reached))
    of = {places[0]: tensor for tensor, places in parameters.places().items()}
    found = []
    for name in kinds:
        graph = made[name]
        for parameter, information in parts.items():
            if graph.names() == [of.get(parameter)] and straight(graph) and graph.made.ndim == 2:
                count, width = (int(size) for size in graph.made.shape)
                piece = ends.pieces(model, parameter, information)
                found.append(Matrix(name, count, width, 1, piece))
    return found
