"""Each block's own arguments, for libraries that give every block those of the first one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from autoquant.core.errors import InputError

REST = (
    "AutoRound gives all blocks those of the first. GPTQ with algorithm gptq takes such models, and"
    " so do GGUF, HQQ, bitsandbytes and W8A8"
)


class _Enough(Exception):
    """All blocks were called."""


def keep(model: Any, blocks: Sequence[Any], sample: Any) -> None:
    """From now on, whoever calls one of ``blocks`` by itself calls it with the arguments that the
    ``model`` would give it: its own mask, rotary embedding or positions, where these do not depend
    on the tokens. A block of another kind (sliding or linear attention beside full attention) has
    others than the first.

    ``sample`` is a tensor [1, tokens] of the length that the blocks will be called with. It goes
    through the model, and so does the reverse of it, with the first block alone at work; the others
    return what that returned. Raises InputError if another block takes inputs that depend on the
    tokens, beside the hidden states: these would be the first one's.
    """
    seen = [_arguments(model, blocks, tokens) for tokens in (sample, sample.flip(1))]
    _refuse_own_inputs(model, *seen)
    for block, arguments in zip(blocks, zip(*seen, strict=True), strict=True):
        own = {
            name: value
            for name, value in arguments[0].items()
            if all(_same(value, other.get(name)) for other in arguments)
        }
        first = next(iter(inspect.signature(block.forward).parameters))
        block.register_forward_pre_hook(_giving(own, first), with_kwargs=True)


def _refuse_own_inputs(model: Any, one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """Refuse a model whose blocks differ in what they are told of the tokens."""
    import torch

    _, *names = one[0]  # the hidden states are first
    for name in names:
        first = one[0][name]
        for mine, others in zip(one[1:], other[1:], strict=True):
            value = mine.get(name)
            if isinstance(value, torch.Tensor) and not (
                _same(value, first) or _same(value, others.get(name))
            ):
                raise InputError(
                    f"each block of {type(model).__name__} takes inputs of its own for each token"
                    f" ({name}): {REST}"
                )


def _arguments(model: Any, blocks: Sequence[Any], sample: Any) -> list[dict[str, Any]]:
    """What each block was called with, by name."""
    import torch

    seen: list[dict[str, Any]] = []
    parameters = list(inspect.signature(blocks[0].forward).parameters)
    forwards = [block.forward for block in blocks]
    first: list[Any] = []

    def stand_in(*args: Any, **named: Any) -> Any:
        seen.append(dict(zip(parameters, args, strict=False)) | named)
        if len(seen) == len(blocks):
            raise _Enough
        if not first:
            first.append(forwards[0](*args, **named))
        return first[0]

    for block in blocks:
        block.forward = stand_in
    try:
        with torch.no_grad():
            model(input_ids=sample, use_cache=False)
    except _Enough:
        pass
    finally:
        for block in blocks:
            del block.forward
    return seen


def _same(one: Any, other: Any) -> bool:
    """Whether both are the same numbers, or both nothing; False for all that is no tensor."""
    import torch

    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, tuple):
        return isinstance(other, tuple) and all(map(_same, one, other))
    return one is None and other is None


def _giving(own: dict[str, Any], first: str) -> Any:
    """A hook that puts a block's own arguments in place of those it is called with; ``first`` is
    the name of its hidden states.
    """

    def hook(block: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        hidden = args[0] if args else named[first]
        given = {name: _like(own[name], hidden, named[name]) for name in own if name in named}
        return args, {**named, **given}

    return hook


def _like(value: Any, hidden: Any, given: Any) -> Any:
    """A kept argument on the device, in the dtype and for the batch of the call."""
    import torch

    if isinstance(value, tuple):
        others = given if isinstance(given, tuple) else [None] * len(value)
        return tuple(_like(one, hidden, other) for one, other in zip(value, others, strict=True))
    if value is None:
        return None
    value = value.to(hidden.device, hidden.dtype if value.is_floating_point() else value.dtype)
    if isinstance(given, torch.Tensor) and given.ndim == value.ndim and value.shape[0]:
        times = given.shape[0] // value.shape[0]
        value = value.repeat(times, *[1] * (value.ndim - 1)) if times > 1 else value
    return value
