"""What methods share that ask gradients which weights matter: models that have none, what a run
forward and backward takes.
"""

from __future__ import annotations

from typing import Any

from autoquant.core.errors import InputError
from autoquant.core.machine import memory_available, nvidia_gpu
from autoquant.core.records import Source
from autoquant.evaluate import planning
from autoquant.evaluate.scoring import CONTEXT
from autoquant.forward import cost
from autoquant.source.headers import read_json


def check(source: Source, asked: str, instead: str) -> None:
    """Refuse a model that gradients cannot be computed of. ``asked`` is the option that asks for
    them, ``instead`` a sentence with what to do. Raises InputError.
    """
    if not planning.known(source):
        raise InputError(
            f"{asked}: gradients are computed by transformers, which does not know"
            f" {source.architecture} or its weights. {instead}"
        )
    config = read_json(source.folder / "config.json")
    if (config.get("text_config") or config).get("num_kv_shared_layers"):
        raise InputError(
            f"{asked}: the blocks of {source.architecture} share keys and values, through which"
            f" gradients are not followed. {instead}"
        )


def length(source: Source) -> int:
    """Tokens of a chunk."""
    return min(CONTEXT, source.context)


def memory(source: Source, chunks: int, more: int = 0) -> int:
    """Bytes that a run over ``chunks`` takes, with ``more`` that are kept of a block."""
    return cost.of(source).gradients(chunks, length(source)) + more


def seconds(source: Source, chunks: int) -> float:
    """Seconds of a run over ``chunks`` here. Backwards takes the forward pass again and two
    products in the place of each one.
    """
    return 4 * cost.of(source).seconds(chunks, length(source))


def how(source: Source, chunks: int, instead: str, more: int = 0) -> dict[str, Any]:
    """How the model is run forward and backward (arguments of Blockwise). Raises InputError without
    memory for it, with what to do: fewer chunks (sensitivity_samples), or where these are not
    enough, ``instead``. For ``more`` see :func:`memory`.
    """
    found, available = cost.of(source), memory_available()
    needed = memory(source, chunks, more)
    if needed <= available:
        chosen = {"ahead": needed + 4 * found.block <= available, "part": 1}
        # what enters the blocks is kept where they run
        return chosen | ({"on_gpu": [[1, needed]]} if nvidia_gpu() else {})
    least = memory(source, 2, more)
    each = (needed - least) / max(1, chunks - 2)
    fit = 2 + int((available - least) / each) if available > least else 0
    said = f"Take at most {fit} sensitivity_samples" if fit >= 2 else instead
    raise InputError(
        f"sensitivity_samples: gradients on {chunks} chunks need"
        f" {needed / 1e9:.1f} GB of memory (a block of the model with its gradients, and what"
        f" enters each block), {available / 1e9:.1f} GB are free. {said}"
    )
