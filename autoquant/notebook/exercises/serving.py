"""The exercises of 11_Serving."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from autoquant.notebook.exercises.base import Exercise, Mistake

# --- 11.1: bytes of the KV cache ---


def _cache(layers: int, kv_heads: int, head_size: int, context: int, bits: float) -> float:
    return 2 * layers * kv_heads * head_size * context * bits / 8


CACHE = Exercise(
    _cache,
    ((32, 8, 128, 8192, 16), (28, 2, 128, 32768, 8.5), (4, 2, 64, 256, 4.5)),
    (
        Mistake("keys and values: twice as much", lambda *case: _cache(*case) / 2),
        Mistake("that is in bits: divide by 8", lambda *case: 8 * _cache(*case)),
        Mistake(
            "every layer has a cache of its own: multiply by the layers",
            lambda layers, *case: _cache(1, *case),
        ),
        Mistake(
            "every KV head has keys and values of its own: multiply by the KV heads",
            lambda layers, heads, *case: _cache(layers, 1, *case),
        ),
        Mistake(
            "16 bits are not always meant: use bits",
            lambda layers, heads, size, context, _: _cache(layers, heads, size, context, 16),
        ),
    ),
)

# --- 11.2: the roofline ---


def _speed(
    parameters: float, bits: float, cache: float, users: int, bandwidth: float, flops: float,
    *, longest: Callable[[float, float], float] = max, per_user: bool = False,
    weights: float = 1, caches: float | None = None,
) -> float:  # fmt: skip
    moved = weights * parameters * bits / 8 + (users if caches is None else caches) * cache
    seconds = longest(moved / bandwidth, 2 * parameters * users / flops)
    return (1 if per_user else users) / seconds


SPEED = Exercise(
    _speed,
    (
        (8e9, 16, 1e9, 1, 1e12, 1e14),
        (8e9, 4.5, 1e9, 4, 3.35e12, 9.89e14),
        (7e10, 4.5, 2e8, 300, 3.35e12, 9.89e14),
        (1e9, 8.5, 5e8, 16, 3.2e11, 6.5e13),
    ),
    (
        Mistake(
            "moving and computing go on at the same time: the longer of both counts, not the sum",
            lambda *case: _speed(*case, longest=lambda a, b: a + b),
        ),
        Mistake(
            "the slower of the two sets the pace: max, not min",
            lambda *case: _speed(*case, longest=min),
        ),
        Mistake(
            "that is what one user gets; asked is what all get together: times users",
            lambda *case: _speed(*case, per_user=True),
        ),
        Mistake(
            "every user has a cache of their own: the cache is read for each",
            lambda *case: _speed(*case, caches=1),
        ),
        Mistake("the caches are read as well", lambda *case: _speed(*case, caches=0)),
        Mistake(
            "weights are read once for all users together",
            lambda *case: _speed(*case, weights=case[3]),
        ),
        Mistake(
            "bits, not bytes: the weights take parameters · bits / 8 bytes",
            lambda *case: _speed(*case, weights=8),
        ),
        Mistake(
            "that is the time of a step in seconds: users / time",
            lambda *case: case[3] / _speed(*case),
        ),
    ),
)

# --- 11.3: keys with one scale per channel ---


def _rounded(keys: Any, bits: int, *, axis: int | None = 0, zero_point: bool = True) -> Any:
    if not zero_point:
        scale = np.abs(keys).max(axis, keepdims=True) / (2 ** (bits - 1) - 1)
        return np.round(keys / scale) * scale
    low, high = keys.min(axis, keepdims=True), keys.max(axis, keepdims=True)
    scale = (high - low) / (2**bits - 1)
    return np.round((keys - low) / scale) * scale + low


def _keys(seed: int) -> Any:
    random = np.random.default_rng(seed)
    return random.normal(size=(40, 16)) * random.uniform(0.5, 6, 16) + random.normal(size=16)


KEYS = Exercise(
    _rounded,
    ((_keys(0), 4), (_keys(1), 2), (_keys(2), 8)),
    (
        Mistake(
            "that is one scale for each token: minimum and maximum of each channel are over axis 0",
            lambda *case: _rounded(*case, axis=1),
        ),
        Mistake(
            "that is one scale for all: minimum and maximum over axis 0 (keepdims=True)",
            lambda *case: _rounded(*case, axis=None),
        ),
        Mistake(
            "that is absmax: a channel's values lie between its minimum and its maximum, which are"
            " codes 0 and 2^bits − 1",
            lambda *case: _rounded(*case, zero_point=False),
        ),
        Mistake(
            "there are 2^bits codes, and 2^bits − 1 steps between them",
            lambda keys, bits: _steps(keys, bits),
        ),
        Mistake(
            "add the minimum again",
            lambda keys, bits: _rounded(keys, bits) - keys.min(0, keepdims=True),
        ),
        Mistake(
            "those are the codes: multiply by the scale and add the minimum",
            lambda keys, bits: np.round(
                (keys - keys.min(0)) / ((keys.max(0) - keys.min(0)) / (2**bits - 1))
            ),
        ),
    ),
)


def _steps(keys: Any, bits: int) -> Any:
    """As if there were as many steps as codes."""
    low = keys.min(0)
    scale = (keys.max(0) - low) / 2**bits
    return np.round((keys - low) / scale) * scale + low


EXERCISES = {"11.1": CACHE, "11.2": SPEED, "11.3": KEYS}
