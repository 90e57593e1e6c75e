"""What rounding matrices in groups costs, in nats per token: half the sum of each weight's Fisher
information times its squared error, rounded to the nearest. Runs in workers.

An algorithm that chooses codes by calibration (GPTQ) moves weights further than rounding does and
loses less, because it moves them together: the diagonal does not see that. What is asked of these
figures is which matrices need their bits, and that they tell of GPTQ's files too (measured:
bench/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoquant.core.errors import ProcessFailed
from autoquant.evaluate import models
from autoquant.fisher.walk import walk
from autoquant.runtime.worker import Emit, Report


def collect(
    source: Mapping[str, Any],
    chunks: list[list[int]],
    tensors: Sequence[str],
    kinds: Sequence[tuple[int, int]],
    *,
    sym: bool,
    threads: int,
    seed: int = 0,
    plan: Mapping[str, Any] | None = None,
    report: Report | None = None,
    emit: Emit,
) -> dict[str, Any]:
    """Run a model (see evaluate.models) over chunks of token ids, forward and backward; of each of
    the checkpoint's ``tensors``, matrices [outputs, inputs] of its blocks, the damage by each of
    ``kinds`` (bits, group size; -1: a whole row), ``sym``: without zero points of their own.

    Returns ``nats``: tensor -> one number for each kind, in their order, of the tensors that
    gradients reach. Raises ProcessFailed for gradients that are not finite.
    """
    import torch

    model = models.opened(source, models.place(plan, emit), threads=threads, emit=emit)
    ids, places = torch.tensor(chunks), model.parameters.places()
    nats: dict[str, list[float]] = {}

    def of_block(squares: dict[str, Any], weights: dict[str, Any]) -> None:
        for name in tensors:
            if name not in squares:
                continue
            found = [damage(squares[name], weights[name], *kind, sym=sym) for kind in kinds]
            nats[name] = [one / ids.numel() for one in found]
            if not all(one < float("inf") for one in nats[name]):
                raise ProcessFailed(
                    f"the gradients of {name} are not finite: the model itself computes NaN or Inf"
                    " on this text"
                )

    wanted = {places[name][0] for name in tensors if name in places}
    walk(model, ids, wanted, of_block, seed=seed, report=report)
    model.close()
    return {"nats": nats}


def damage(squares: Any, weights: Any, bits: int, group_size: int, *, sym: bool) -> float:
    """Half the sum of ``squares`` [outputs, inputs] times the squared errors of ``weights``, which
    are rounded in groups of ``group_size`` inputs.
    """
    off = rounded(weights.float(), bits, group_size, sym=sym) - weights.float()
    return float((squares * off.square_()).sum()) / 2


def rounded(weights: Any, bits: int, group_size: int, *, sym: bool) -> Any:
    """Weights [outputs, inputs] in float32, rounded to the nearest of 2^bits values in each group,
    as GPTQ's format has them: evenly spaced, symmetric about zero or (not ``sym``) from the
    group's least to its largest, with a scale in float16.
    """
    import torch

    outputs, inputs = weights.shape
    groups = weights.reshape(outputs, -1, inputs if group_size == -1 else group_size)
    steps = 2**bits - 1
    least = groups.amin(-1, keepdim=True).clamp(max=0)
    most = groups.amax(-1, keepdim=True).clamp(min=0)
    if sym:
        most = torch.maximum(most, -least)
        least = -most
    scale = ((most - least) / steps).half().float().clamp(min=2.0**-24)
    zero = torch.full_like(scale, 2 ** (bits - 1)) if sym else (-least / scale).round()
    codes = (groups / scale + zero).round_().clamp_(0, steps)
    return ((codes - zero) * scale).reshape(outputs, inputs)
