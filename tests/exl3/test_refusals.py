"""What EXL3 refuses, before anything is downloaded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.backends.exllamav3.environment import EXLLAMAV3
from autoquant.core.errors import InputError
from tests.workers import in_exl3_worker

MACHINE: dict[str, Any] = {
    "gpu": True,
    "name": "NVIDIA L4",
    "memory": 24 << 30,
    "capability": [8, 9],
    "hip": False,
    "torch": "2.11.0",
    "cuda": "12.8",
    "python": [3, 13],
    "extension": False,
    "compiled": False,
    "nvcc": True,
    "compiler": True,
    "disk": 50 << 30,
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"capability": [7, 5], "name": "Tesla T4"}, ""),
        ({"extension": True, "nvcc": False}, ""),
        ({"compiled": True, "compiler": False}, ""),
        ({"hip": True, "capability": [0, 0], "cuda": ""}, ""),
        ({"gpu": False}, "torch finds none here; nothing was downloaded"),
        (
            {"capability": [7, 0], "name": "Tesla V100"},
            "compute capability 7.5 (Turing: T4, RTX 20) or newer, and Tesla V100 has 7.0",
        ),
        ({"cuda": "12.1"}, "needs CUDA 12.4 or newer, and torch 2.11.0 here is built for 12.1"),
        ({"torch": "2.5.1"}, "needs torch 2.6 or newer, and this machine has 2.5.1"),
        ({"nvcc": False}, "there is no nvcc (of the CUDA toolkit"),
        ({"nvcc": False, "compiler": False}, "and no C++ compiler (g++): install it, or a wheel"),
        ({"disk": 1 << 30}, "needs about 4 GB under ~/.cache/torch_extensions; 1.1 GB are free"),
    ],
)
def test_what_a_machine_lacks(changes: dict[str, Any], said: str) -> None:
    reason = EXLLAMAV3.refusal({**MACHINE, **changes})
    assert said in reason
    assert bool(reason) is bool(said)


def test_this_machine_is_refused_and_the_plan_has_the_sizes(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exl3: exllamav3 quantizes on an NVIDIA"):
        autoquant.exl3(model, out=tmp_path / "out")
    plan = autoquant.plan("exl3", str(model), bpw=[2, 4], out=tmp_path)
    assert [item.type for item in plan.items] == ["2.0bpw", "4.0bpw"]
    assert plan.items[0].bytes < plan.items[1].bytes
    assert "torch finds none here" in plan.refused
    mixed = autoquant.plan("exl3", str(model), bpw=[2, 4], optimized_bpw=3, out=tmp_path)
    sizes = {item.type: item.bytes for item in mixed.items}
    assert list(sizes) == ["2.0bpw", "4.0bpw", "3.0bpw-opt"]
    assert sizes["2.0bpw"] < sizes["3.0bpw-opt"] < sizes["4.0bpw"]
    assert "runs the model once for each group of layers" in str(mixed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bpw": "9"}, "bpw: 9 is not allowed; allowed: 1 to 8 bits per weight"),
        ({"bpw": ["four"]}, "bpw: 'four' is no number of bits"),
        ({"head_bits": 9}, "head_bits: 9 is not allowed; allowed: 1, 2, 3, 4, 5, 6, 7, 8, 16"),
        ({"codebook": "mul2"}, "codebook: "),
        ({"calibration_samples": 300}, "the text that comes with exllamav3 is taken for up to 250"),
        ({"calibration_seed": 1}, "calibration_seed: 1 has no effect with calibration='exllamav3'"),
        ({"calibration": "gone.txt"}, "calibration: no such file: gone.txt"),
        ({"size": "90MB"}, "with 1 to 8 bits this model has"),
        ({"size": "4bpw"}, "'4bpw' is no size in bytes; write 5.5GB, or bits as bpw"),
        (
            {"optimized_bpw": "3"},
            "optimized_bpw: 3.0 is mixed of the layers of two bitrates or more, and bpw has 4.0",
        ),
        (
            {"bpw": [2, 4], "optimized_bpw": [3, 4.5]},
            "optimized_bpw: 4.5 does not lie between 2.0 and 4.0",
        ),
        (
            {"bpw": [2, 4], "measurement_samples": 5},
            "measurement_samples: 5 has an effect only with optimized_bpw",
        ),
        ({"size": "1MB", "bpw": "3"}, "size: bpw says the same in bits; leave one of them out"),
    ],
)
def test_bad_options_are_refused_before_the_machine_is_looked_at(
    values: dict[str, Any], said: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        autoquant.exl3(model, **values, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_sources_it_would_spoil_are_refused_or_said(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(model, other)

    def changed(**values: Any) -> str:
        (other / "config.json").write_text(json.dumps({**config, **values}))
        return str(other)

    with pytest.raises(InputError, match="OlmoForCausalLM is not among those tested here: Arcee"):
        autoquant.exl3(changed(architectures=["OlmoForCausalLM"]), out=tmp_path / "out")
    narrow = in_exl3_worker(
        "tests.helpers.models:tiny",
        tmp_path,
        folder=str(tmp_path / "narrow"),
        architecture="LlamaForCausalLM",
        hidden_size=96,
    )
    with pytest.raises(InputError, match="is 96, and exllamav3 1.6.5 runs such models only where"):
        autoquant.exl3(narrow, out=tmp_path / "out")
    plan = autoquant.plan("exl3", changed(sliding_window=100), out=tmp_path)
    assert "looks back 100 tokens, and exllamav3 1.6.5 lets it look back further" in str(plan)


def test_a_size_is_the_bits_that_it_allows(model: Path, tmp_path: Path) -> None:
    usual = autoquant.plan("exl3", str(model), bpw="4.25", out=tmp_path)
    asked = f"{usual.items[0].bytes / 1e6:.4f}MB"
    plan = autoquant.plan("exl3", str(model), size=asked, out=tmp_path)
    assert [item.type for item in plan.items] in (["4.25bpw"], ["4.24bpw"])
    assert 0.99 * usual.items[0].bytes < plan.items[0].bytes <= usual.items[0].bytes
