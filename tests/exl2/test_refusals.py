"""What EXL2 refuses before anything is done: the machine, options, architectures."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.backends.exllamav2.environment import EXLLAMAV2, wheel
from autoquant.core.errors import InputError


def test_without_a_gpu_it_is_refused_before_anything_is_done(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            "exllamav2 quantizes on an NVIDIA .* only, and torch finds none here; nothing was"
            " downloaded. In Colab: Runtime, Change runtime type, T4"
        ),
    ):
        autoquant.exl2(model, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    plan = autoquant.plan("exl2", str(model), bpw="3,4.25", out=str(tmp_path / "out"))
    assert [item.type for item in plan.items] == [
        "3.0bpw",
        "4.25bpw",
    ], "sizes are known all the same"
    assert "torch finds none here" in plan.refused
    assert "it cannot be made here: exl2: exllamav2 quantizes on" in str(plan)


def seen(**more: Any) -> dict[str, Any]:
    return {
        "gpu": True,
        "name": "T4",
        "memory": 15 << 30,
        "torch": "2.11.0",
        "cuda": "12.8",
        "python": [3, 13],
        "extension": False,
        "compiled": False,
        "nvcc": True,
        "compiler": True,
        "disk": 50 << 30,
        **more,
    }


def test_what_a_machine_lacks_is_named_and_how_to_get_it() -> None:
    assert EXLLAMAV2.refusal(seen()) == "", "Colab: it is compiled"
    assert EXLLAMAV2.refusal(seen(nvcc=False, compiler=False, extension=True)) == "", (
        "a prebuilt extension needs no compiler"
    )
    said = EXLLAMAV2.refusal(seen(nvcc=False))
    assert "there is no nvcc (of the CUDA toolkit" in said
    assert (
        "Prebuilt ones are for torch 2.7, 2.8, 2.9 with CUDA 12.8, and this machine has torch"
        " 2.11.0 and CUDA 12.8" in said
    )
    said = EXLLAMAV2.refusal(seen(nvcc=False, compiler=False, torch="2.9.0", python=[3, 12]))
    assert " and no C++ compiler (g++): install it; or take its prebuilt one: " in said
    assert said.endswith(
        "pip install"
        " https://github.com/turboderp-org/exllamav2/releases/download/v0.3.2/exllamav2-0.3.2+cu128.torch2.9.0-cp312-cp312-linux_x86_64.whl"
    )
    assert "2 GB under ~/.cache/torch_extensions" in EXLLAMAV2.refusal(seen(disk=1 << 30))
    assert wheel("2.9.0", "12.6", (3, 12)) == wheel("2.9.0", "12.8", (3, 14)) == ""


def test_setup_without_a_gpu_says_why_it_does_nothing(tmp_path: Path) -> None:
    assert "torch finds none here" in EXLLAMAV2.prepare(tmp_path / "log")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bpw": "9"}, "bpw: 9 is not allowed; allowed: 2 to 8 bits per weight"),
        ({"bpw": ["four"]}, "bpw: 'four' is no number of bits"),
        ({"bpw": ""}, "bpw: "),
        ({"head_bits": 7}, "head_bits: 7 is not allowed; allowed: 2, 3, 4, 5, 6, 8"),
        (
            {"calibration_samples": 10},
            "calibration_samples: 10 has no effect with calibration='exllamav2'",
        ),
        (
            {"calibration_length": 100},
            (
                "calibration_length: 100 tokens; the text that comes with exllamav2 needs a"
                " multiple of 128"
            ),
        ),
        ({"measurement_samples": 3}, "measurement_samples: 3 has no effect with calibration="),
        (
            {"measurement": "nothing.json"},
            (
                "measurement: no such file: nothing.json; give a measurement.json, or a repository"
                " on the Hub"
            ),
        ),
        ({"calibration": "gone.txt"}, "calibration: no such file: gone.txt"),
    ],
)
def test_bad_options_are_refused_before_the_machine_is_looked_at(
    values: dict[str, Any], said: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        autoquant.exl2(model, **values, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_architectures_are_refused_not_converted_as_llama(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    shutil.copytree(model, tmp_path / "other")
    for name, said in (
        (
            "OlmoForCausalLM",
            "the architecture OlmoForCausalLM is not among those tested here: CohereForCausalLM",
        ),
        ("Qwen3ForCausalLM", "computes its head norms as layer norms, .* Take gguf, gptq or awq"),
    ):
        (tmp_path / "other" / "config.json").write_text(
            json.dumps({**config, "architectures": [name]})
        )
        with pytest.raises(InputError, match=said):
            autoquant.exl2(tmp_path / "other", out=tmp_path / "out")


def test_the_stand_in_is_nowhere_in_the_package() -> None:
    for path in (Path(autoquant.__file__).parent).rglob("*.py"):
        assert "fakes" not in path.read_text()


def test_a_size_is_the_bits_that_it_allows(model: Path, tmp_path: Path) -> None:
    usual = autoquant.plan("exl2", str(model), bpw="4.25", out=tmp_path)
    asked = f"{usual.items[0].bytes / 1e6:.4f}MB"
    plan = autoquant.plan("exl2", str(model), size=asked, out=tmp_path)
    assert [item.type for item in plan.items] in (["4.25bpw"], ["4.24bpw"])
    assert 0.99 * usual.items[0].bytes < plan.items[0].bytes <= usual.items[0].bytes
    for wrong, said in (
        ({"size": "1MB"}, "size: 1MB is 1.00 MB, and with 2 to 8 bits this model has"),
        ({"size": "90MB"}, "Ask for a size in between"),
        ({"size": "4bpw"}, "'4bpw' is no size in bytes; write 5.5GB, or bits as bpw"),
        ({"size": asked, "bpw": "3"}, "size: bpw says the same in bits; leave one of them out"),
    ):
        with pytest.raises(InputError, match=said):
            autoquant.plan("exl2", str(model), **wrong, out=tmp_path)
