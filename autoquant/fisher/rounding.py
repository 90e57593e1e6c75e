"""What quantizing matrices in groups by GPTQ costs, in nats per token, without doing it. Runs in
workers.

It is half the sum of each weight's Fisher information times the squared error of rounding it to
the nearest, times the share of that which GPTQ cannot make up for. GPTQ rounds one input's weights
after the other and moves the weights of later inputs, so that of an error only what these inputs
cannot stand in for is lost: the variance of an input given the later ones (in the words of its
paper, Frantar and others, 2022: 1 / U² of the diagonal of U, the upper Cholesky factor of the
inverse Hessian). What that share changes was measured: bench/RESULTS.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoquant.core.errors import ProcessFailed
from autoquant.evaluate import models
from autoquant.fisher.walk import walk
from autoquant.forward.places import place
from autoquant.runtime.worker import Emit, Report


def collect(
    source: Mapping[str, Any],
    chunks: list[list[int]],
    tensors: Sequence[str],
    kinds: Sequence[tuple[int, int]],
    *,
    sym: bool,
    damp: float,
    threads: int,
    seed: int = 0,
    plan: Mapping[str, Any] | None = None,
    report: Report | None = None,
    emit: Emit,
) -> dict[str, Any]:
    """Run a model (see evaluate.models) over chunks of token ids, forward and backward; of each of
    the checkpoint's ``tensors``, matrices [outputs, inputs] of its blocks, the damage by each of
    ``kinds`` (bits, group size; -1: a whole row); ``sym``: without zero points of their own;
    ``damp`` is GPTQ's damping.

    Returns ``nats``: tensor -> one number for each kind, in their order, of the tensors that
    gradients reach. Raises ProcessFailed for gradients that are not finite.
    """
    import torch

    model = models.opened(source, place(plan, emit), threads=threads, emit=emit)
    ids, places = torch.tensor(chunks), model.parameters.places()
    nats: dict[str, list[float]] = {}
    wanted = {name: places[name][0] for name in tensors if name in places}
    inputs = Inputs(model, set(wanted.values()))

    def of_block(squares: dict[str, Any], weights: dict[str, Any]) -> None:
        for name in wanted:
            if name not in squares:
                continue
            lost = squares[name] * inputs.left(wanted[name], damp)
            found = [damage(lost, weights[name], *kind, sym=sym) for kind in kinds]
            nats[name] = [one / ids.numel() for one in found]
            if not all(one < float("inf") for one in nats[name]):
                raise ProcessFailed(
                    f"the gradients of {name} are not finite: the model itself computes NaN or Inf"
                    " on this text"
                )

        inputs.forget()

    walk(model, ids, set(wanted.values()), of_block, seed=seed, report=report)
    inputs.close()
    model.close()
    return {"nats": nats}


class Inputs:
    """The products of what enters the modules of the ``wanted`` parameters, of one block at a
    time, summed over all tokens that are run with a graph.
    """

    def __init__(self, model: Any, wanted: set[str]) -> None:
        self._sums: dict[str, Any] = {}
        self._left: dict[str, Any] = {}
        self._same: dict[str, str] = {}  # what enters several modules is multiplied once
        self._last: tuple[Any, str] = (None, "")
        self._handles = [
            model.units[block].get_submodule(own).register_forward_pre_hook(self._keeping(name))
            for block in model.units
            for name in sorted(wanted)
            if name.startswith(f"{block}.")
            and (own := name.removeprefix(f"{block}.").rpartition(".")[0])
        ]

    def _keeping(self, name: str) -> Any:
        import torch

        def keep(_: Any, arguments: tuple[Any, ...]) -> None:
            if not torch.is_grad_enabled() or not arguments:  # the pass forward is repeated
                return
            if arguments[0] is not self._last[0]:
                self._last = (arguments[0], name)
                flat = arguments[0].detach().flatten(0, -2).float()
                self._sums[name] = flat.T @ flat + self._sums.get(name, 0)
            self._same[name] = self._last[1]

        return keep

    def left(self, name: str, damp: float) -> Any:
        """The share of an error in each input of a parameter that GPTQ leaves, [inputs]; all of
        one that nothing was seen to enter, for GPTQ sees nothing either and rounds to the nearest.
        """
        if (same := self._same.get(name)) is None:
            return 1.0
        if same not in self._left:
            self._left[same] = left(self._sums.pop(same), damp)
        return self._left[same]

    def forget(self) -> None:
        """Drop what is known of a block."""
        self._sums, self._left, self._same, self._last = {}, {}, {}, (None, "")

    def close(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()


def left(products: Any, damp: float) -> Any:
    """Of ``products`` of inputs [inputs, inputs] the variance of each input given the later ones,
    as a share of its own; with ``damp`` of the mean variance added to each, as GPTQ does, and more
    where that is too little to factor them. Inputs that are always zero lose nothing.
    """
    import torch

    diagonal = products.diagonal().clone()
    if not diagonal.any() or not diagonal.isfinite().all():
        return diagonal
    more, wrong = damp * diagonal.mean(), True
    while wrong:
        products.diagonal().add_(more)
        # the last input comes first: a factor's diagonal has what is left given those before
        factor, info = torch.linalg.cholesky_ex(products.flip(0, 1))
        more, wrong = 2 * more, bool(info)
    return (factor.diagonal().flip(0).square() / diagonal.clamp(min=1e-30)).clamp(max=1)


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
