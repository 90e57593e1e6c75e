"""The exercises of 09_Outliers. Activations are [tokens, inputs], weights [outputs, inputs], and
outputs activations @ weights.T, [tokens, outputs].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autoquant.notebook.exercises.base import Exercise, Mistake

RATIOS = np.linspace(1, 0.5, 11)


def _layer(seed: int, outliers: tuple[int, ...], inputs: int = 32) -> tuple[Any, Any]:
    """Activations [24, inputs] and weights [16, inputs] whose columns matter differently; the
    outliers are negative.
    """
    random = np.random.default_rng(seed)
    activations = random.normal(size=(24, inputs)) * random.uniform(0.3, 1.5, inputs)
    activations[:, list(outliers)] = -20 * np.abs(activations[:, list(outliers)])
    return activations, random.standard_t(5, (16, inputs)) / 6


# --- 9.1: a threshold for a share of the columns ---


def _threshold(
    activations: Any, share: float, *, sizes: Any = None, whole: Any = np.floor, off: int = 1
) -> float:
    """``sizes``: of the columns; ``whole``: how their number is rounded; ``off``: the place."""
    sizes = np.abs(activations).max(0) if sizes is None else sizes
    out = int(whole(share * len(sizes)))
    return float(np.sort(sizes)[max(len(sizes) - out - off, 0)])


THRESHOLD = Exercise(
    _threshold,
    (
        (_layer(0, (3, 17))[0], 0.125),  # 4 of 32
        (_layer(1, (8,), 40)[0], 0.05),  # 2 of 40
        (_layer(2, (5, 6, 30), 56)[0], 0.1),  # 5.6 of 56: 5
        (_layer(3, ())[0], 0.02),  # none
    ),
    (
        Mistake(
            "outliers can be negative: look at absolute values",
            lambda x, share: _threshold(x, share, sizes=x.max(0)),
        ),
        Mistake(
            "that is a threshold for single values. A column is out as soon as one of its values"
            " is: look at the largest |x| of each column",
            lambda x, share: float(np.quantile(np.abs(x), 1 - share)),
        ),
        Mistake(
            "that goes by the mean of a column; its largest |x| decides",
            lambda x, share: _threshold(x, share, sizes=np.abs(x).mean(0)),
        ),
        Mistake(
            "those are the tokens' largest values: a column is over all tokens (axis 0)",
            lambda x, share: _threshold(x, share, sizes=np.abs(x).max(1)),
        ),
        Mistake(
            "that keeps one column more out than allowed: at most so many means rounded down",
            lambda x, share: _threshold(x, share, whole=np.ceil),
        ),
        Mistake(
            "a column is out if it is above the threshold, not if it reaches it: one more could be"
            " out, so a smaller threshold will do",
            lambda x, share: _threshold(x, share, off=0 if int(share * x.shape[1]) else 1),
        ),
        Mistake(
            "that keeps one column more out than allowed: the threshold itself is the largest |x|"
            " of a column that stays in",
            lambda x, share: _threshold(x, share, off=2),
        ),
        Mistake(
            "that lies between two columns: down to the largest |x| of the lower one a smaller"
            " threshold keeps the same columns out",
            lambda x, share: float(np.quantile(np.abs(x).max(0), 1 - share)),
        ),
    ),
)

# --- 9.2: SmoothQuant for two matrices that read the same activations ---


def _factors(activations: Any, weights: Any, alpha: float) -> Any:
    return np.abs(activations).max(0) ** alpha / np.abs(weights).max(0) ** (1 - alpha)


def _fold(activations: Any, norm: Any, gate: Any, up: Any, alpha: float, *,
          by: Any = None, power: float = 1) -> tuple[Any, Any, Any]:  # fmt: skip
    """``by``: the weights that the factors look at; ``power`` of the factors."""
    weights = np.concatenate([gate, up]) if by is None else by
    s = _factors(activations, weights, alpha) ** power
    return norm / s, gate * s, up * s


def _block(seed: int, alpha: float) -> tuple[Any, ...]:
    random = np.random.default_rng(seed)
    activations, gate = _layer(seed, (4, 20))
    up = random.standard_t(5, (16, 32)) / 6 * random.uniform(0.5, 2, 32)
    return activations, random.uniform(0.5, 2, 32), gate, up, alpha


def _apart(x: Any, norm: Any, gate: Any, up: Any, alpha: float) -> tuple[Any, Any, Any]:
    """As if each matrix could have factors of its own."""
    mine, other = (_factors(x, weights, alpha) for weights in (gate, up))
    return norm / mine, gate * mine, up * other


FOLD = Exercise(
    _fold,
    (_block(10, 0.5), _block(11, 0.75), _block(12, 0.2)),
    (
        Mistake(
            "the other way round: the norm's weights take 1/s in, so that activations become"
            " smaller, and the matrices s",
            lambda *case: _fold(*case, power=-1),
        ),
        Mistake(
            "the two matrices read the same activations, which can be divided only once: one s for"
            " both",
            _apart,
        ),
        Mistake(
            "that s comes from gate alone: max |W_j| goes over the rows of both matrices",
            lambda x, norm, gate, up, alpha: _fold(x, norm, gate, up, alpha, by=gate),
        ),
        Mistake(
            "gate and s are right; up reads the divided activations too, so it needs s as well",
            lambda *case: (*_fold(*case)[:2], case[3]),
        ),
        Mistake(
            "the norm is as it was: nobody divides the activations. Its weights take 1/s in",
            lambda *case: (case[1], *_fold(*case)[1:]),
        ),
        Mistake(
            "alpha and 1 - alpha are swapped: alpha belongs to the activations",
            lambda *case: _fold(*(*case[:-1], 1 - case[-1])),
        ),
        Mistake(
            "take absolute values before the maximum: the outliers here are negative",
            lambda x, norm, gate, up, alpha: _fold(np.maximum(x, 1e-300), norm, gate, up, alpha),
        ),
        Mistake(
            "that is the mean of |x| (which AWQ takes); SmoothQuant takes the largest",
            lambda x, norm, gate, up, alpha: _fold(
                np.abs(x).mean(0, keepdims=True), norm, gate, up, alpha
            ),
        ),
    ),
)

# --- 9.3: the rotation without a matrix ---


def _rotate(x: Any, *, power: float = 0.5, steps: int | None = None, sign: int = 1) -> Any:
    """Halves of length n/2, n/4 … 1; ``steps``: only so many of them; ``sign`` of the
    differences.
    """
    y, n, half = np.array(x, dtype=float), len(x), len(x) // 2
    while half and steps != 0:
        pairs = y.reshape(-1, 2, half)
        first, second = pairs[:, 0].copy(), pairs[:, 1].copy()
        y = np.stack([first + second, sign * (first - second)], axis=1).ravel()
        half, steps = half // 2, None if steps is None else steps - 1
    return y / n**power


def _always_halves(x: Any) -> Any:
    """The step with halves of n/2 again and again."""
    y, half = np.array(x, dtype=float), len(x) // 2
    for _ in range(int(np.log2(len(x)))):
        y = np.concatenate([y[:half] + y[half:], y[:half] - y[half:]])
    return y / np.sqrt(len(x))


ROTATE = Exercise(
    _rotate,
    tuple((np.random.default_rng(n).standard_t(3, n),) for n in (2, 8, 64, 2048)),
    (
        Mistake(
            "the row has grown by √n: divide by √n, once and at the end",
            lambda x: _rotate(x, power=0),
        ),
        Mistake(
            "divided by n, and by √n it should be: each step makes a row √2 times as long, not"
            " twice",
            lambda x: _rotate(x, power=1),
        ),
        Mistake(
            "that is the first step alone: go on inside each half, until the halves have length 1",
            lambda x: _rotate(x, steps=1),
        ),
        Mistake(
            "the same pairs in every step: the second step takes the first one back. In each step"
            " the partners are half as far apart: n/2, n/4 … 1",
            _always_halves,
        ),
        Mistake(
            "the sign: the second half becomes first − second",
            lambda x: _rotate(x, sign=-1),
        ),
        Mistake(
            "the minus is missing: the second half is the difference of the two",
            lambda x: np.full(len(x), x.sum() / np.sqrt(len(x))),
        ),
    ),
    room=64,
    cramped="the numbers are right, but a matrix of n × n numbers was made for them. Do it with"
    " sums and differences of halves: n log n of them instead of n²",
)

# --- 9.4: where to clip a group ---


def _errors(activations: Any, weights: Any, bits: int, *, by: str = "output",
            clipped: bool = True, lowest: int = 0, size: Any = None) -> Any:  # fmt: skip
    """The squared error of each ratio: ``by`` output or weights."""
    top, found = 2 ** (bits - 1) - 1, []
    largest = np.abs(weights).max() if size is None else size
    for ratio in RATIOS:
        scale = ratio * largest / top
        codes = np.round(weights / scale)
        change = (np.clip(codes, -top - lowest, top) if clipped else codes) * scale - weights
        found.append(np.square(change if by == "weights" else activations @ change).sum())
    return np.array(found)


def _clip(*case: Any, **other: Any) -> float:
    return float(RATIOS[_errors(*case, **other).argmin()])


def _group(seed: int, bits: int) -> tuple[Any, Any, int]:
    """Activations [96, 32] and one group of weights [32], the largest of them negative."""
    random = np.random.default_rng(seed)
    activations = random.normal(size=(96, 32)) * random.lognormal(0, 1, 32)
    weights = random.standard_t(4, 32) / 6
    weights[np.abs(weights).argmax()] = -np.abs(weights).max()
    return activations, weights, bits


CLIP = Exercise(
    _clip,
    tuple(_group(seed, bits) for seed, bits in ((3, 3), (4, 3), (12, 4), (25, 3), (31, 4))),
    (
        Mistake(
            "that is the ratio of the least error of the weights. What counts is the output:"
            " activations @ (after − weights)",
            lambda *case: _clip(*case, by="weights"),
        ),
        Mistake(
            "codes above the largest one do not exist: clip them, or there is nothing to lose by a"
            " smaller scale",
            lambda *case: _clip(*case, clipped=False),
        ),
        Mistake(
            "the codes are symmetric: clip to −top … top, with top = 2^(bits − 1) − 1",
            lambda *case: _clip(*case, lowest=1),
        ),
        Mistake(
            "the weight furthest from zero is negative here: max |w|, not max w",
            lambda x, w, bits: _clip(x, w, bits, size=w.max()),
        ),
        Mistake(
            "that is the ratio with the largest error: argmin, not argmax",
            lambda *case: float(RATIOS[_errors(*case).argmax()]),
        ),
        Mistake(
            "that is the place in the list of ratios: give the ratio itself",
            lambda *case: int(_errors(*case).argmin()),
        ),
        Mistake(
            "that is the scale: give the ratio, by which max |w| is multiplied",
            lambda x, w, bits: _clip(x, w, bits) * np.abs(w).max() / (2 ** (bits - 1) - 1),
        ),
    ),
)

EXERCISES = {"9.1": THRESHOLD, "9.2": FOLD, "9.3": ROTATE, "9.4": CLIP}
