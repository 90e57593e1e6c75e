"""EXL2's file format by hand and on a file of our making; the samples it is made from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoquant.backends.exllamav2 import check as exl2_check
from autoquant.formats import exl2 as format
from autoquant.formats.tensors import Tensors


def test_packing_by_hand() -> None:
    """Two groups of different widths, written here bit by bit; 5 bits straddle words."""
    rng = np.random.default_rng(0)
    inputs, outputs = 96, 32
    widths, rows = [5, 3], [32, 64]
    order = rng.permutation(inputs).astype(np.int32)
    code = np.concatenate(
        [rng.integers(0, 1 << bits, (n, outputs)) for bits, n in zip(widths, rows, strict=True)]
    )
    scale, largest = rng.integers(0, 16, (2, outputs)), np.array([0.5, 0.25], dtype=np.float16)
    words, table, at = [], [], 0
    for bits, n in zip(widths, rows, strict=True):
        table += [bits, sum(len(one) for one in words)]
        packed = np.zeros((n * bits // 32, outputs), dtype=np.uint64)
        for column in range(outputs):
            stream = "".join(format_code(int(one), bits) for one in code[at : at + n, column])
            packed[:, column] = [
                int(stream[i : i + 32][::-1], 2) for i in range(0, len(stream), 32)
            ]
        words.append(packed.astype(np.uint32))
        at += n
    scales = np.zeros((2, outputs // 8), dtype=np.uint32)
    for group in range(2):
        for output in range(outputs):
            scales[group, output // 8] |= np.uint32(int(scale[group, output]) << (4 * (output % 8)))
    parts = {
        "q_weight": np.concatenate(words).view(np.int32),
        "q_invperm": order,
        "q_scale": scales.view(np.int32),
        "q_scale_max": largest,
        "q_groups": np.array(table, dtype=np.int16),
    }
    group = np.repeat([0, 1], rows)
    half = np.array([16, 4])[group]
    plain = (
        (code - half[:, None])
        * np.square(scale[group] + 1.0)
        * (largest[group].astype(float) / 256)[:, None]
    )
    assert np.allclose(format.dequantize(parts), plain[order].T, rtol=2e-3), (
        "computed in float16, as the kernels do"
    )
    assert format.groups(parts) == [(5, 32), (3, 64)]


def format_code(value: int, bits: int) -> str:
    """Bits of a code, the lowest first."""
    return f"{value:0{bits}b}"[::-1]


def test_the_reader_on_a_file_of_our_making() -> None:
    """tests/data/exl2: two layers and the head of a random model of width 64, made once by the real
    converter on the stand-in, which had its own weights of them.
    """
    from safetensors.numpy import load_file

    folder = Path(__file__).parents[1] / "data" / "exl2"
    tensors, wanted = (
        load_file(folder / "output.safetensors"),
        json.loads((folder / "weights.json").read_text()),
    )
    for name, facts in wanted.items():
        parts = {part: tensors[f"{name}.{part}"] for part in format.PARTS}
        weight = format.dequantize(parts)
        assert list(weight.shape) == facts["shape"]
        assert hashlib.sha256(weight.astype(np.float16).tobytes()).hexdigest() == facts["sha256"], (
            "bit for bit what exllamav2's make_q_matrix gives"
        )
        assert exl2_check.layer_bits(Tensors(str(folder)), name, weight.size) == pytest.approx(
            facts["bits"], rel=1e-9
        )
        assert [list(one) for one in format.groups(parts)] == facts["groups"]


def test_samples_are_those_of_the_other_methods(model: Path, tmp_path: Path) -> None:
    """As text, which exllamav2 tokenizes again: nearly all tokens come back the same."""
    pandas = pytest.importorskip("pandas")
    from autoquant import calibration

    texts = calibration.documents(autoquant_options()).texts
    exl2_check.calibrate(str(model), texts, 4, 64, 0, str(tmp_path / "c.parquet"))
    ids = calibration.pack(str(model), texts, samples=4, length=64, seed=0)
    rows = list(pandas.read_parquet(tmp_path / "c.parquet")["text"])
    assert len(rows) == 4 + 2
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    again = [token for row in rows for token in tokenizer.encode(row, add_special_tokens=False)]
    assert again[:40] == ids[0][:40]
    assert len(again) >= 4 * 64


def autoquant_options() -> Any:
    from autoquant.core import options
    from autoquant.methods.exl2 import Exl2Options

    return options.build(Exl2Options, {"calibration": "builtin"})
