"""The exercises of 10_Formats."""

from __future__ import annotations

from typing import Any

import numpy as np

from autoquant.notebook.exercises.base import Exercise, Mistake

# what the codes 0 … 15 of E2M1 stand for: OCP Microscaling Formats (MX) v1.0, table 5
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])

# --- 10.1: from bitsandbytes' order of codes to ggml's ---


def _codes(theirs: Any, *, low_first: bool = False) -> Any:
    """Codes [n, 32] of bytes [n, 16] in which neighbours share one, the first in the high bits."""
    pair = (theirs & 15, theirs >> 4) if low_first else (theirs >> 4, theirs & 15)
    return np.stack(pair, axis=2).reshape(len(theirs), -1)


def _pack(codes: Any) -> Any:
    return codes[:, :16] | codes[:, 16:] << 4


REPACK = Exercise(
    lambda theirs: _pack(_codes(theirs)),
    tuple(
        (np.random.default_rng(seed).integers(0, 256, (rows, 16), dtype=np.uint8),)
        for seed, rows in ((0, 1), (1, 5))
    ),
    (
        Mistake(
            "the codes of each byte were swapped and stayed together. In bitsandbytes' bytes they"
            " are neighbours, codes 2i and 2i + 1, and in ggml's they go to different bytes",
            lambda theirs: theirs >> 4 | theirs << 4,
        ),
        Mistake(
            "read the other way round: bitsandbytes has the first code of a pair in the high bits",
            lambda theirs: _pack(_codes(theirs, low_first=True)),
        ),
        Mistake(
            "written the other way round: in ggml code i is in the low bits, code i + 16 in the"
            " high ones",
            lambda theirs: _pack(np.roll(_codes(theirs), 16, axis=1)),
        ),
        Mistake(
            "those are the 32 codes of each block in their order: now pack them, two to a byte",
            lambda theirs: _codes(theirs),
        ),
        Mistake(
            "those are bitsandbytes' bytes as they came: take them apart into 32 codes and pack"
            " these as ggml does",
            lambda theirs: theirs,
        ),
    ),
)

# --- 10.2: scale and minimum of one sub-block ---


def _sub_block(
    twelve: Any, j: int, *, mask: int = 63, high: bool = True, moved: bool = True,
    halves: tuple[int, int] = (0, 4), lenders: tuple[int, int] = (4, 0),
) -> tuple[int, int]:  # fmt: skip
    """``halves``: how far the low bits of scale and minimum are moved down from j = 4 on;
    ``lenders``: how many bytes before j the byte lies that has their upper bits.
    """
    twelve = [int(one) for one in twelve]
    if j < 4:
        return twelve[j] & mask, twelve[j + 4] & mask
    low = [twelve[j + 4] >> down & 15 for down in halves]
    up = [twelve[j - back] >> 6 << (4 if moved else 0) if high else 0 for back in lenders]
    return low[0] | up[0], low[1] | up[1]


SUB_BLOCK = Exercise(
    _sub_block,
    tuple(
        (np.random.default_rng(seed).integers(0, 256, 12, dtype=np.uint8), j)
        for seed, j in ((0, 1), (1, 4), (3, 7), (4, 3), (5, 6))
    ),
    (
        Mistake(
            "first the scale, then the minimum",
            lambda *case: _sub_block(*case)[::-1],
        ),
        Mistake(
            "bytes 0 … 7 lend their upper two bits to others: take the lower six alone, & 63",
            lambda *case: _sub_block(*case, mask=255),
        ),
        Mistake(
            "from j = 4 on, four bits are not all: the upper two are in bytes 0 … 7",
            lambda *case: _sub_block(*case, high=False),
        ),
        Mistake(
            "the upper two bits belong above the lower four: (byte >> 6) << 4",
            lambda *case: _sub_block(*case, moved=False),
        ),
        Mistake(
            "in bytes 8 … 11 the scale is in the low half, the minimum in the high one",
            lambda *case: _sub_block(*case, halves=(4, 0)),
        ),
        Mistake(
            "the upper bits are swapped: bytes 0 … 3 keep those of scales 4 … 7, bytes 4 … 7 those"
            " of minimums 4 … 7",
            lambda *case: _sub_block(*case, lenders=(0, 4)),
        ),
    ),
)

# --- 10.3: the best scale and minimum for given codes ---


def _line(weights: Any, codes: Any, importance: Any) -> tuple[float, float]:
    """scale · codes − minimum, the weighted straight line through the weights."""
    share = importance / importance.sum()
    q, w = (share * codes).sum(), (share * weights).sum()
    scale = (share * (codes - q) * (weights - w)).sum() / (share * (codes - q) ** 2).sum()
    return scale, scale * q - w


def _group(seed: int) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    weights = random.normal(0.3, 1, size=32)
    codes = np.round((weights - weights.min()) / (np.ptp(weights) / 7))
    return weights, codes, random.lognormal(0, 1.5, 32)


def _without(weights: Any, codes: Any, importance: Any) -> tuple[float, float]:
    """The best scale alone; the minimum from what it leaves."""
    scale = (importance * codes * weights).sum() / (importance * codes**2).sum()
    return scale, (importance * (scale * codes - weights)).sum() / importance.sum()


def _fixed(weights: Any, codes: Any, importance: Any) -> tuple[float, float]:
    """The minimum of the weights, and the best scale for it."""
    low = -weights.min()
    return (importance * codes * (weights + low)).sum() / (importance * codes**2).sum(), low


FIT = Exercise(
    _line,
    tuple(map(_group, range(3))),
    (
        Mistake(
            "every weight counts the same there: each term of the sums is multiplied by its"
            " importance",
            lambda w, q, v: _line(w, q, np.ones_like(v)),
        ),
        Mistake(
            "the importance is used squared: it weighs the *squared* error. (np.polyfit squares"
            " its w: give it the square root.)",
            lambda w, q, v: _line(w, q, v**2),
        ),
        Mistake(
            "the minimum has the wrong sign: it is subtracted, w ≈ scale · q − minimum",
            lambda *case: (_line(*case)[0], -_line(*case)[1]),
        ),
        Mistake("first the scale, then the minimum", lambda *case: _line(*case)[::-1]),
        Mistake(
            "that is the best scale *without* a minimum, and a minimum for what is left: the two"
            " have to be chosen together",
            _without,
        ),
        Mistake(
            "the minimum is that of the weights, and only the scale is fitted: the best minimum"
            " follows from the sums too",
            _fixed,
        ),
        Mistake(
            "that fits the codes by the weights: turn it round, the weights have the errors",
            lambda w, q, v: (
                1 / (turned := _line(q, w, v))[0],
                -turned[1] / turned[0],
            ),
        ),
    ),
)

# --- 10.4: MXFP4 with the better of two exponents ---


def _mxfp4(weights: Any, more: Any) -> Any:
    """``more``: what is added to the exponents of OCP's rule, a number or one a block."""
    exponent = np.floor(np.log2(np.abs(weights).max(1, keepdims=True))) - 2
    scale = 2.0 ** (exponent + more)
    return E2M1[np.abs((weights / scale)[..., None] - E2M1).argmin(-1)] * scale


def _better(weights: Any, *, by: Any = np.square, sign: int = 1) -> Any:
    """``by``: the errors that are summed over each block; ``sign`` -1 takes the worse."""
    lost = [by(_mxfp4(weights, k) - weights).sum(1, keepdims=True) for k in (0, 1)]
    return np.where(sign * lost[1] < sign * lost[0], _mxfp4(weights, 1), _mxfp4(weights, 0))


def _scaled_by_largest(weights: Any) -> Any:
    scale = np.abs(weights).max(1, keepdims=True) / 6
    return E2M1[np.abs((weights / scale)[..., None] - E2M1).argmin(-1)] * scale


BETTER = Exercise(
    _better,
    tuple(
        (np.random.default_rng(seed).standard_t(4, (24, 32)) * size,)
        for seed, size in ((8, 1.0), (1, 0.02), (2, 300.0))  # in the first no two mistakes agree
    ),
    (
        Mistake(
            "that is MXFP4's own exponent for every block: try the one that is 1 larger too, and"
            " choose for each block by itself (sums over axis 1)",
            lambda w: _mxfp4(w, 0),
        ),
        Mistake(
            "that is the larger exponent for every block: take the better one for each",
            lambda w: _mxfp4(w, 1),
        ),
        Mistake(
            "each weight has the better of the two values, but a block has one exponent: compare"
            " sums over the block",
            lambda w: np.where(
                np.abs(_mxfp4(w, 1) - w) < np.abs(_mxfp4(w, 0) - w), _mxfp4(w, 1), _mxfp4(w, 0)
            ),
        ),
        Mistake(
            "the errors add up with their signs and cancel: square them first",
            lambda w: _better(w, by=lambda errors: errors),
        ),
        Mistake(
            "compare *squared* errors, not absolute ones",
            lambda w: _better(w, by=np.abs),
        ),
        Mistake(
            "that is the worse of the two: take the one with the smaller error",
            lambda w: _better(w, sign=-1),
        ),
        Mistake(
            "that scale is no power of two: E8M0 holds nothing but exponents",
            _scaled_by_largest,
        ),
    ),
)

EXERCISES = {"10.1": REPACK, "10.2": SUB_BLOCK, "10.3": FIT, "10.4": BETTER}
