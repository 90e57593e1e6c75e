"""The squared gradients of a model's blocks, one block after the other. Runs in a worker."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from autoquant.forward.blockwise import Blockwise
from autoquant.forward.gradients import Ends, backward
from autoquant.runtime.worker import Report


def walk(
    model: Blockwise,
    ids: Any,
    wanted: Collection[str],
    of_block: Callable[[dict[str, Any], dict[str, Any]], None],
    *,
    seed: int = 0,
    report: Report | None = None,
) -> tuple[Ends, int]:
    """Run token ids [samples, tokens] forward and backward, with labels drawn from the model's own
    predictions (``seed``). Of each block, the last first, ``of_block`` gets the squared gradients
    of the ``wanted`` parameters, summed over all samples, and their weights, both as the
    checkpoint's tensors have them; memory is that of one block.

    Returns what is known of the ends, and of how many experts of a block at most no token was sent
    to. Raises InputError for blocks that share keys and values.
    """
    import torch

    total = len(ids) * len(model.units)
    done, unseen = 0, 0
    squares: dict[str, Any] = {}

    def sink(block: str, number: int, gradients: Mapping[str, Any]) -> None:
        nonlocal done, unseen
        for own_name, gradient in gradients.items():
            name = f"{block}.{own_name}"
            if name not in wanted:
                continue
            if name not in squares:
                squares[name] = torch.zeros(gradient.shape, device=gradient.device)
            squares[name].addcmul_(gradient, gradient)
        done += 1
        if report is not None:
            report(done, total)
        if number == len(ids) - 1:
            unseen = max(unseen, fill_unseen(squares))
            parameters = dict(model.units[block].named_parameters())
            weights = {
                f"{block}.{n}": one.detach()
                for n, one in parameters.items()
                if f"{block}.{n}" in squares
            }
            of_block(model.parameters.given_back(squares), model.parameters.given_back(weights))
            squares.clear()

    generator = torch.Generator().manual_seed(seed)

    def loss(logits: Any, _: int) -> Any:
        """Of labels drawn from the model's own predictions."""
        chances = logits[0].detach().softmax(-1).cpu()
        labels = torch.multinomial(chances, 1, generator=generator)[:, 0].to(logits.device)
        return torch.nn.functional.cross_entropy(logits[0], labels, reduction="sum")

    return backward(model, ids, loss, sink), unseen


def fill_unseen(squares: Mapping[str, Any]) -> int:
    """Give experts that no token was sent to the mean information of the others, so that they do
    not count as worthless; how many they are.
    """
    unseen = 0
    for value in squares.values():
        if value.ndim < 3:
            continue
        seen = value.flatten(1).any(1)
        if seen.any() and not seen.all():
            value[~seen] = value[seen].mean(0)
            unseen = max(unseen, int((~seen).sum()))
    return unseen
