"""Cutting the arguments of a block along the batch, and joining what comes out. Runs in workers.

transformers gives a block tensors with the batch as their first dimension (hidden states, masks),
others that all rows share (positions, rotary embeddings), and dictionaries which blocks put tensors
into that later blocks take (shared keys and values).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any


def cut(value: Any, rows: slice, batch: int, *, biases: bool = False) -> Any:
    """A value for some rows of a ``batch``. ``biases`` of attention (ALiBi) have a row for each
    head of each row.
    """
    import torch

    if isinstance(value, torch.Tensor):
        if (axis := axis_of(value, batch)) is not None:
            return value[rows] if axis == 0 else value[:, rows]
        if biases and value.ndim and value.shape[0] % batch == 0:
            heads = value.shape[0] // batch
            return value[rows.start * heads : rows.stop * heads]
        return value
    if type(value) in (tuple, list):
        return type(value)(cut(one, rows, batch) for one in value)
    if isinstance(value, MutableMapping):
        return type(value)((name, cut(one, rows, batch)) for name, one in value.items())  # type: ignore[call-arg]
    return value


def cut_all(
    arguments: tuple[Any, ...], named: Mapping[str, Any], rows: slice, batch: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments for some rows of the batch."""
    return cut(arguments, rows, batch), {
        name: cut(value, rows, batch, biases="alibi" in name) for name, value in named.items()
    }


def axis_of(tensor: Any, batch: int) -> int | None:
    """Which dimension of a tensor is the batch; None if none is. Some have a short one before it:
    positions in three directions (Qwen-VL), predictions of hidden states (Gemma 3n).
    """
    inside = tensor.ndim >= 3 and 1 < tensor.shape[0] <= 8 and tensor.shape[1] == batch
    if inside and tensor.ndim > 3:
        return 1
    if tensor.ndim and tensor.shape[0] == batch:
        return 0
    return 1 if inside else None


def join(parts: list[Any], axis: int = 0) -> Any:
    """One value of those of parts of the batch; ``axis`` is the batch's in hidden states, which
    have as many dimensions as the first tensor.
    """
    import torch

    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, torch.Tensor) and first.ndim:
        return torch.cat(parts, axis if first.ndim > 2 else 0)
    if type(first) in (tuple, list):
        return type(first)(join(list(one), axis) for one in zip(*parts, strict=True))
    return first


def put_back(given: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> None:
    """Put what a block has put into dictionaries among its arguments into the whole batch's."""
    for name, whole in given.items():
        if isinstance(whole, MutableMapping):
            for key in parts[0][name]:
                whole[key] = join([part[name][key] for part in parts])
