"""What is checked: a finished folder, a measurement that is given, what exllamav2 reads of both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autoquant
from autoquant import source
from autoquant.backends.exllamav2 import check as exl2_check
from autoquant.backends.exllamav2 import converter, measurement
from autoquant.core.errors import CheckFailed, InputError
from autoquant.result import Result
from tests.exl2.conftest import QUICK, layers_of
from tests.workers import in_exl2_worker


def test_checks_find_a_spoiled_layer_a_lost_one_and_a_missed_target(
    made: tuple[Result, list[str]], model: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder, layers = (
        tmp_path / "m",
        {name: list(shape) for name, shape in layers_of(model).items()},
    )
    common: dict[str, Any] = {
        "folder": str(folder),
        "source": str(model),
        "layers": layers,
        "near": 0.5,
        "head_bits": 6,
        "parameters": 1,
        "target": 4.0,
        "report": lambda *_: None,
    }
    name = "model.layers.0.mlp.up_proj"

    def spoiled(**changes: Any) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made[0].path("4.0bpw"), folder)
        tensors = load_file(folder / "output.safetensors")
        save_file(
            {
                key: changes.get(key, value)
                for key, value in tensors.items()
                if changes.get(key, 0) is not None
            },
            folder / "output.safetensors",
        )

    scales = load_file(made[0].path("4.0bpw") / "output.safetensors")[f"{name}.q_scale_max"]
    spoiled(**{f"{name}.q_scale_max": scales * 4})
    with pytest.raises(CheckFailed, match=f"{name} is off by \\d+% of its own size"):
        exl2_check.verify(**common)
    spoiled(**{f"{name}.q_scale_max": scales * np.float16(np.nan)})
    with pytest.raises(CheckFailed, match=f"{name} has NaN or Inf values"):
        exl2_check.verify(**common)
    spoiled(**{f"{name}.q_weight": None})
    with pytest.raises(CheckFailed, match=f"1 of 8 layers are not there: {name}"):
        exl2_check.verify(**common)
    spoiled()
    with pytest.raises(
        CheckFailed, match=r"the blocks have \d\.\d\d bits per weight, asked for 4.00"
    ):
        exl2_check.verify(**{**common, "near": 1e-6})
    with pytest.raises(
        CheckFailed, match="quantization_config has {'bits': 4.0}, asked for {'bits': 5.0}"
    ):
        exl2_check.verify(**{**common, "target": 5.0})


@pytest.mark.slow
def test_it_reads_the_rotary_base_and_scaling_that_transformers_5_keeps_elsewhere(
    made: tuple[Result, list[str]], model: Path, scratch: Path, gpu: None
) -> None:
    """Left alone exllamav2 would take 10000 without a word: from the source, and from the finished
    folder when it is run.
    """
    staged = converter.stage(model, scratch / "staged")
    wanted = {"rope_theta": 500000.0, "scaling": "llama3", "factor": 8.0}
    assert (
        in_exl2_worker("tests.helpers.exl2:exllamav2_config", scratch, folder=str(staged)) == wanted
    )
    assert (
        in_exl2_worker(
            "tests.helpers.exl2:exllamav2_config", scratch, folder=str(made[0].path("4.0bpw"))
        )
        == wanted
    )
    assert (
        in_exl2_worker("tests.helpers.exl2:exllamav2_config", scratch, folder=str(model))[
            "rope_theta"
        ]
        == 10000.0
    ), "the trap; if this fails it is gone"


@pytest.mark.slow
def test_a_measurement_of_another_model_or_one_that_was_changed_is_refused(
    made: tuple[Result, list[str]], model: Path, gpu: None, tmp_path: Path
) -> None:
    path = made[0].folder / "measurement.json"
    data = json.loads(path.read_text())
    other = Path(
        in_exl2_worker(
            "tests.helpers.models:tiny",
            tmp_path,
            folder=str(tmp_path / "two"),
            architecture="LlamaForCausalLM",
            num_hidden_layers=2,
        )
    )

    def attempt(content: Any, said: str, folder: Path = other, **more: Any) -> None:
        (tmp_path / "measurement.json").write_text(
            content if isinstance(content, str) else json.dumps(content)
        )
        with pytest.raises(InputError, match=said):
            autoquant.exl2(
                folder,
                **{**QUICK, **more},
                measurement=str(tmp_path / "measurement.json"),
                evaluate="off",
                out=tmp_path / "out",
            )
        assert not (tmp_path / "out").exists(), "an empty folder does not stay"

    plain = {name: value for name, value in data.items() if name != "autoquant"}
    attempt(data, "measurement: measurement.json was made of tiny, and two has other weights")
    attempt(plain, "measurement: measurement.json is of a model with 1 blocks, and two has 2")
    attempt({**data, "last_module_idx": 1}, "measurement.json has been changed since it was made")
    attempt("{}", "measurement.json is no measurement of exllamav2")
    attempt(
        {
            **plain,
            "measurement": {
                name: ways
                for name, ways in plain["measurement"].items()
                if not name.endswith("mlp")
            },
        },
        "measurement: it is incomplete, model.layers.0 has no MLP",
        folder=model,
    )
    wide = json.loads(json.dumps(plain))
    for ways in wide["measurement"].values():
        for way in ways or ():
            way["total_bits"] *= 4
    attempt(wide, "measurement.json is of a model of other sizes than tiny", folder=model)
    attempt(
        data,
        r"bpw: 2.0 is not possible: with scales and permutations counted, exllamav2 can give the"
        r" layers of tiny \d.\d\d to \d.\d\d bits per weight",
        folder=model,
        bpw="2",
    )


def test_a_measurement_without_a_record_is_taken_if_its_sizes_fit(
    made: tuple[Result, list[str]], model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {
        name: value
        for name, value in json.loads((made[0].folder / "measurement.json").read_text()).items()
        if name != "autoquant"
    }
    snapshot = source.fetch(source.resolve(model))
    weights = sum(outputs * inputs for outputs, inputs in layers_of(model).values())
    measurement.refuse_foreign(data, snapshot, "theirs", {"0": weights}, weights)
    assert (
        "theirs does not say of which model it is; its layers and sizes are those of tiny"
        in caplog.text
    )
