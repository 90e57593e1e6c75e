"""What is looked at on a quantized folder before it counts as done. Runs in a worker process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from autoquant.core.errors import CheckFailed
from autoquant.core.files import sha256_of
from autoquant.formats.checkpoint import listed
from autoquant.formats.tensors import Floats, Part, Tensors
from autoquant.runtime.worker import Report

WORST = 3  # layers named
# at 2 bits GPTQ moves weights by more than their own size to keep a layer's outputs (1.09 in one
# layer of SmolLM2-135M)
LOW_BITS = 2.0
# alternations; the error changes by less than 1e-4 after the third (measured on the bundled model)
FITS = 4


def relative_error(before: Floats, after: Floats, *, scaled: bool) -> float:
    """‖W − W'‖ / ‖W‖ (Frobenius) of a layer's weight [out, in] before and after quantization.

    AWQ multiplies a layer's inputs by scales which it divides its neighbours' outputs by, so its
    weights are near diag(r) W diag(c): with ``scaled`` these r [out] and c [in] are fitted first
    (alternating least squares) and the error is ‖W' − diag(r) W diag(c)‖ / ‖W'‖.
    """
    if not scaled:
        return float(np.linalg.norm(before - after) / max(float(np.linalg.norm(before)), 1e-12))
    product, square = before * after, before * before
    rows = np.ones(len(before), dtype=np.float32)
    for _ in range(FITS):
        columns = (rows @ product) / np.maximum((rows * rows) @ square, 1e-20)
        rows = (product @ columns) / np.maximum(square @ (columns * columns), 1e-20)
    return float(
        np.linalg.norm(after - rows[:, None] * before * columns)
        / max(float(np.linalg.norm(after)), 1e-12)
    )


def layer_errors(
    layers: dict[str, Part],
    original: Tensors,
    read: Callable[[str], Floats],
    report: Report,
    *,
    scaled: bool = False,
    limit: float = 1.0,
) -> dict[str, float]:
    """The :func:`relative_error` of each layer; ``layers`` gives each one's part of the source.
    Raises CheckFailed for another shape, values that
    are not finite, and an error of ``limit`` or more.
    """

    def error_of(name: str) -> float:
        before, after = original.part(layers[name]), read(name)
        if after.shape != before.shape:
            raise CheckFailed(
                f"{name} has shape {after.shape} after dequantizing, the source {before.shape}"
            )
        if not np.isfinite(after).all():
            raise CheckFailed(f"{name} has NaN or Inf values after dequantizing")
        error = relative_error(before, after, scaled=scaled)
        if not error < limit:  # NaN too: of weights that were not finite before
            raise CheckFailed(f"{name} is off by {error:.0%} of its own size after dequantizing")
        return error

    errors: dict[str, float] = {}
    # NumPy works outside the interpreter's lock; more at once would only take more memory
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name, error in zip(layers, pool.map(error_of, layers), strict=True):
            errors[name] = error
            report(len(errors), len(layers) + 1)
    return errors


def warnings(errors: dict[str, float], advice: str) -> list[str]:
    """What the user should know of layers whose weights moved by more than their own size: a line
    for the card that ends with the ``advice``, or nothing.
    """
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] < 1:
        return []
    return [
        f"{worst} is off by {errors[worst]:.0%} of its own size: at so few bits the model may be"
        f" useless; check the measured quality; {advice}"
    ]


def stored(folder: Path) -> list[list[Any]]:
    """[name, bytes, sha256] of each file of a finished folder, config.json first."""
    paths = {name: folder / name for name in listed(folder)}
    return [[name, path.stat().st_size, sha256_of(path)] for name, path in paths.items()]
