"""Runs of EXL3: each bitrate made, checked, and resumed where it was killed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autoquant
from autoquant import source
from autoquant.backends.exllamav3 import check as exl3_check
from autoquant.backends.exllamav3 import converter
from autoquant.core.errors import CheckFailed, InputError, OutOfMemory, ProcessFailed
from autoquant.methods import exl3
from autoquant.result import Result
from autoquant.source.layers import linears
from tests.exl3.conftest import QUICK, REAL


@pytest.mark.slow
def test_two_bitrates(made: tuple[Result, list[str]], model: Path) -> None:
    result, lines = made
    assert ["-b 4.0 " in line for line in lines] == [True, False]
    assert all("-i /" in line and "-w /" in line and not line.endswith(" -r") for line in lines)
    four, less = result.artifacts
    assert (four.type, less.type) == ("4.0bpw", "2.5bpw")
    assert four.evaluation is not None
    assert less.evaluation is not None
    assert four.evaluation.kl_mean < less.evaluation.kl_mean
    assert {path.name for path in result.folder.iterdir()} == {
        "4.0bpw",
        "2.5bpw",
        "README.md",
        "size-against-quality.png",
        ".autoquant",
    }
    assert not (result.folder / ".autoquant" / "jobs").exists()
    source_ = source.resolve(model)
    for artifact, bits in ((four, 4.0), (less, 2.5)):
        folder = result.path(artifact.type)
        assert {path.name for path in folder.iterdir()} == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "quantization_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        assert artifact.facts["codes"] == bits, "half steps below 4 bits, and none to mix here"
        assert artifact.facts["achieved"] > bits, "scales and padding"
        said = "".join((folder / name).read_text() for name in ("config.json", converter.LAST))
        assert str(model.parent) not in said + result.card()
        weights = (folder / "model.safetensors").stat().st_size
        assert exl3.size(source_, linears(source_), bits, 6) == pytest.approx(weights, rel=0.02), (
            "the plan's formula"
        )
    for wanted in (
        "- exl3",
        "library_name: exllamav3",
        "4.0bpw: target 4.00, achieved 4.000, with scales and padding ",
        "| head bits | 6 |",
        "| codebook | mul1 |",
        "calibration sha256",
        "from exllamav3 import",
        "tabbyAPI",
        "--revision 4.0bpw",
    ):
        assert wanted in result.card()


@pytest.mark.slow
def test_a_finished_run_starts_nothing_and_needs_no_gpu(
    made: tuple[Result, list[str]], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(
        "autoquant.runtime.process.run",
        lambda argv, **more: lines.append(" ".join(argv)) or REAL(argv, **more),
    )
    again = autoquant.exl3(model, bpw=[4, "2.5"], **QUICK, eval_chunks=4, out=made[0].folder)
    assert lines == []
    assert again.artifacts == made[0].artifacts
    with pytest.raises(InputError, match="torch finds none here"):
        autoquant.exl3(model, bpw="5", **QUICK, out=made[0].folder)


@pytest.mark.slow
def test_the_text_of_the_library_another_codebook_and_an_unquantized_head(
    model: Path, gpu: None, tmp_path: Path
) -> None:
    result = autoquant.exl3(
        model,
        bpw="3",
        codebook="mcg",
        head_bits=16,
        calibration_samples=8,
        calibration_length=64,
        evaluate="off",
        out=tmp_path / "out",
    )
    (artifact,) = result.artifacts
    assert artifact.type == "3.0bpw-h16-mcg"
    assert (
        result.provenance["calibration"]
        == "the text that comes with exllamav3, 8 samples of 64 tokens"
    )
    assert "calibration sha256" not in result.provenance, "they are the library's own"
    assert "(head 16, unquantized)" in str(artifact.checks)


@pytest.mark.slow
def test_what_was_begun_is_resumed_to_the_same_bytes(
    made: tuple[Result, list[str]], model: Path, gpu: None, tmp_path: Path
) -> None:
    lines: list[str] = []

    def run(argv: list[str], **more: Any) -> None:
        """The converter; of the first run the result is taken away, as if it had been killed."""
        lines.append(" ".join(argv))
        REAL(argv, **more)
        if len(lines) == 1:
            shutil.rmtree(argv[argv.index("-o") + 1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autoquant.runtime.process.run", run)
        options: dict[str, Any] = {**QUICK, "bpw": "4", "evaluate": "off", "out": tmp_path / "out"}
        with pytest.raises(ProcessFailed, match="exited with status 0 but did not finish"):
            autoquant.exl3(model, **options)
        again = autoquant.exl3(model, **options)
    assert [line.endswith(" -r") for line in lines] == [False, True]
    assert " -cb mul1 " in lines[1], "a job that is resumed without it takes the default"
    assert again.artifacts[0].files == made[0].artifacts[0].files


def test_checks_find_a_spoiled_layer_a_lost_one_and_a_missed_target(
    made: tuple[Result, list[str]], model: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "m"
    layers = {name: list(shape) for name, shape in linears(source.resolve(model)).items()}
    common: dict[str, Any] = {
        "folder": str(folder),
        "source": str(model),
        "layers": layers,
        "head_bits": 6,
        "codebook": "mul1",
        "parameters": 1,
        "target": 4.0,
        "report": lambda *_: None,
    }
    name = "model.layers.0.mlp.up_proj"

    def spoiled(**changes: Any) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made[0].path("4.0bpw"), folder)
        tensors = load_file(folder / "model.safetensors") | changes
        kept = {key: one for key, one in tensors.items() if one is not None}
        save_file(kept, folder / "model.safetensors")

    good = load_file(made[0].path("4.0bpw") / "model.safetensors")
    spoiled(**{f"{name}.svh": good[f"{name}.svh"] * 4})
    with pytest.raises(CheckFailed, match=f"{name} is off by \\d+% of its own size"):
        exl3_check.verify(**common)
    spoiled(**{f"{name}.trellis": np.roll(good[f"{name}.trellis"], 1, axis=1)})
    with pytest.raises(CheckFailed, match=f"{name} is off by \\d+% of its own size"):
        exl3_check.verify(**common)
    spoiled(**{f"{name}.suh": good[f"{name}.suh"] * np.float16(np.nan)})
    with pytest.raises(CheckFailed, match=f"{name} has NaN or Inf values"):
        exl3_check.verify(**common)
    spoiled(**{f"{name}.trellis": None})
    with pytest.raises(CheckFailed, match=f"1 of 8 layers are not there: {name}"):
        exl3_check.verify(**common)
    spoiled()
    with pytest.raises(CheckFailed, match=r"the blocks have 4.00 bits per weight, asked for 3.00"):
        exl3_check.verify(**{**common, "target": 3.0})
    with pytest.raises(CheckFailed, match="has {'head_bits': 6}, asked for {'head_bits': 8}"):
        exl3_check.verify(**{**common, "head_bits": 8})
    os.truncate(folder / "model.safetensors", 100_000)
    with pytest.raises(CheckFailed, match="a file of weights is damaged or cut short"):
        exl3_check.verify(**common)


def job(folder: Path, **state: Any) -> Path:
    (folder / "ckpt").mkdir(parents=True)
    given = {"in_dir": "/model", "out_dir": "/out", **state}
    (folder / converter.ARGUMENTS).write_text(json.dumps(given))
    (folder / converter.STATE).write_text(json.dumps({"next_module_idx": 2}))
    return folder


def test_only_a_job_of_this_model_and_place_is_gone_on_with(tmp_path: Path) -> None:
    """The library itself goes on with whatever lies in its folder."""
    model, out = Path("/model"), Path("/out")
    assert converter.resumable(job(tmp_path / "a"), model, out)
    assert not converter.resumable(job(tmp_path / "b", in_dir="/other"), model, out)
    assert not converter.resumable(job(tmp_path / "c", out_dir="/elsewhere"), model, out)
    shutil.move(tmp_path / "a" / "ckpt", tmp_path / "a" / "ckpt_old")
    assert not converter.resumable(tmp_path / "a", model, out), "killed while states were exchanged"
    assert not converter.resumable(tmp_path / "nothing", model, out)


def test_its_exit_status_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for does, kind, said in (
        ("print(' !! Error: no')", ProcessFailed, "status 0 but did not finish. Log: .* no"),
        ("import sys; sys.exit(1)", ProcessFailed, "exllamav3's converter exited with status 1"),
        ("raise RuntimeError('CUDA out of memory.')", OutOfMemory, "out of memory on the GPU"),
    ):
        monkeypatch.setattr(
            "autoquant.runtime.process.run",
            lambda argv, does=does, **more: REAL([sys.executable, "-c", does], **more),
        )
        with pytest.raises(kind, match=said):
            converter.convert(
                [],
                model=tmp_path,
                job=tmp_path / "job",
                target=tmp_path / "out",
                modules=3,
                python="",
                logs=tmp_path / "log",
                progress=lambda *_: None,
            )
