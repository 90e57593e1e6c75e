"""Every architecture runs in exllamav3 as in transformers, and fused matrices are read back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.methods.exl3 import ARCHITECTURES
from tests.exl2.conftest import LLAMA3
from tests.exl3.conftest import QUICK
from tests.workers import in_exl3_worker

BASE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"rope_parameters": LLAMA3},
    "MistralForCausalLM": BASE,
    "Qwen2ForCausalLM": BASE,
    "Qwen3ForCausalLM": BASE,
    "SmolLM3ForCausalLM": {"num_hidden_layers": 4},  # one of them without positions
    "Gemma2ForCausalLM": {
        "query_pre_attn_scalar": 32,
        "num_hidden_layers": 2,  # one of them local
        "sliding_window": 16,
    },
}


@pytest.mark.slow
def test_every_architecture_it_is_given_it_runs_as_transformers_does(
    tmp_path: Path, gpu: None
) -> None:
    models = {name: {"architecture": name, **MODELS.get(name, {})} for name in ARCHITECTURES}
    apart = in_exl3_worker(
        "tests.helpers.exl3:in_exllamav3", tmp_path, models=models, scratch=str(tmp_path)
    )
    assert set(apart) == set(ARCHITECTURES)
    for name, one in apart.items():
        assert one < 0.005, name


@pytest.mark.slow
def test_fused_matrices_are_read_back(tmp_path: Path, gpu: None) -> None:
    folder = in_exl3_worker(
        "tests.helpers.models:tiny",
        tmp_path,
        folder=str(tmp_path / "tiny"),
        architecture="Phi3ForCausalLM",
        num_key_value_heads=4,
    )
    result = autoquant.exl3(folder, bpw="5", **QUICK, evaluate="off", out=tmp_path / "out")
    seen = result.artifacts[0].checks[0].seen
    assert "4 and the head" in seen
    found = re.search(r"relative error (\d\.\d+)", seen)
    assert found
    assert float(found[1]) < 0.4, "the stand-in's search is a rough one"
