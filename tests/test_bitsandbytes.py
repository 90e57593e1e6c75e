"""bitsandbytes on the bundled model: our reader and the library's, LLM.int8() with its activations
really quantized, what is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.errors import InputError
from autoquant.result import Result
from tests.workers import in_worker


@pytest.fixture(scope="module")
def nf4(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return autoquant.bitsandbytes(
        "demo", evaluate="off", out=tmp_path_factory.mktemp("nf4") / "run"
    )


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return autoquant.bitsandbytes(
        "demo", quant_type="int8", eval_chunks=4, out=tmp_path_factory.mktemp("int8") / "run"
    )


def test_every_type_is_read_as_the_library_reads_it_and_reloads_as_it_was(tmp_path: Path) -> None:
    seen = in_worker(
        "tests.helpers.bitsandbytes:bitsandbytes_grid",
        tmp_path,
        finding=["bitsandbytes"],
        scratch=str(tmp_path / "grid"),
    )
    assert [one["type"] for one in seen] == ["nf4", "nf4-single", "fp4", "int8"]
    for one in seen:
        assert one["layers"] == 28
        assert one["difference"] < 1e-7, one
        assert one["reloaded"] == 0.0, one
        (item,) = autoquant.plan(
            "bitsandbytes",
            "demo",
            quant_type=one["type"][:4].rstrip("-"),
            double_quant="single" not in one["type"],
        ).items
        assert item.type == one["type"]
        assert item.bytes == pytest.approx(one["bytes"], abs=3 * 28)


def test_llm_int8_is_measured_with_its_activations_quantized(int8: Result, tmp_path: Path) -> None:
    """A layer, with values above the threshold in two inputs: by NumPy on the codes in the file, by
    the library's own layer, and as it is measured.
    """
    seen = in_worker(
        "tests.helpers.activations:llm_int8_layer",
        tmp_path,
        finding=["bitsandbytes"],
        folder=str(int8.folder),
    )
    assert seen["outliers"] == 2
    assert seen["measured against numpy"] < 1e-5
    assert seen["library against numpy"] < 2e-3, "the library computes in float16"
    assert seen["weights only against numpy"] > 3e-3, "the activations' rounding is seen"
    assert seen["layers"] == 28
    assert 1.5 * seen["measured, worst layer"] < seen["weights only, best layer"], (
        "every layer of the library's model, on the inputs that a text gives it"
    )
    assert int8.artifacts[0].evaluation is not None
    assert int8.artifacts[0].evaluation.kl_mean < 1e-3


def test_the_folder_is_a_model_and_its_card_says_how_to_run_it(nf4: Result, int8: Result) -> None:
    names = {path.name for path in nf4.folder.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        ".autoquant",
    }
    block = json.loads((nf4.folder / "config.json").read_text())["quantization_config"]
    assert (
        block["quant_method"],
        block["bnb_4bit_quant_type"],
        block["bnb_4bit_use_double_quant"],
        block["llm_int8_skip_modules"],
    ) == ("bitsandbytes", "nf4", True, ["lm_head"])
    assert nf4.artifacts[0].bits_per_weight < int8.artifacts[0].bits_per_weight
    for result, wanted in (
        (nf4, "| algorithm | NF4 (bitsandbytes 0.50"),
        (int8, "| algorithm | LLM.int8() (bitsandbytes 0.50"),
    ):
        card = result.card()
        assert wanted in card
        assert "vllm serve" in card
    assert 0.05 < nf4.look(layer="model.layers.1.mlp.up_proj").relative_error < 0.12


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"quant_type": "int4"}, "quant_type: int4 is not allowed; allowed: nf4, fp4, int8"),
        ({"threshold": 4.0}, "threshold: 4.0 has an effect only with quant_type='int8'"),
        (
            {"quant_type": "int8", "double_quant": False},
            "double_quant: off has no effect with quant_type='int8'",
        ),
        (
            {"quant_type": "int8", "threshold": -1},
            "threshold: -1 is not allowed; allowed: 0 to 1000",
        ),
        ({"group_size": 64}, "no option is called 'group_size'"),
    ],
)
def test_bad_options_leave_nothing_behind(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        autoquant.bitsandbytes("demo", out=tmp_path / "out", **values)
    assert list(tmp_path.iterdir()) == []
