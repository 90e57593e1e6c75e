"""Exercises with the codes of one matrix: absmax and packing."""

from __future__ import annotations

from typing import Any

import numpy as np

from autoquant.notebook.exercises.base import ROUND, Exercise, Function, Mistake

# absmax(weights, bits): codes and scale


def absmax(weights: Any, bits: int) -> tuple[Any, float]:
    """Codes of weights of any shape, and the scale they share."""
    scale = float(np.abs(weights).max()) / (2 ** (bits - 1) - 1) or 1.0  # all zero: any will do
    return np.round(weights / scale), scale


def _top(weights: Any, bits: int) -> Any:
    return np.abs(weights).max() / (2 ** (bits - 1) - 1)


def _power(weights: Any, bits: int) -> Any:
    return np.abs(weights).max() / 2 ** (bits - 1)


def _absmax_by(scale_of: Function, finish: Function = lambda codes, scale, bits: codes) -> Function:
    """absmax with another scale, or with something else done to what should be rounded."""

    def wrong(weights: Any, bits: int) -> Any:
        scale = scale_of(weights, bits)
        return finish(weights / scale, scale, bits), scale

    return wrong


def _round(codes: Any, scale: Any, bits: int) -> Any:
    return np.round(codes)


def _read_absmax(answer: Any) -> Any:
    try:
        codes, scale = answer
        return np.asarray(codes, dtype=np.float64), float(scale)
    except (TypeError, ValueError):
        raise ValueError("Return two things: first the codes, then the scale.") from None


def _same_absmax(answer: Any, expected: Any) -> bool:
    (codes, scale), (right, wanted) = answer, expected
    return bool(
        codes.shape == right.shape
        and np.allclose(codes, right, atol=1e-6, equal_nan=True)
        and np.isclose(scale, wanted, rtol=1e-5)
    ) or bool(not right.any() and codes.shape == right.shape and not codes.any())


NEAREST = "Round to the nearest whole number; do not cut off."
TOO_LARGE = (
    "The largest code is 2^(bits − 1) − 1, which is 127 at 8 bits: 2^(bits − 1) has no code."
)
ABSMAX = Exercise(
    cases=(
        (np.array([0.31, -0.92, 0.05, 0.66]), 4),
        (np.array([[0.2, -0.4, 1.3], [2.9, -3.1, 0.7]]), 8),
        (np.array([-1.7, 0.6, 0.9, -0.35, 0.12]), 3),
        (np.zeros(4), 4),
    ),
    right=absmax,
    unlike=None,
    mistakes=(
        # right but for the case of zeros, where all of the others give the same
        Mistake(
            "If all weights are 0 the scale becomes 0, and nothing can be divided by it: take 1.",
            _absmax_by(_top, _round),
        ),
        Mistake(TOO_LARGE, _absmax_by(_power, _round)),
        Mistake(
            TOO_LARGE,
            _absmax_by(
                _power,
                lambda c, s, bits: np.clip(np.round(c), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
            ),
        ),
        Mistake(
            "2^bits − 1 is the number of steps of a range that begins at 0; here half of the codes"
            " are negative.",
            _absmax_by(lambda w, bits: np.abs(w).max() / (2**bits - 1), _round),
        ),
        Mistake(
            "Look at the largest |w|: the weight furthest from zero may be negative.",
            _absmax_by(lambda w, bits: w.max() / (2 ** (bits - 1) - 1), _round),
        ),
        Mistake(ROUND, _absmax_by(_top)),
        Mistake(NEAREST, _absmax_by(_top, lambda c, s, bits: np.trunc(c))),
        Mistake(NEAREST, _absmax_by(_top, lambda c, s, bits: np.floor(c))),
        Mistake(
            "These are the restored weights s · q: return the codes q.",
            _absmax_by(_top, lambda c, s, bits: np.round(c) * s),
        ),
        Mistake(
            "Divide by the scale: q = round(w / s).",
            _absmax_by(_top, lambda c, s, bits: np.round(c * s * s)),
        ),
    ),
    read=_read_absmax,
    same=_same_absmax,
)


# pack4(codes): bytes


def pack4(codes: Any) -> Any:
    """Two 4-bit codes in each byte, the first one in the low half. codes: [n], n even; bytes:
    [n / 2].
    """
    return (codes[0::2] | codes[1::2] << 4).astype(np.uint8)


def _read_pack4(answer: Any) -> Any:
    packed = np.frombuffer(answer, np.uint8) if isinstance(answer, bytes) else np.asarray(answer)
    if packed.ndim != 1 or packed.dtype.kind not in "iuf":
        raise ValueError("Return the bytes as one array.")
    return packed


SHIFT = (
    "Both codes lie in the same four bits: move the second one up by 4 bits (<< 4, or times 16)."
)
PACK4 = Exercise(
    cases=(
        (np.array([3, 12, 15, 0, 1, 9], dtype=np.uint8),),
        (np.array([0, 7, 8, 15, 10, 5, 2, 2], dtype=np.uint8),),
        (np.random.default_rng(4).integers(0, 16, 64).astype(np.uint8),),
    ),
    right=pack4,
    unlike=None,
    mistakes=(
        Mistake(
            "The other way round: the first code of a pair goes into the low four bits.",
            lambda codes: (codes[0::2] << 4 | codes[1::2]).astype(np.uint8),
        ),
        Mistake(SHIFT, lambda codes: codes[0::2] + codes[1::2]),
        Mistake(SHIFT, lambda codes: codes[0::2] | codes[1::2]),
        Mistake(
            "Here neighbours share a byte: codes 0 and 1, 2 and 3, … (The first half beside the"
            " second is what GGUF's Q4_0 does.)",
            lambda codes: codes[: len(codes) // 2] | codes[len(codes) // 2 :] << 4,
        ),
        Mistake("Still one byte per code: two codes go into each byte.", lambda codes: codes),
    ),
    read=_read_pack4,
    same=np.array_equal,
    objection=lambda answer, codes: (
        "The numbers are right, but each takes more than one byte: add .astype(np.uint8)."
        if answer.dtype.itemsize > 1 and np.array_equal(answer, pack4(codes))
        else ""
    ),
)
