"""A model run block by block is the whole model: logits and gradients, of any architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

import autoquant
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


LAYER, FIRST = "model.layers.1", "model.layers.0"
LLAMA = (
    "model.embed_tokens.weight", f"{FIRST}.input_layernorm.weight",
    f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.mlp.up_proj.weight", "model.norm.weight",
    "lm_head.weight",
)  # fmt: skip
SPOILED: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    # by their places
    "demo": (LLAMA, {}),
    "llama, rows of embeddings": (LLAMA[:1], {"embedding": 0}),
    "gpt2": (
        ("transformer.wpe.weight", "transformer.wte.weight", "transformer.h.1.attn.c_attn.bias"),
        {},
    ),
    "phi3": ((f"{LAYER}.self_attn.qkv_proj.weight",), {}),
    # experts
    "mixtral_old": ((f"{LAYER}.block_sparse_moe.experts.3.w1.weight",), {}),
    "mixtral_old, one by one": (
        (f"{LAYER}.block_sparse_moe.experts.3.w2.weight",),
        {"single": True, "ahead": False},
    ),
    "gpt_oss": ((f"{LAYER}.mlp.experts.down_proj", f"{LAYER}.mlp.router.bias"), {}),
    "gpt_oss, one by one": ((f"{LAYER}.mlp.experts.gate_up_proj",), {"single": True}),
    # quantized checkpoints
    "qwen3_fp8": ((f"{LAYER}.mlp.up_proj.weight", f"{LAYER}.mlp.up_proj.weight_scale_inv"), {}),
    "llama_w8a8": ((f"{LAYER}.mlp.up_proj.weight", f"{LAYER}.mlp.up_proj.weight_scale"), {}),
    "w8a8": ((f"{LAYER}.mlp.up_proj.weight", f"{LAYER}.mlp.up_proj.input_scale"), {}),
    "gpt_oss_mxfp4": ((f"{LAYER}.mlp.experts.down_proj_scales",), {}),
}

PARTS = {
    "experts.3.w1": f"{LAYER}.mlp.experts.gate_up_proj",
    "experts.3.w2": f"{LAYER}.mlp.experts.down_proj",
    "down_proj_scales": f"{LAYER}.mlp.experts.down_proj",
    "_scale": f"{LAYER}.mlp.up_proj.",
    # GPT-2's embeddings are its head
    "wte": "t",
}
MADE: dict[str, dict[str, object]] = {
    "w8a8": {"scheme": "int8-static", "calibration_samples": 8},
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_wrong_with_a_weight_is_refused_by_name(case: str, tmp_path: Path) -> None:
    """Missing, misshapen, not finite: wherever it lies, and whatever it is made of."""
    names, how = SPOILED[case]
    source = str(MODEL) if case == "demo" else case.partition(",")[0]
    if case in MADE:
        source = str(tmp_path / "made")
        getattr(autoquant, case)("demo", out=source, evaluate="off", **MADE[case])
    said = in_worker(
        "tests.helpers.forward:spoiled",
        tmp_path,
        folder=str(tmp_path / "model"),
        source=source,
        names=list(names),
        **how,
    )
    assert len(said) >= 2 * len(names)
    for spoiled, refused in said.items():
        tensor = spoiled.rpartition(" ")[2]
        # what several tensors are made into is named by its own name
        named = next((whole for part, whole in PARTS.items() if part in tensor), tensor)
        assert named in refused, f"{spoiled}: {refused}"


def test_a_parameter_that_is_not_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"model\.layers\.1\.mlp\.up_proj\.weight has no weights"):
        in_worker("tests.helpers.forward:unread", tmp_path, source=str(MODEL))
