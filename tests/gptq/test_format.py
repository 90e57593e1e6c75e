"""GPTQ's file format: codes by hand, our reader and the library's agree about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import autoquant
from autoquant.formats import gptq as gptq_format
from tests.gptq.conftest import QUICK
from tests.workers import in_worker


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_by_hand(bits: int) -> None:
    """A stream of codes, least significant bit first, over words of 32 bits: written here bit by
    bit, read by the package.
    """
    rng = np.random.default_rng(bits)
    n, columns = 96, 5
    wanted = rng.integers(0, 1 << bits, (n, columns))
    words = np.zeros((n * bits // 32, columns), dtype=np.uint64)
    for i in range(n):
        for b in range(bits):
            at = i * bits + b
            words[at // 32] |= ((wanted[i] >> b) & 1).astype(np.uint64) << np.uint64(at % 32)
    assert (gptq_format.codes(words.astype(np.uint32).view(np.int32), bits, n) == wanted).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 2, "group_size": 32, "sym": False},
        {"bits": 3, "group_size": 64},
        {"bits": 8, "group_size": -1},
        {"desc_act": True},
    ],
)
def test_our_reader_agrees_with_the_librarys(settings: dict[str, Any], tmp_path: Path) -> None:
    result = autoquant.gptq("demo-small", **{**QUICK, **settings}, out=tmp_path / "out")
    worst = in_worker(
        "tests.helpers.folders:format_against_library",
        tmp_path,
        folder=str(result.folder),
        reader="gptq",
        bits=settings.get("bits", 4),
    )
    assert worst["layers"] == 7
    assert worst["difference"] < 2e-3, "the library computes in float16"
    assert (
        in_worker(
            "tests.helpers.folders:dequantized_against_transformers",
            tmp_path,
            folder=str(result.folder),
        )
        < 2e-3
    ), "KL in nats"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [("gptq", {}), ("awq", {"algorithm": "autoround", "iterations": 1})],
    ids=["GPTQModel", "AutoRound"],
)
def test_the_sources_own_config_and_what_is_not_quantized_arrive(
    method: str, settings: dict[str, Any], model: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers 5 would write rope_theta into rope_parameters, where release 4 (and a vLLM with
    it) does not look: it would take 10000. And on a CPU the libraries work in bfloat16, and write
    all in it.
    """
    folder = model("older")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 500000.0, "torch_dtype": config.pop("dtype", "float16")}
    (folder / "config.json").write_text(json.dumps(config))
    made = getattr(autoquant, method)(folder, **{**QUICK, **settings}, out=tmp_path / "out")
    written = json.loads((made.folder / "config.json").read_text())
    assert written["rope_theta"] == 500000.0
    assert "rope_parameters" not in written
    assert {
        name: value for name, value in config.items() if name != "torch_dtype"
    }.items() <= written.items()
    assert written["dtype"] == "float16"
    with (
        safe_open(folder / "model.safetensors", "np") as before,
        safe_open(made.folder / "model.safetensors", "np") as after,
    ):
        rest = [name for name in after.keys() if name in before.keys()]  # noqa: SIM118 (not dicts)
        assert {
            "model.embed_tokens.weight",
            "lm_head.weight",
            "model.norm.weight",
            "model.layers.3.input_layernorm.weight",
        } <= set(rest)
        for name in rest:
            assert after.get_tensor(name).dtype == np.float16
            assert np.array_equal(after.get_tensor(name), before.get_tensor(name)), name


def test_where_16_bit_products_are_slow_they_are_made_in_float32(tmp_path: Path) -> None:
    made = in_worker("tests.helpers.arithmetic:products", tmp_path, instructions=False)
    assert made.pop("replaced") is True
    assert set(made.values()) == {True}, made
    assert (
        in_worker("tests.helpers.arithmetic:products", tmp_path, instructions=True)["replaced"]
        is False
    )


def test_instructions_that_are_emulated_do_not_count(tmp_path: Path) -> None:
    assert in_worker("tests.helpers.arithmetic:instructions", tmp_path) == [
        ["x86_64", "oneDNN and AVX-512", True],
        ["x86_64", "oneDNN", False],
        ["x86_64", "neither", False],
        ["aarch64", "oneDNN", True],
    ]
