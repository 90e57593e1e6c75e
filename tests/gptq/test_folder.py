"""A folder that GPTQ has made: what is in it, what its card says, how good it is, and that a
spoiled layer is found.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import autoquant
from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.core.errors import CheckFailed, InputError
from autoquant.core.files import sha256_of
from autoquant.methods import METHODS
from autoquant.result import Result
from tests.gptq.conftest import QUICK
from tests.workers import in_worker


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return autoquant.gptq(
        "demo",
        calibration_samples=16,
        calibration_length=128,
        group_size=64,
        eval_chunks=10,
        out=tmp_path_factory.mktemp("gptq") / "run",
    )


def test_the_folder_is_a_model_and_names_no_path_of_this_machine(
    four_bits: Result, tmp_path: Path
) -> None:
    names = {path.name for path in four_bits.folder.iterdir()}
    assert names == {
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
        text = (four_bits.folder / name).read_text()
        assert "/tmp/" not in text
        assert str(four_bits.folder) not in text
    block = json.loads((four_bits.folder / "config.json").read_text())["quantization_config"]
    assert (
        block["quant_method"],
        block["bits"],
        block["group_size"],
        block["desc_act"],
        block["sym"],
    ) == ("gptq", 4, 64, False, True)
    assert four_bits.path("4bit-64g") == four_bits.folder
    assert four_bits.artifacts[0].evaluation is not None
    assert four_bits.artifacts[0].evaluation.kl_mean < 0.02
    card = four_bits.card()
    for wanted in (
        "| algorithm | GPTQ (GPTQModel ",
        "vllm serve",
        "library_name: transformers",
        "16 samples of 128 tokens",
        "relative error",
    ):
        assert wanted in card


def test_the_checks_take_a_kernel_that_needs_no_compiler_and_no_network(
    four_bits: Result, tmp_path: Path
) -> None:
    """On a Hopper card GPTQModel fetches CUTLASS for the one it prefers."""
    folder = str(four_bits.folder)
    assert in_worker("tests.helpers.folders:kernels", tmp_path, folder=folder) == ["TorchLinear"]


def test_the_card_of_codes_that_only_plain_kernels_run_says_so(four_bits: Result) -> None:
    from dataclasses import replace

    assert "--dtype float16" not in four_bits.card()
    first = four_bits.artifacts[0]
    for changed in ({"bits": 3}, {"sym": False}):
        facts = {**first.facts, "settings": {**first.facts["settings"], **changed}}
        other = replace(four_bits, artifacts=(replace(first, facts=facts),))
        said = METHODS["gptq"].how_to_run(other)
        assert "vllm serve MODEL --max-model-len 256 --dtype float16" in said


def test_the_plan_is_the_size(
    four_bits: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (item,) = autoquant.plan("gptq", "demo", group_size=64).items
    weights = (four_bits.folder / "model.safetensors").stat().st_size
    assert 0.98 * weights < item.bytes < weights
    assert item.bits_per_weight == pytest.approx(four_bits.artifacts[0].bits_per_weight, rel=1e-3)
    assert list(tmp_path.iterdir()) == []


def test_more_bits_are_better(four_bits: Result, tmp_path: Path) -> None:
    eight = autoquant.gptq(
        "demo",
        bits=8,
        group_size=64,
        calibration_samples=8,
        calibration_length=128,
        eval_chunks=10,
        out=tmp_path / "out",
    )
    assert eight.artifacts[0].evaluation is not None
    assert four_bits.artifacts[0].evaluation is not None
    assert eight.artifacts[0].evaluation.kl_mean < four_bits.artifacts[0].evaluation.kl_mean / 5


def test_a_layer_that_was_spoiled_fails_the_check_and_is_named(
    four_bits: Result, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "spoiled"
    shutil.copytree(four_bits.folder, folder, ignore=shutil.ignore_patterns(".autoquant"))
    in_worker(
        "tests.helpers.folders:spoil",
        tmp_path,
        path=str(folder / "model.safetensors"),
        name="model.layers.2.mlp.down_proj.scales",
    )
    known = {
        "source": str(DEMO_FOLDER),
        "layers": {
            name: {"name": name, "tensor": f"{name}.weight", "shape": [0, 0]}
            for name in ("model.layers.0.mlp.up_proj", "model.layers.2.mlp.down_proj")
        },
        "wanted": {"bits": 4},
        "scaled": False,
        "bits": 4,
        "advice": "",
        "parameters": 4_196_608,
    }
    with pytest.raises(CheckFailed, match=r"model.layers.2.mlp.down_proj is off by"):
        in_worker("autoquant.backends.checks:verify", tmp_path, folder=str(folder), **known)
    with pytest.raises(CheckFailed, match=r"quantization_config has \{'bits': 4\}"):
        in_worker(
            "autoquant.backends.checks:verify",
            tmp_path,
            folder=str(four_bits.folder),
            **{**known, "wanted": {"bits": 8}},
        )


def test_another_type_goes_to_another_folder(four_bits: Result) -> None:
    with pytest.raises(
        InputError, match="holds a 4bit-64g model; name another folder for 8bit-64g"
    ):
        autoquant.gptq("demo", bits=8, group_size=64, out=four_bits.folder, **QUICK)


@pytest.mark.slow
def test_sigkill_then_again(four_bits: Result, tmp_path: Path) -> None:
    import time

    out = tmp_path / "out"
    words = [
        sys.executable,
        "-m",
        "autoquant.cli",
        "quantize",
        "gptq",
        "demo",
        "--calibration-samples",
        "16",
        "--calibration-length",
        "128",
        "--group-size",
        "64",
        "--evaluate",
        "off",
        "--out",
        str(out),
    ]
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / ".autoquant" / "work" / "scratch").exists():
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    assert sha256_of(out / "model.safetensors") == sha256_of(
        four_bits.folder / "model.safetensors"
    ), "the bytes of an undisturbed run"
    assert not (out / ".autoquant" / "work").exists()
