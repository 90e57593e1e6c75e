"""What GPTQ refuses, before much is downloaded or quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autoquant
from autoquant.core.errors import CheckFailed, InputError
from autoquant.formats.checks import layer_errors
from autoquant.formats.tensors import Part
from tests.gptq.conftest import QUICK
from tests.workers import in_worker


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bits": 5}, "bits: 5 is not allowed; allowed: 2, 3, 4, 8"),
        ({"group_size": 48}, "group_size: 48 is not allowed; allowed: 0, -1, 32, 64, 128"),
        ({"damp_percent": 0.9}, "damp_percent: 0.9 is not allowed; allowed: 0.001 to 0.5"),
        ({"calibration": "/nowhere.txt"}, "calibration: no such file"),
        ({"calibration_length": 8}, "calibration_length: 8 is not allowed"),
        (
            {"calibration_split": "test"},
            "calibration_split: applies to datasets on the Hub only, but calibration is builtin",
        ),
        (
            {"calibration_column": "body"},
            "calibration_column: applies to datasets, and files with columns",
        ),
    ],
)
def test_bad_options_leave_nothing_behind(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        autoquant.gptq("demo", out=tmp_path / "out", **values)
    assert list(tmp_path.iterdir()) == []


def test_a_group_size_that_does_not_fit_names_layers_and_sizes_that_would(tmp_path: Path) -> None:
    folder = in_worker(
        "tests.helpers.models:random_model", tmp_path, folder=str(tmp_path / "odd"), hidden_size=192
    )
    with pytest.raises(
        InputError,
        match=(
            r"group_size: 128 does not divide the inputs of 12 of 14 layers: .*_proj \(192"
            r" inputs\).*Sizes that fit this model: -1, 32, 64"
        ),
    ):
        autoquant.gptq(folder, group_size=128, out=tmp_path / "out")
    (item,) = autoquant.plan("gptq", folder).items
    assert item.type == "4bit-64g", "unless asked, the largest that fits"


def test_a_weight_that_was_never_finite_is_no_small_error() -> None:
    spoiled = np.ones((4, 4), dtype=np.float32)
    spoiled[0, 0] = np.nan

    class Original:
        def part(self, _: Part) -> Any:
            return spoiled

    with pytest.raises(CheckFailed, match="layer is off by nan%"):
        layer_errors(
            {"layer": Part("layer", "layer.weight", (4, 4))},
            Original(),
            lambda _: np.ones((4, 4), dtype=np.float32),
            lambda *_: None,
        )  # type: ignore[arg-type]


def test_a_model_too_large_to_be_measured_is_known_before_it_is_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("autoquant.evaluate.planning.memory_available", lambda: 300_000_000)
    with pytest.raises(InputError, match="evaluate: measuring needs"):
        autoquant.gptq("demo", **{**QUICK, "evaluate": "on"}, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("autoquant.methods.base.fetch", lambda _: pytest.fail("far enough"))
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        autoquant.gptq("demo", **{**QUICK, "evaluate": "auto"}, out=tmp_path / "out")
    assert "it will not be measured: measuring needs" in caplog.text


def test_an_unknown_architecture_is_refused_before_much_is_downloaded(
    model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = lambda _: pytest.fail("it was downloaded first")  # noqa: E731
    monkeypatch.setattr("autoquant.methods.base.fetch", early)
    with pytest.raises(InputError, match="does not know the architecture 'nonesuch'; nearest of"):
        autoquant.gptq(model("odd", model_type="nonesuch"), **QUICK, out=tmp_path / "out")


def test_only_gguf_takes_pickles(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allow_pickle"):
        autoquant.gptq("demo", allow_pickle=True, out=tmp_path / "out")


def test_damaged_weights_and_unknown_architectures_are_refused(
    model: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = model("nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"model.layers.1.mlp.up_proj.weight has NaN or Inf values"
    ):
        autoquant.gptq(folder, out=tmp_path / "out", **QUICK)
    other = model("other", model_type="arcee", architectures=["ArceeForCausalLM"])
    with pytest.raises(
        InputError,
        match=r"GPTQModel does not know the architecture 'arcee'; .*nearest: .*autoround may",
    ):
        autoquant.awq(other, algorithm="awq", out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()
