"""The exercises of 10_Formats."""

from __future__ import annotations

from typing import Any

import numpy as np

from autoquant.notebook.exercises.base import Exercise, Mistake

# what the codes 0 … 15 of E2M1 stand for: OCP Microscaling Formats (MX) v1.0, table 5
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])

# --- 10.1: two codes in a byte ---


def _pack(codes: Any) -> Any:
    return codes[:, :16] | codes[:, 16:] << 4


PACK = Exercise(
    _pack,
    tuple(
        (np.random.default_rng(seed).integers(0, 16, (rows, 32), dtype=np.uint8),)
        for seed, rows in ((0, 1), (1, 5))
    ),
    (
        Mistake(
            "neighbours share a byte there; in ggml code i shares one with code i + 16",
            lambda codes: codes[:, ::2] | codes[:, 1::2] << 4,
        ),
        Mistake(
            "the halves are swapped: the first 16 codes are in the low bits",
            lambda codes: codes[:, 16:] | codes[:, :16] << 4,
        ),
        Mistake(
            "neighbours share a byte there, the first in the high bits, which is bitsandbytes'"
            " order; in ggml code i shares one with code i + 16",
            lambda codes: codes[:, 1::2] | codes[:, ::2] << 4,
        ),
        Mistake(
            "both codes lie in the same four bits: move the second by << 4",
            lambda codes: codes[:, :16] | codes[:, 16:],
        ),
    ),
)

# --- 10.2: the scales of a superblock ---


def _unpack(packed: Any, *, high: bool = True, moved: bool = True) -> tuple[Any, Any]:
    first, second, third = packed.reshape(3, 4)
    up = 4 if moved else 0
    more, less = ((first >> 6) << up, (second >> 6) << up) if high else (0, 0)
    return (
        np.concatenate([first & 63, (third & 15) | more]),
        np.concatenate([second & 63, (third >> 4) | less]),
    )


UNPACK = Exercise(
    _unpack,
    tuple((np.random.default_rng(seed).integers(0, 256, 12, dtype=np.uint8),) for seed in range(3)),
    (
        Mistake(
            "scales and mins are swapped: bytes 0 to 3 hold scales, bytes 4 to 7 mins",
            lambda packed: _unpack(packed)[::-1],
        ),
        Mistake(
            "the last four have only four bits: their upper two are the upper two of bytes 0 to 7",
            lambda packed: _unpack(packed, high=False),
        ),
        Mistake(
            "the upper two bits must be moved above the lower four: (byte >> 6) << 4",
            lambda packed: _unpack(packed, moved=False),
        ),
        Mistake(
            "the first four take their lower six bits only: & 63",
            lambda packed: (
                np.concatenate([packed[:4], _unpack(packed)[0][4:]]),
                np.concatenate([packed[4:8], _unpack(packed)[1][4:]]),
            ),
        ),
    ),
)

# --- 10.3: the best scale for given codes ---


def _scale(weights: Any, codes: Any, importance: Any) -> Any:
    return (importance * codes * weights).sum(1) / (importance * codes**2).sum(1)


def _group(seed: int) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    weights = random.normal(size=(6, 32))
    codes = np.round(weights / (np.abs(weights).max(1, keepdims=True) / 3))
    return weights, codes, random.lognormal(0, 2, 32)


SCALE = Exercise(
    _scale,
    tuple(map(_group, range(3))),
    (
        Mistake(
            "every weight counts the same there: multiply both sums by the importance",
            lambda w, q, v: _scale(w, q, np.ones_like(v)),
        ),
        Mistake(
            "the importance is used squared: it weighs the squared error, so it stands once in"
            " each sum",
            lambda w, q, v: _scale(w, q, v**2),
        ),
        Mistake(
            "upside down: the sum with weights · codes stands above the line",
            lambda *case: 1 / _scale(*case),
        ),
        Mistake(
            "the codes below the line are not squared",
            lambda w, q, v: (v * q * w).sum(1) / (v * np.abs(q)).sum(1),
        ),
        Mistake(
            "one scale for each group is asked for: sum over axis 1",
            lambda w, q, v: (v * q * w).sum() / (v * q**2).sum(),
        ),
    ),
)

# --- 10.4: MXFP4 ---


def _mxfp4(weights: Any, *, exponent: Any = np.floor, lowered: int = 2, power: bool = True) -> Any:
    largest = np.abs(weights).max(1, keepdims=True)
    scale = 2.0 ** (exponent(np.log2(largest)) - lowered) if power else largest / 6
    distance = np.abs((weights / scale)[..., None] - E2M1)
    return E2M1[distance.argmin(-1)] * scale


def _truncated(weights: Any) -> Any:
    """Instead of rounding to the nearest level, the next one towards zero."""
    scale = 2.0 ** (np.floor(np.log2(np.abs(weights).max(1, keepdims=True))) - 2)
    below = np.searchsorted(E2M1[:8], np.abs(weights) / scale, side="right") - 1
    return np.sign(weights) * E2M1[below] * scale


MXFP4 = Exercise(
    _mxfp4,
    tuple(
        (np.random.default_rng(seed).standard_t(4, (4, 32)) * size,)
        for seed, size in ((0, 1.0), (1, 0.02), (2, 300.0))
    ),
    (
        Mistake(
            "the exponent is rounded down: floor, not round",
            lambda w: _mxfp4(w, exponent=np.round),
        ),
        Mistake(
            "the exponent is rounded down: floor, not ceil", lambda w: _mxfp4(w, exponent=np.ceil)
        ),
        Mistake(
            "6 is 1.5 · 2²: the exponent of the scale is 2 less than that of the largest weight",
            lambda w: _mxfp4(w, lowered=0),
        ),
        Mistake(
            "that scale is no power of two: E8M0 holds nothing but exponents",
            lambda w: _mxfp4(w, power=False),
        ),
        Mistake(
            "each weight takes the nearest level, not the next one towards zero",
            _truncated,
        ),
        Mistake(
            "that is the levels: multiply by the scale again",
            lambda w: _mxfp4(w) / 2.0 ** (np.floor(np.log2(np.abs(w).max(1, keepdims=True))) - 2),
        ),
    ),
)

EXERCISES = {"10.1": PACK, "10.2": UNPACK, "10.3": SCALE, "10.4": MXFP4}
