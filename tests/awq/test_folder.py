"""AWQ on the bundled model: the file format read by us and by the library, what the card says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import autoquant
from autoquant.core.errors import CheckFailed
from autoquant.formats import awq as awq_format
from autoquant.formats import checks as folder_checks
from autoquant.formats.tensors import Part, Tensors
from autoquant.methods import grouped
from autoquant.result import Result
from tests.workers import in_worker


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return autoquant.awq(
        "demo",
        algorithm="awq",
        calibration_samples=8,
        calibration_length=128,
        group_size=64,
        eval_chunks=10,
        out=tmp_path_factory.mktemp("awq") / "run",
    )


def test_the_checks_take_a_kernel_that_needs_no_compiler(four_bits: Result, tmp_path: Path) -> None:
    folder = str(four_bits.folder)
    assert in_worker("tests.helpers.folders:kernels", tmp_path, folder=folder) == ["AwqTorchLinear"]


def test_packing_by_hand() -> None:
    """Eight outputs a word in AutoAWQ's order, written here nibble by nibble."""
    rng = np.random.default_rng(0)
    inputs, outputs, group_size = 64, 24, 32
    code, zero = (
        rng.integers(0, 16, (inputs, outputs)),
        rng.integers(0, 16, (inputs // group_size, outputs)),
    )
    scales = rng.random((inputs // group_size, outputs), dtype=np.float32)

    def words(values: Any) -> Any:
        out = np.zeros((len(values), outputs // 8), dtype=np.uint32)
        for place, which in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            for word in range(outputs // 8):
                out[:, word] |= values[:, 8 * word + which].astype(np.uint32) << np.uint32(
                    4 * place
                )
        return out.view(np.int32)

    wanted = np.array(
        [
            [
                scales[i // group_size, o] * float(code[i, o] - zero[i // group_size, o])
                for i in range(inputs)
            ]
            for o in range(outputs)
        ],
        dtype=np.float32,
    )
    assert np.array_equal(
        awq_format.dequantize({"qweight": words(code), "qzeros": words(zero), "scales": scales}),
        wanted,
    )


@pytest.mark.slow
def test_our_reader_agrees_with_the_librarys(four_bits: Result, tmp_path: Path) -> None:
    worst = in_worker(
        "tests.helpers.folders:format_against_library",
        tmp_path,
        folder=str(four_bits.folder),
        reader="awq",
        bits=4,
    )
    assert worst["layers"] == 28
    assert (
        in_worker(
            "tests.helpers.folders:dequantized_against_transformers",
            tmp_path,
            folder=str(four_bits.folder),
        )
        < 2e-3
    ), "KL in nats; the library computes in bfloat16"
    assert worst["difference"] < 5e-3, "the library computes in bfloat16"


def test_the_folder_is_a_model_and_the_card_names_algorithm_and_format(four_bits: Result) -> None:
    assert {path.name for path in four_bits.folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "quantize_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        ".autoquant",
    }
    for name in ("config.json", "quantize_config.json", "README.md"):
        assert "/tmp/" not in (four_bits.folder / name).read_text()
    block = json.loads((four_bits.folder / "config.json").read_text())["quantization_config"]
    assert (
        block["quant_method"],
        block["bits"],
        block["group_size"],
        block["zero_point"],
        block["version"],
    ) == ("awq", 4, 64, True, "gemm")
    artifact = four_bits.artifacts[0]
    assert artifact.evaluation is not None
    assert artifact.evaluation.kl_mean < 0.02
    (item,) = autoquant.plan(
        "awq", "demo", algorithm="awq", group_size=64, out=str(four_bits.folder)
    ).items
    assert item.bits_per_weight == pytest.approx(artifact.bits_per_weight, rel=2e-3)
    card = four_bits.card()
    for wanted in (
        "| algorithm | AWQ: activation-aware scaling and clipping (GPTQModel ",
        "| file format | AWQ (gemm) |",
        "vllm serve",
        "GPTQModel.load",
        "AWQ's scales fitted",
    ):
        assert wanted in card


def test_a_scaled_layer_is_compared_without_its_scales_and_a_spoiled_one_is_not() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((48, 64)).astype(np.float32)
    rows, columns = (
        rng.uniform(0.3, 3, 48).astype(np.float32),
        rng.uniform(0.3, 3, 64).astype(np.float32),
    )
    noise = 0.1 * rng.standard_normal((48, 64)).astype(np.float32)
    scaled = rows[:, None] * (weight + noise) * columns
    assert folder_checks.relative_error(weight, scaled, scaled=False) > 0.5
    assert folder_checks.relative_error(weight, scaled, scaled=True) == pytest.approx(0.1, abs=0.02)
    assert folder_checks.relative_error(weight, rng.permutation(scaled), scaled=True) > 0.8


def test_at_few_bits_a_layer_may_move_far_but_not_unsaid(tmp_path: Path) -> None:
    """SmolLM2 at 2 bits without zero points: a layer off by 109 %, and a perplexity of 72,000."""
    weight = np.ones((4, 8), dtype=np.float32)
    save_file({"a.weight": weight, "b.weight": weight}, tmp_path / "model.safetensors")
    tensors = Tensors(str(tmp_path))
    seen = folder_checks.layer_errors(
        {name: Part(name, f"{name}.weight", (4, 8)) for name in "ab"},
        tensors,
        lambda name: weight * (1.1 if name == "a" else 2.09),
        lambda *_: None,
        limit=folder_checks.LOW_BITS,
    )
    (said,) = folder_checks.warnings(seen, grouped.ADVICE)
    assert said.startswith("b is off by 109% of its own size: at so few bits")
    assert folder_checks.warnings({"a": 0.99}, grouped.ADVICE) == []
    with pytest.raises(CheckFailed, match="a is off by 109%"):
        folder_checks.layer_errors(
            {"a": Part("a", "a.weight", (4, 8))},
            tensors,
            lambda name: weight * 2.09,
            lambda *_: None,
        )
