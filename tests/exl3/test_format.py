"""EXL3's file format: written here bit by bit, and as other readers read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoquant.formats import exl3 as format
from autoquant.result import Result
from tests.workers import in_worker

RNG = np.random.default_rng(0)


def written(k: float, inputs: int, outputs: int) -> tuple[dict[str, Any], Any]:
    """A random layer, its tiles packed one bit after the other, and the states of each weight."""
    widths = [int(k) + (i % 2 if k % 1 else 0) for i in range(256)]
    rings = RNG.integers(0, 2, (inputs // 16, outputs // 16, sum(widths)))
    ends = np.cumsum(widths)
    states = np.zeros((*rings.shape[:2], 256), dtype=int)
    for t, end in enumerate(ends):
        for bit in range(end - 16, end):  # the first ones begin before the ring's beginning
            states[..., t] = 2 * states[..., t] + rings[..., bit % ends[-1]]
    words = np.zeros((*rings.shape[:2], ends[-1] // 32), dtype=np.uint32)
    for i in range(ends[-1]):
        words[..., i // 32] |= (rings[..., i] << (31 - i % 32)).astype(np.uint32)
    parts = {
        "trellis": words.view(np.int16),
        "suh": RNG.normal(size=inputs).astype(np.float16),
        "svh": RNG.normal(size=outputs).astype(np.float16),
    }
    return parts, states


def value(state: int, mark: str) -> float:
    """One value of a codebook, by whole numbers."""

    def half(bits: int) -> np.float16:
        return np.array([bits & 0xFFFF], dtype=np.uint16).view(np.float16)[0]

    if mark == "mul1":
        digits = int(state * 0x83DCD12D % 2**32).to_bytes(4, "little")
        step, start = float(half(0x1EEE)), float(half(0xC931))
        return float(np.float16((1024 + sum(digits)) * step + start))
    product = (state * 0xCBAC1FED if mark == "mcg" else state * 89226354 + 64248484) % 2**32
    bits = (product & 0x8FFF8FFF) ^ 0x3B603B60
    return float(half(bits) + half(bits >> 16))


@pytest.mark.parametrize("k", [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8])
def test_every_width_by_hand(k: float) -> None:
    mark = "mul1" if k % 1 else ("", "mcg", "mul1")[int(k) % 3]
    parts, states = written(k, 128, 256)
    assert (format.states(parts["trellis"]) == states).all()
    assert format.bits(parts["trellis"]) == k
    tile = np.zeros((128, 256))
    for lane in range(32):  # of the tensor cores: eight weights each
        for j in range(8):
            row = 2 * (lane % 4) + (j % 2) + 8 * (j // 2 % 2)
            column = lane // 4 + 8 * (j // 4)
            tile[row::16, column::16] = [
                [value(int(one), mark) for one in line] for line in states[..., 8 * lane + j]
            ]
    n = np.arange(128)
    bits = np.bitwise_count(n[:, None] & n[None, :]) % 2
    turn = np.where(bits, -1.0, 1.0) / np.sqrt(128)
    wanted = np.kron(np.eye(1), turn) @ tile @ np.kron(np.eye(2), turn)
    wanted = parts["suh"].astype(float)[:, None] * wanted * parts["svh"].astype(float)
    if mark:
        parts[mark] = np.int32(0)
    assert np.allclose(format.dequantize(parts).T, wanted, atol=1e-5)
    assert np.allclose(format.dequantize(parts, 200, 100), wanted[:100, :200].T, atol=1e-5)


def test_the_codebooks_are_nearly_normal() -> None:
    for mark, spread in (("", 1.2437), ("mcg", 1.2437), ("mul1", 1.0)):
        values = format.codebook(mark) / spread
        assert abs(values.mean()) < 0.01
        assert abs(values.std() - 1) < 0.01, "1.2437 is the converter's codebook_scale"
        assert 0.66 < (abs(values) < 1).mean() < 0.70


@pytest.mark.slow
def test_gptqmodel_reads_the_same(made: tuple[Result, list[str]], tmp_path: Path) -> None:
    """Its reader in torch, written by others from the format, on the real converter's files."""
    apart = in_worker(
        "tests.helpers.exl3:in_gptqmodel",
        tmp_path,
        folder=str(made[0].path("4.0bpw")),
        names=["model.layers.0.mlp.down_proj", "lm_head"],
    )
    assert apart
    assert all(one < 1e-3 for one in apart.values()), "it leaves codes unrounded, ours are float16"
