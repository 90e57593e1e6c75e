"""The exercises of 11_Serving."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from autoquant.notebook.exercises.base import Exercise, Mistake

# --- 11.1: the longest conversation that fits on a card ---


def _longest(
    memory: float, parameters: float, bits: float, layers: int, kv_heads: int, head_size: int,
    kv_bits: float, *, both: int = 2, weights: float = 1 / 8, cache: float = 1 / 8,
    whole: Callable[[float], float] = math.floor, least: float = 0,
) -> float:  # fmt: skip
    """``weights``, ``cache``: bytes of a bit."""
    token = both * layers * kv_heads * head_size * kv_bits * cache
    return max(least, whole((memory - parameters * bits * weights) / token))


LONGEST = Exercise(
    _longest,
    (
        (5e7, 3e6, 16, 60, 96, 128, 16),  # 14.9 tokens
        (16e9, 8.03e9, 4.9, 32, 8, 128, 16),
        (1.2e9, 2e9, 4.5, 28, 2, 128, 8.5),
        (6.1e6, 4.2e6, 8.5, 4, 2, 64, 4.5),
        (24e9, 7e10, 4.5, 80, 8, 128, 16),  # not even the weights
    ),
    (
        Mistake(
            "keys *and* values: a token takes twice as much",
            lambda *case: _longest(*case, both=1),
        ),
        Mistake(
            "the weights lie in the same memory: take them off first",
            lambda *case: _longest(*case, weights=0),
        ),
        Mistake(
            "the cache is counted in bits: divide by 8",
            lambda *case: _longest(*case, cache=1),
        ),
        Mistake(
            "the weights are counted in bits: divide by 8",
            lambda *case: _longest(*case, weights=1),
        ),
        Mistake(
            "where not even the weights fit, no token does: give 0",
            lambda *case: _longest(*case, least=-math.inf),
        ),
        Mistake(
            "rounded up, so the last token does not fit: round down",
            lambda *case: _longest(*case, whole=math.ceil),
        ),
        Mistake(
            "tokens are whole: round down",
            lambda *case: _longest(*case, whole=float),
        ),
        Mistake(
            "the cache has a number of bits of its own: kv_bits",
            lambda *case: _longest(*(*case[:-1], case[2])),
        ),
        Mistake(
            "every layer has a cache of its own: a token takes layers times as much",
            lambda *case: _longest(*(*case[:3], 1, *case[4:])),
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

# --- 11.3: keys per channel, as they arrive ---

GROUP = 32  # tokens


def _together(keys: Any, bits: int, *, axis: int = 0, steps: int = -1) -> Any:
    """Tokens that share scales: ``axis`` 0 is one for each channel; ``steps`` beside 2^bits."""
    low, high = keys.min(axis, keepdims=True), keys.max(axis, keepdims=True)
    scale = (high - low) / (2**bits + steps)
    return np.round((keys - low) / scale) * scale + low


def _absmax(keys: Any, bits: int) -> Any:
    scale = np.abs(keys).max(0, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.round(keys / scale) * scale


def _arriving(keys: Any, bits: int, *, group: Any = _together, last: str = "exact") -> Any:
    """``group``: how one is rounded; ``last``: what becomes of the one that is not full."""
    full = len(keys) // GROUP * GROUP
    parts = [group(keys[i : i + GROUP], bits) for i in range(0, full, GROUP)]
    rest = keys[full:]
    if last != "gone" and len(rest):
        parts.append(rest if last == "exact" else group(rest, bits))
    return np.concatenate(parts) if parts else keys[:0]


def _keys(seed: int, tokens: int) -> Any:
    random = np.random.default_rng(seed)
    drift = np.linspace(0, 3, tokens)[:, None] * random.normal(size=16)
    return random.normal(size=(tokens, 16)) * random.uniform(0.5, 6, 16) + drift


KEYS = Exercise(
    _arriving,
    ((_keys(0, 80), 4), (_keys(1, 64), 2), (_keys(2, 45), 8), (_keys(3, 20), 4)),
    (
        Mistake(
            "the last group is not full yet, so its minimum and maximum are not known: it stays"
            " exact",
            lambda *case: _arriving(*case, last="rounded"),
        ),
        Mistake(
            "the tokens of the last group are missing: they stay in the cache as they are",
            lambda *case: _arriving(*case, last="gone"),
        ),
        Mistake(
            "all tokens share a channel's scale there: each 32 in a row have one of their own",
            _together,
        ),
        Mistake(
            "that is one scale for each token: the minimum and maximum of a channel are taken over"
            " the tokens of its group (axis 0)",
            lambda *case: _arriving(*case, group=lambda k, n: _together(k, n, axis=1)),
        ),
        Mistake(
            "that is absmax: a channel's values lie between its minimum and its maximum, which are"
            " codes 0 and 2^bits − 1",
            lambda *case: _arriving(*case, group=_absmax),
        ),
        Mistake(
            "there are 2^bits codes, and 2^bits − 1 steps between them",
            lambda *case: _arriving(*case, group=lambda k, n: _together(k, n, steps=0)),
        ),
        Mistake(
            "add the minimum again",
            lambda *case: _arriving(*case, group=lambda k, n: _together(k, n) - k.min(0)),
        ),
        Mistake(
            "those are the codes: multiply by the scale and add the minimum",
            lambda *case: _arriving(
                *case,
                group=lambda k, n: np.round((k - k.min(0)) / (np.ptp(k, 0) / (2**n - 1))),
            ),
        ),
    ),
)

EXERCISES = {"11.1": LONGEST, "11.2": SPEED, "11.3": KEYS}
