"""An importance matrix for llama.cpp, collected by transformers block by block, on a GPU or the
CPU. Runs in a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoquant.core.errors import ProcessFailed
from autoquant.evaluate import models
from autoquant.forward import head
from autoquant.forward.places import place
from autoquant.forward.products import Squares
from autoquant.runtime.worker import Emit, Report


def collect(
    source: Mapping[str, Any],
    chunks: list[list[int]],
    target: str,
    *,
    dataset: str,
    threads: int,
    plan: Mapping[str, Any] | None = None,
    report: Report | None = None,
    emit: Emit,
) -> dict[str, Any]:
    """Run a model (see models, with what graphs.of_model takes) over chunks of token ids, and write
    the squared inputs of its blocks' matrices to ``target``, in llama.cpp's GGUF format. Returns
    ``chunks`` and ``tensors``, as llama.cpp's own collection does.
    """
    import torch

    from autoquant.backends.llamacpp import graphs, imatrix, inputs

    made, shapes = graphs.of_model(
        str(source["folder"]), source["converter"], source["taking"], source["name"]
    )
    squares, blocks = Squares(), 0

    def done() -> None:
        nonlocal blocks
        blocks += 1
        if report is not None:
            report(blocks, len(model.units))

    model = models.opened(
        source,
        place(plan, emit),
        threads=threads,
        emit=emit,
        done=done,
        around=squares.around,
    )
    head.final(model, torch.tensor(chunks), 1)
    model.close()
    broken = [name for name, one in squares.found.items() if not one.sums.isfinite().all()]
    if broken:
        raise ProcessFailed(
            f"the importance matrix has values that are not finite for {broken[0]}: the model"
            " itself computes NaN or Inf on this text"
        )
    sums, counts = inputs.named(squares.found, model.parameters, made, shapes)
    experts = [name for name in made if "_exps." in name and name.startswith("blk.")]
    if not sums or (experts and not any(name in sums for name in experts)):
        raise ProcessFailed(
            "the importance matrix is not whole: the products of"
            f" {'experts' if sums else 'blocks'} were not found"
        )
    imatrix.write(target, sums, counts, dataset=dataset, chunks=len(chunks), context=len(chunks[0]))
    return {"chunks": len(chunks), "tensors": len(sums)}
