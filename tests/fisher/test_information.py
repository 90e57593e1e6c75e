"""Fisher information and damage are what their definitions say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workers import in_llama_worker, in_worker


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3_text", "gpt2"])
def test_of_the_ends_it_is_that_of_the_whole_model(name: str, tmp_path: Path) -> None:
    """Soft caps after the head, embeddings that are scaled, one matrix for both."""
    far = in_llama_worker(
        "tests.helpers.fisher:ends", tmp_path, folder=str(tmp_path / "m"), name=name
    )
    assert far["head"] < 1e-4
    assert far["embeddings"] < 1e-4


@pytest.mark.parametrize("name", ["gpt_oss", "mixtral_old", "phi3", "qwen3_moe", "deepseek_v3"])
def test_parameters_give_back_the_tensors_they_are_made_of(name: str, tmp_path: Path) -> None:
    """Experts that are stacked, joined, transposed."""
    folder = str(tmp_path / "m")
    seen = in_worker("tests.helpers.fisher:given_back", tmp_path, folder=folder, name=name)
    assert seen["count"] > 10
    assert (seen["lacking"], seen["wrong"]) == ([], [])


def test_damage_is_half_the_information_times_the_squared_error(tmp_path: Path) -> None:
    seen = in_llama_worker("tests.helpers.fisher:damage", tmp_path, sample=10**9)
    assert seen["found"] == pytest.approx(seen["wanted"], rel=1e-4)
    assert seen["importance"] < 1e-4
    assert seen["unweighed"] == pytest.approx(1, rel=1e-4), "where an importance matrix has nothing"


def test_some_rows_tell_of_all(tmp_path: Path) -> None:
    seen = in_llama_worker("tests.helpers.fisher:damage", tmp_path, sample=120 * 512)
    assert seen["quantized"] <= 120
    assert seen["found"] == pytest.approx(seen["wanted"], rel=0.12)


def test_experts_that_no_token_was_sent_to_count_like_the_others(tmp_path: Path) -> None:
    seen = in_llama_worker("tests.helpers.fisher:unseen", tmp_path)
    assert seen == {"count": 2, "means": [3.0, 2.0, 3.0, 4.0]}
