"""The backward pass of a model that runs block by block. Runs in workers.

Forward each block keeps its input; backward its weights are read again, its forward is repeated
with a graph, one sample at a time, and its weights' gradients are handed over and dropped: memory
is one block with its gradients, and every block's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from autoquant.core.errors import InputError
from autoquant.forward import batches
from autoquant.forward.blockwise import Blockwise
from autoquant.forward.head import Head, reached

Sink = Callable[[str, int, Mapping[str, Any]], None]
"""Gets a block's name, the number of a sample, and the gradients of the block's parameters for that
sample, by their names in the block."""
Loss = Callable[[Any, int], Any]
"""The loss of a sample's logits [1, tokens, vocabulary], and its number."""


@dataclass(frozen=True)
class Ends:
    """What the gradients of a model's two ends are made of: what enters its output head
    (``final``), and the gradient of the ``embedded`` tokens, by the rows of the embeddings; both
    [samples, tokens, width]. ``losses`` are the samples'.
    """

    losses: list[float]
    final: Any
    embedded: Any


def backward(model: Blockwise, ids: Any, loss: Loss, sink: Sink) -> Ends:
    """Run token ids [samples, tokens] forward and backward: the gradients of each sample's own loss
    go to ``sink``, block by block, the last first. Returns those of the ends.

    Raises InputError for a model whose blocks hand tensors to others beside the hidden states
    (shared keys and values): gradients would be lost there.
    """
    import torch

    text = model.config.get_text_config()
    if getattr(text, "num_kv_shared_layers", 0):
        raise InputError(
            f"{type(model.model).__name__}: its blocks share keys and values, through which"
            " gradients are not followed"
        )
    for name, block in model.units.items():
        block.forward = _wrapped(model, name, sink)
    try:
        with _embedding(model) as rows:
            final = reached(model, ids, gradients=True)
        head, losses, gradients = Head(model), [], []
        for i in range(len(ids)):
            hidden = final[i : i + 1].detach().requires_grad_()
            with torch.enable_grad():
                value = loss(head.logits(hidden, gradients=True), i)
            gradients.append(torch.autograd.grad(value, hidden)[0])
            losses.append(float(value.detach()))
        final.backward(torch.cat(gradients))
    finally:
        for name in model.units:
            model.wrap(name)
    (embedded, scale) = rows[0]
    return Ends(losses, final.detach(), embedded.grad * scale)


@contextmanager
def _embedding(model: Blockwise) -> Iterator[list[tuple[Any, float]]]:
    """Have what the tokens' embeddings give as a leaf of the graph, with what each row of their
    matrix is multiplied by to give it (Gemma's square root of the width).
    """
    found: list[tuple[Any, float]] = []
    module = model.model.get_input_embeddings()
    name = f"{model.name_of(module)}.weight"

    def keep(_: Any, arguments: tuple[Any, ...], out: Any) -> Any:
        leaf = out.detach().requires_grad_()
        first = int(arguments[0].flatten()[0])
        row = model.parameters.rows(name, first, first + 1)[0].to(out.device).float()
        scale = float(out.flatten(0, -2)[0].detach() @ row / (row @ row))
        found.append((leaf, scale))
        return leaf

    handle = module.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def _wrapped(model: Blockwise, name: str, sink: Sink) -> Callable[..., Any]:
    """A block's forward, to be differentiated."""
    import torch

    plain = model.plain[name]

    class Run(torch.autograd.Function):  # type: ignore[misc]
        """One block on the whole batch."""

        @staticmethod
        def forward(ctx: Any, hidden: Any, arguments: Any, named: Any, rest: list[Any]) -> Any:
            ctx.arguments, ctx.named = arguments, named
            ctx.save_for_backward(hidden)
            model.load(name)
            try:
                out = model.in_parts(plain, (hidden, *arguments), named)
                rest.append(out[1:] if isinstance(out, tuple) else None)
                return _first(out)
            finally:
                model.drop(name)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            (hidden,) = ctx.saved_tensors
            model.load(name, ahead=-1)
            try:
                parts = [
                    _of_sample(ctx, hidden, gradient, slice(i, i + 1)) for i in range(len(hidden))
                ]
            finally:
                model.drop(name)
            return torch.cat(parts), None, None, None

    def _of_sample(ctx: Any, hidden: Any, gradient: Any, rows: slice) -> Any:
        parameters = dict(model.units[name].named_parameters())
        for one in parameters.values():
            one.requires_grad_(True)
        arguments, named = batches.cut_all(ctx.arguments, ctx.named, rows, len(hidden))
        with torch.enable_grad():
            start = hidden[rows].detach().requires_grad_()
            out = _first(plain(start, *arguments, **named))
            wanted = [start, *parameters.values()]
            found = torch.autograd.grad(out, wanted, gradient[rows], allow_unused=True)
        pairs = zip(parameters, found[1:], strict=True)
        sink(name, rows.start, {one: value for one, value in pairs if value is not None})
        return found[0]

    def forward(*arguments: Any, **named: Any) -> Any:
        if not arguments:
            key = next(iter(named))
            arguments, named = (named[key],), {n: one for n, one in named.items() if n != key}
        hidden = arguments[0]
        if not hidden.requires_grad:
            hidden = hidden.detach().requires_grad_()
        rest: list[Any] = []
        out = Run.apply(hidden, arguments[1:], named, rest)
        return out if rest[0] is None else (out, *rest[0])

    return forward


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
