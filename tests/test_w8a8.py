"""W8A8 and FP8 on the bundled model: activations are really quantized where it is measured,
calibration, what is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.core.errors import CheckFailed, InputError
from autoquant.formats import compressed_tensors as compressed_format
from autoquant.methods.samples import Samples
from autoquant.methods.w8a8 import W8a8Options
from autoquant.result import Result
from autoquant.source import resolve
from tests.workers import in_worker

SCHEMES = ("int8-dynamic", "int8-static", "fp8-dynamic")
FEW: dict[str, Any] = {"calibration_samples": 8, "calibration_length": 128}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    return {
        scheme: autoquant.w8a8(
            "demo",
            scheme=scheme,
            eval_chunks=4,
            **(FEW if scheme == "int8-static" else {}),
            out=tmp_path_factory.mktemp(scheme) / "run",
        )
        for scheme in SCHEMES
    }


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_is_measured_with_its_activations_quantized(
    scheme: str, made: dict[str, Result], tmp_path: Path
) -> None:
    """One layer by NumPy on the codes in the file, from the scheme's definition; by the library
    through transformers; and as it is measured. Then every layer on a text.
    """
    seen = in_worker(
        "tests.helpers.activations:w8a8_layer", tmp_path, folder=str(made[scheme].folder)
    )
    assert seen["measured against numpy"] < 1e-6
    assert seen["library against numpy"] < 1e-6
    assert seen["weights only against numpy"] > 3e-3
    assert seen["layers"] == 28
    assert seen["measured, worst layer"] < 1e-6 < 1e-3 < seen["weights only, best layer"]


def test_loss_and_size_are_what_one_expects(made: dict[str, Result]) -> None:
    kl = {scheme: result.artifacts[0].evaluation.kl_mean for scheme, result in made.items()}
    assert kl["int8-dynamic"] < kl["fp8-dynamic"] < kl["int8-static"] < 0.1
    for scheme, result in made.items():
        (item,) = autoquant.plan("w8a8", "demo", scheme=scheme).items
        assert item.bits_per_weight == result.artifacts[0].bits_per_weight, "exactly"
        assert item.type == scheme


def test_the_folder_is_what_vllm_asks_for_and_its_card_says_so(made: dict[str, Result]) -> None:
    for scheme, result in made.items():
        assert {path.name for path in result.folder.iterdir()} == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "README.md",
            ".autoquant",
        }
        block = json.loads((result.folder / "config.json").read_text())["quantization_config"]
        assert block["quant_method"] == "compressed-tensors"
        assert block["ignore"] == ["lm_head"]
        ((weights, inputs),) = compressed_format.schemes(block)
        assert (weights["strategy"], inputs["strategy"], inputs["dynamic"]) == (
            "channel",
            *(("tensor", False) if scheme == "int8-static" else ("token", True)),
        )
        assert "vllm serve" in result.card()
        assert ("calibration" in result.provenance) == (scheme == "int8-static")
    assert (
        made["int8-static"].provenance["calibration"]
        == "the built-in text (English novels), 8 samples of 128 tokens"
    )
    assert made["fp8-dynamic"].look(layer="model.layers.1.mlp.up_proj").relative_error < 0.05


@pytest.mark.parametrize(("name", "layers"), [("demo", 28), ("phi3", 8)])
def test_static_scales_are_the_whole_models(
    name: str, layers: int, made: dict[str, Result], tmp_path: Path
) -> None:
    """For them it is run block by block; here by transformers, at once, with hooks."""
    values: dict[str, Any] = {"scheme": "int8-static", **FEW}
    model, result = name, made["int8-static"]
    if name != "demo":
        model = str(tmp_path / "model")
        in_worker("bench.cases.architectures:make", tmp_path, name=name, folder=model)
        result = autoquant.w8a8(model, evaluate="off", out=tmp_path / "out", **values)
    source = resolve(model)
    samples = Samples.of(source, W8a8Options(**values))
    assert samples is not None
    apart = in_worker(
        "tests.helpers.activations:static_scales",
        tmp_path,
        folder=str(result.folder),
        source=str(source.folder),
        packing=samples.packing(),
    )
    assert len(apart) == layers
    assert max(apart.values()) < 1e-5


def test_static_scales_come_from_the_samples(made: dict[str, Result], tmp_path: Path) -> None:
    other = tmp_path / "numbers.txt"
    other.write_text(" ".join(str(i * i) for i in range(4000)))
    numbers = autoquant.w8a8(
        "demo",
        scheme="int8-static",
        calibration=autoquant.Calibration(other, samples=8, length=128),
        evaluate="off",
        out=tmp_path / "numbers",
    )
    assert "numbers.txt, 8 samples of 128 tokens" in numbers.card()
    files = {one.name: one.sha256 for one in numbers.artifacts[0].files}
    assert files["model.safetensors"] not in {
        one.sha256 for one in made["int8-static"].artifacts[0].files
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"scheme": "int4"},
            "scheme: int4 is not allowed; allowed: int8-dynamic, int8-static, fp8-dynamic",
        ),
        (
            {"calibration_samples": 8},
            "calibration_samples: 8 has an effect only with scheme='int8-static'",
        ),
        (
            {"scheme": "fp8-dynamic", "calibration": "text.txt"},
            "calibration: .* has an effect only with scheme='int8-static'",
        ),
        (
            {"scheme": "int8-static", "calibration": "nowhere.txt"},
            "calibration: no such file: nowhere.txt",
        ),
        ({"bits": 8}, "no option is called 'bits'"),
    ],
)
def test_bad_options_leave_nothing_behind(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        autoquant.w8a8("demo", out=tmp_path / "out", **values)
    assert list(tmp_path.iterdir()) == []


def test_another_scheme_fails_the_check(made: dict[str, Result], tmp_path: Path) -> None:
    known: dict[str, Any] = {
        "source": str(DEMO_FOLDER),
        "layers": ["model.layers.0.mlp.up_proj"],
        "scaled": False,
        "bits": 8,
        "advice": "",
        "parameters": 4_196_608,
    }
    with pytest.raises(CheckFailed, match=r"quantization_config has \{'format': 'int-quantized'\}"):
        in_worker(
            "autoquant.backends.checks:verify",
            tmp_path,
            folder=str(made["int8-static"].folder),
            wanted={"format": "float-quantized"},
            **known,
        )


def test_other_kinds_of_compressed_tensors_are_left_to_transformers() -> None:
    group = {
        "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        "input_activations": {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        },
    }
    block = {"format": "int-quantized", "config_groups": {"group_0": group}}
    assert compressed_format.known(block)
    for other in (
        {**block, "format": "pack-quantized"},
        {**block, "config_groups": {"a": group, "b": group}},
        {**block, "config_groups": {}},
        {**block, "config_groups": {"a": {**group, "input_activations": None}}},
    ):
        assert not compressed_format.known(other)
