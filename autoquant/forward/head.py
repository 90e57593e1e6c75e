"""The two ends of a run: final hidden states, and the logits that the output head makes of them.
Runs in workers.

Final hidden states, what enters the output head, are [rows, tokens, width]; logits would be
[rows, tokens, vocabulary], fifty times as much for most models. So the former are kept, and logits
are made of some rows at a time, by the model's own forward with its body left out: whatever it does
after the head (scales, soft caps) is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autoquant.core.errors import CheckFailed
from autoquant.forward.blockwise import Blockwise

KEPT = 512 << 20  # bytes of all heads; larger ones are read again for each part of the rows
OF_GPU = 4  # where there is a GPU, as much as this part of what is free there
PIECE = 64 << 20  # bytes of a head in float32 that are there at a time


class _Reached(Exception):
    """The hidden states have reached the head."""

    def __init__(self, hidden: Any) -> None:
        super().__init__()
        self.hidden = hidden


def reached(model: Blockwise, ids: Any, *, gradients: bool = False) -> Any:
    """What enters the output head of token ids [rows, tokens]: [rows, tokens, width]."""

    def stop(hidden: Any) -> Any:
        raise _Reached(hidden)

    plain, model.head.forward = model.head.forward, stop
    try:
        model.run(ids, gradients=gradients)
    except _Reached as there:
        return there.hidden
    finally:
        model.head.forward = plain
    raise CheckFailed(f"{type(model.model).__name__} has run past its output head")


def final(model: Blockwise, ids: Any, keep: int) -> Any:
    """The final hidden states of the last ``keep`` tokens of each row of ids [rows, tokens], as
    [rows, keep, width] on the CPU. Raises CheckFailed if they are not finite.
    """
    hidden = reached(model, ids)[:, -keep:].float().cpu().contiguous()
    if not hidden.isfinite().all():
        raise CheckFailed("the model's hidden states are not finite")
    return hidden


class Head:
    """The output head of a model, whose blocks need not have run. ``share``: how many heads there
    are at a time.
    """

    def __init__(self, model: Blockwise, *, share: int = 1) -> None:
        import torch

        self._model, head = model, model.head
        self._name = model.name_of(head)
        self._rows, self._width = head.weight.shape
        self._bias = None
        if f"{self._name}.bias" in model.parameters and getattr(head, "bias", None) is not None:
            self._bias = model.parameters.value(f"{self._name}.bias").float().to(model.device)
        room = KEPT
        if model.device != "cpu":
            room = torch.cuda.mem_get_info()[0] // OF_GPU
        self._kept = None
        if 4 * self._rows * self._width <= room / share:
            self._kept = self._read(0, self._rows)

    def logits(self, hidden: Any, *, gradients: bool = False) -> Any:
        """The logits [rows, tokens, vocabulary] of final hidden states, on the model's device; with
        ``gradients`` they can be differentiated.
        """
        hidden = hidden.to(self._model.device)
        return self._after(hidden, lambda: self.product(hidden), gradients=gradients)

    def after(self, product: Any) -> Any:
        """The logits that the model makes of the head's own product [rows, tokens, any part of the
        vocabulary]; they can be differentiated.
        """
        hidden = product.new_zeros((*product.shape[:2], self._width))
        return self._after(hidden, lambda: product, gradients=True)

    def _after(self, hidden: Any, product: Callable[[], Any], *, gradients: bool) -> Any:
        import torch

        model = self._model.model
        body = _body(model, self._model.head, next(iter(self._model.units)))
        head = self._model.head
        plain, ends = body.forward, head.forward
        body.forward = lambda *_, **__: _output(hidden)
        head.forward = lambda _: product()
        try:
            with torch.set_grad_enabled(gradients):
                ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
                return model(input_ids=ids, use_cache=False).logits.float()
        finally:
            body.forward, head.forward = plain, ends

    def product(self, hidden: Any, first: int = 0, last: int | None = None) -> Any:
        """The head's own product with final hidden states [rows, tokens, width], of its rows from
        ``first`` to ``last``.
        """
        import torch

        last = self._rows if last is None else last
        step = max(1, PIECE // (4 * self._width)) if self._kept is None else self._rows
        pieces = []
        for at in range(first, last, step):
            end = min(at + step, last)
            bias = self._bias[at:end] if self._bias is not None else None
            piece = self._read(at, end) if self._kept is None else self._kept[at:end]
            pieces.append(torch.nn.functional.linear(hidden, piece, bias))
        return torch.cat(pieces, dim=-1)

    def _read(self, first: int, last: int) -> Any:
        name = f"{self._name}.weight"
        return self._model.parameters.rows(name, first, last).to(self._model.device).float()


def _body(model: Any, head: Any, block: str) -> Any:
    """The part of a model that hands hidden states to its head: the outermost one around a block
    that does not have the head too.
    """
    parts = block.split(".")
    for i in range(1, len(parts)):
        body = model.get_submodule(".".join(parts[:i]))
        if not any(one is head for one in body.modules()):
            return body
    raise CheckFailed(f"{type(model).__name__} has its output head among its blocks")


def _output(hidden: Any) -> Any:
    """What the body of a model gives; whatever else is asked of it is not there."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class Output(BaseModelOutputWithPast):  # type: ignore[misc]
        def __getattr__(self, _: str) -> None:
            return None

    return Output(last_hidden_state=hidden)
