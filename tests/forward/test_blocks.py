"""A model run block by block is the whole model: logits and gradients, of any architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoquant.core.bundled import MODEL
from autoquant.core.errors import CheckFailed
from tests.workers import in_worker

# shared keys and values, experts in one tensor or one by one, soft caps, three directions of
# positions, predictions of hidden states, biases of attention, no attention at all
ARCHITECTURES = (
    "bloom", "deepseek_v3", "gemma2", "gemma3_text", "gemma3_vision", "gemma3n_text",
    "gemma4_e_text", "gpt2", "gpt_neox_old", "gpt_oss", "llama4", "mamba2", "mixtral_old", "phi3",
    "qwen25_vl", "qwen3", "qwen35_moe", "qwen3_moe",
)  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_the_whole_models(name: str, tmp_path: Path) -> None:
    seen = in_worker(
        "tests.helpers.forward:logits", tmp_path, folder=str(tmp_path / "model"), name=name
    )
    assert seen["far"] < 1e-5
    assert seen["blocks"] >= 2
    assert seen["held"] == [], "a block's weights are given back"


@pytest.mark.parametrize("samples", [3, 4, 8])
@pytest.mark.parametrize("name", ["gemma3n_text", "qwen25_vl"])
def test_the_batch_is_told_from_other_dimensions(name: str, samples: int, tmp_path: Path) -> None:
    """Four predictions of hidden states, three or four directions of positions."""
    folder = str(tmp_path / "model")
    asked = {"folder": folder, "name": name, "samples": samples}
    assert in_worker("tests.helpers.forward:logits", tmp_path, **asked)["far"] < 1e-5


@pytest.mark.parametrize("name", ["gpt_oss", "llama4", "mixtral_old", "qwen3_moe"])
def test_experts_can_be_read_one_by_one(name: str, tmp_path: Path) -> None:
    seen = in_worker(
        "tests.helpers.forward:logits",
        tmp_path,
        folder=str(tmp_path / "model"),
        name=name,
        single=True,
        ahead=False,
        part=5,
    )
    assert seen["far"] < 1e-5


@pytest.mark.parametrize("name", ["bloom", "gemma3_text", "gpt_oss", "mixtral_old", "phi3"])
def test_squared_gradients_are_the_whole_models(name: str, tmp_path: Path) -> None:
    far = in_worker(
        "tests.helpers.forward:gradients", tmp_path, folder=str(tmp_path / "model"), name=name
    )
    assert far < 1e-5


def test_gradients_through_shared_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="share keys and values"):
        in_worker(
            "tests.helpers.forward:gradients",
            tmp_path,
            folder=str(tmp_path / "model"),
            name="gemma3n_text",
        )


@pytest.mark.parametrize("way", ["missing", "misshapen", "not finite", "not read"])
def test_what_a_look_at_the_source_refuses_is_refused(way: str, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        in_worker(
            "tests.helpers.forward:spoiled",
            tmp_path,
            source=str(MODEL),
            folder=str(tmp_path / "model"),
            way=way,
        )
