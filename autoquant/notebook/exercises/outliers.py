"""The exercises of 09_Outliers. Activations are [tokens, inputs], weights [outputs, inputs], and
outputs activations @ weights.T, [tokens, outputs].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autoquant.notebook.exercises.base import Exercise, Mistake

ALPHAS = np.linspace(0, 1, 11)


def _absmax(values: Any, bits: int = 8, axis: int | None = 1) -> Any:
    top = 2 ** (bits - 1) - 1
    scale = np.abs(values).max(axis, keepdims=True) / top
    return np.round(values / scale) * scale


def _layer(seed: int, outliers: tuple[int, ...], sign: float = 1.0) -> tuple[Any, Any]:
    """Activations [24, 32] and weights [16, 32] whose columns matter differently."""
    random = np.random.default_rng(seed)
    activations = random.normal(size=(24, 32)) * random.uniform(0.3, 1.5, 32)
    activations[:, list(outliers)] = sign * np.abs(activations[:, list(outliers)]) * 20
    return activations, random.standard_t(5, (16, 32)) / 6


# --- 9.1: split off the outliers' columns ---


def _split(activations: Any, weights: Any, threshold: float, *, scale_of_all: bool = False,
           tensor: bool = False, without_sign: bool = True, mean: bool = False,
           added: bool = True) -> Any:  # fmt: skip
    sizes = np.abs(activations) if without_sign else activations
    out = (sizes.mean(0) if mean else sizes.max(0)) > threshold
    few, rest = activations[:, out] @ weights[:, out].T, activations[:, ~out]
    if scale_of_all:
        rounded = _absmax(activations)[:, ~out] @ _absmax(weights)[:, ~out].T
    else:
        axis = None if tensor else 1
        rounded = _absmax(rest, axis=axis) @ _absmax(weights[:, ~out], axis=axis).T
    return rounded + few if added else rounded


SPLIT = Exercise(
    _split,
    tuple((*_layer(i, columns, sign), 6.0) for i, (columns, sign) in enumerate(
        (((3, 17), 1.0), ((8,), -1.0), ((5, 6, 30), -1.0))
    )),
    (
        Mistake(
            "the scales are those of all columns: take the outliers out first, then look for the"
            " largest value of what is left",
            lambda *case: _split(*case, scale_of_all=True),
        ),
        Mistake(
            "one scale for the whole matrix: each token and each output has one of its own"
            " (max over axis 1, keepdims=True)",
            lambda *case: _split(*case, tensor=True),
        ),
        Mistake(
            "outliers can be negative: compare absolute values with the threshold",
            lambda *case: _split(*case, without_sign=False),
        ),
        Mistake(
            "a column is an outlier's if any of its values is above the threshold, not their mean",
            lambda *case: _split(*case, mean=True),
        ),
        Mistake(
            "the product of the outliers' columns is missing: add it to that of the rounded ones",
            lambda *case: _split(*case, added=False),
        ),
        Mistake(
            "nothing is rounded: the columns that are no outliers' go through 8 bits",
            lambda activations, weights, _: activations @ weights.T,
        ),
    ),
)  # fmt: skip

# --- 9.2: SmoothQuant's factors ---


def _smooth(activations: Any, weights: Any, alpha: float) -> Any:
    return np.abs(activations).max(0) ** alpha / np.abs(weights).max(0) ** (1 - alpha)


SMOOTH = Exercise(
    _smooth,
    tuple((*_layer(10 + i, (4, 20), -1.0), alpha) for i, alpha in enumerate((0.5, 0.75, 0.2))),
    (
        Mistake(
            "upside down: these are the factors that weights are divided by. The activations' part"
            " stands above the line, the weights' below",
            lambda *case: 1 / _smooth(*case),
        ),
        Mistake(
            "alpha and 1 - alpha are swapped: alpha belongs to the activations",
            lambda x, w, alpha: _smooth(x, w, 1 - alpha),
        ),
        Mistake(
            "take absolute values before the maximum: the outliers here are negative",
            lambda x, w, alpha: (
                np.maximum(x.max(0), 1e-300) ** alpha / np.maximum(w.max(0), 1e-300) ** (1 - alpha)
            ),
        ),
        Mistake(
            "the largest value of each input is asked for, over all tokens and over all outputs:"
            " max over axis 0 of both",
            lambda x, w, alpha: (
                np.abs(x).max() ** alpha / np.abs(w).max() ** (1 - alpha) * np.ones(x.shape[1])
            ),
        ),
        Mistake(
            "multiplied where it should be divided: a small weight allows a large factor",
            lambda x, w, alpha: np.abs(x).max(0) ** alpha * np.abs(w).max(0) ** (1 - alpha),
        ),
        Mistake(
            "that is the mean of |x| (which AWQ takes); SmoothQuant takes the largest",
            lambda x, w, alpha: np.abs(x).mean(0) ** alpha / np.abs(w).max(0) ** (1 - alpha),
        ),
    ),
)

# --- 9.3: a Hadamard matrix ---


def _hadamard(n: int, *, power: float = 0.5) -> Any:
    matrix: Any = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / n**power


HADAMARD = Exercise(
    _hadamard,
    ((1,), (2,), (8,), (64,)),
    (
        Mistake(
            "rows have the length √n: divide by √n, so that rotating and rotating back changes"
            " nothing",
            lambda n: _hadamard(n, power=0),
        ),
        Mistake(
            "divided by n, and by √n it should be: the squares of a row must add up to 1",
            lambda n: _hadamard(n, power=1),
        ),
        Mistake(
            "no minus: the block at the bottom right is -H, or all rows are the same",
            lambda n: np.ones((n, n)) / np.sqrt(n),
        ),
        Mistake(
            "the sizes do not double from 1: begin with [[1]], and repeat until there are n rows",
            lambda n: _hadamard(2 * n),
        ),
    ),
)

# --- 9.4: AWQ's search ---


def _errors(activations: Any, weights: Any, bits: int, *, by: str = "output") -> Any:
    """The error of each alpha. ``by`` names what is compared, and how."""
    found = []
    for alpha in ALPHAS:
        size = np.abs(activations).max(0) if by == "max" else np.abs(activations).mean(0)
        factors = size**alpha
        rounded = _absmax(weights * factors, bits)
        after = rounded if by == "not divided" else rounded / factors
        change = after - weights
        found.append(np.square(change if by == "weights" else activations @ change.T).sum())
    return np.array(found)


def _best(*case: Any, by: str = "output") -> float:
    return float(ALPHAS[_errors(*case, by=by).argmin()])


BEST = Exercise(
    _best,
    tuple((*_layer(seed, columns), bits) for seed, columns, bits in (
        (31, (2, 9), 4), (37, (12,), 3), (42, (1, 5, 25), 4), (44, (7, 8), 3)
    )),
    (
        Mistake(
            "that is the alpha of the least error of the weights. What counts is the output:"
            " compare activations @ weights.T before and after",
            lambda *case: _best(*case, by="weights"),
        ),
        Mistake(
            "divide by the factors after rounding: the activations were divided by them",
            lambda *case: _best(*case, by="not divided"),
        ),
        Mistake(
            "that takes the largest |x| of each input; AWQ takes the mean",
            lambda *case: _best(*case, by="max"),
        ),
        Mistake(
            "that is the alpha with the largest error: argmin, not argmax",
            lambda *case: float(ALPHAS[_errors(*case).argmax()]),
        ),
        Mistake(
            "that is the place in the list of alphas: give the alpha itself",
            lambda *case: int(_errors(*case).argmin()),
        ),
    ),
)  # fmt: skip

EXERCISES = {"9.1": SPLIT, "9.2": SMOOTH, "9.3": HADAMARD, "9.4": BEST}
