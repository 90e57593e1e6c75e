"""Every architecture runs in exllamav2 as in transformers, and is read back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.backends.exllamav2.environment import EXLLAMAV2
from autoquant.runtime import process
from tests.exl2.conftest import LLAMA3, QUICK
from tests.workers import in_exl2_worker

BASE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"rope_parameters": LLAMA3},
    "MistralForCausalLM": BASE,
    "Qwen2ForCausalLM": BASE,
    "GemmaForCausalLM": {},
    "Phi3ForCausalLM": {},
    "Glm4ForCausalLM": {},
    "Gemma2ForCausalLM": {"query_pre_attn_scalar": 32, "num_hidden_layers": 2},
    "CohereForCausalLM": {},
    "GraniteForCausalLM": {
        "logits_scaling": 2.0,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
}


@pytest.mark.slow
def test_every_architecture_it_is_given_it_runs_as_transformers_does(
    tmp_path: Path, gpu: None
) -> None:
    from autoquant.methods.exl2 import ARCHITECTURES, WRONG

    models = {
        name: {"architecture": name, **MODELS.get(name, {})} for name in (*ARCHITECTURES, *WRONG)
    }
    apart = in_exl2_worker(
        "tests.helpers.exl2:in_exllamav2", tmp_path, models=models, scratch=str(tmp_path)
    )
    for name in ARCHITECTURES:
        assert apart[name]["apart"] < 0.005, name
        assert apart[name]["moved"] == 0, f"{name}: no state depends on a later token"
    for name in WRONG:
        assert apart[name]["apart"] > 0.1, f"{name}: if this fails, exllamav2 has been repaired"


@pytest.mark.slow
def test_without_our_variable_it_would_look_at_tokens_to_come(tmp_path: Path, gpu: None) -> None:
    models = {"m": {"architecture": "LlamaForCausalLM"}}
    without = {
        name: value for name, value in EXLLAMAV2.variables.items() if name != "EXLLAMA_NO_SDPA"
    }
    seen = process.call(
        "tests.helpers.exl2:in_exllamav2",
        log=tmp_path / "log",
        env=without,
        models=models,
        scratch=str(tmp_path),
    )
    assert seen["m"]["moved"] > 0.1, (
        "the trap (torch's attention, without flash-attn and xformers); if this fails it is gone"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Phi3ForCausalLM", "Gemma2ForCausalLM", "CohereForCausalLM"])
def test_fused_matrices_tied_heads_and_parallel_blocks_are_read_back(
    name: str, tmp_path: Path, gpu: None
) -> None:
    folder = in_exl2_worker(
        "tests.helpers.models:tiny",
        tmp_path,
        folder=str(tmp_path / "tiny"),
        architecture=name,
        **MODELS[name],
    )
    tied = name == "Gemma2ForCausalLM"
    result = autoquant.exl2(
        folder,
        bpw="5",
        **QUICK,
        **({"evaluate": "on", "eval_chunks": 2} if tied else {"evaluate": "off"}),
        out=tmp_path / "out",
    )
    if tied:
        assert result.artifacts[0].evaluation is not None
        assert result.artifacts[0].evaluation.kl_mean < 0.2
    assert (
        float(re.search(r"relative error (\d\.\d+)", result.artifacts[0].checks[0].seen)[1]) < 0.15
    )  # type: ignore[index]
