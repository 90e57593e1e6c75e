"""Runs of EXL2: measured once, quantized to each bitrate, resumed where they were killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant import source
from autoquant.backends.exllamav2 import check as exl2_check
from autoquant.backends.exllamav2 import converter
from autoquant.core.errors import CheckFailed, InputError
from autoquant.core.files import sha256_of
from autoquant.methods import exl2
from autoquant.result import Result
from tests.conftest import STAND_IN
from tests.exl2.conftest import QUICK, REAL, layers_of
from tests.test_resume import alive, wait_for, workers_of


@pytest.mark.slow
def test_measured_once_quantized_twice(made: tuple[Result, list[str]], model: Path) -> None:
    result, lines = made
    assert [" -om " in line for line in lines] == [True, False, False]
    assert all(
        f"-m {result.folder / 'measurement.json'}" in line and " -nr" in line for line in lines[1:]
    )
    assert all("-i /" in line and "-o /" in line for line in lines), (
        "the converter keeps paths as they are given"
    )
    four, three = result.artifacts
    assert (four.type, three.type) == ("4.0bpw", "3.5bpw")
    assert four.bytes > three.bytes
    assert four.evaluation is not None
    assert three.evaluation is not None
    assert four.evaluation.kl_mean < three.evaluation.kl_mean
    assert {path.name for path in result.folder.iterdir()} == {
        "4.0bpw",
        "3.5bpw",
        "measurement.json",
        "README.md",
        "size-against-quality.png",
        ".autoquant",
    }
    assert not (result.folder / ".autoquant" / "jobs").exists()
    for artifact in result.artifacts:
        names = {path.name for path in result.path(artifact.type).iterdir()}
        assert names == {
            "config.json",
            "generation_config.json",
            "output.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        assert abs(artifact.facts["achieved"] - float(artifact.type[:3])) < 0.5, (
            "one block offers few ways"
        )
    record = json.loads((result.folder / "measurement.json").read_text())["autoquant"]
    assert record["model"] == "tiny"
    words = "English prose, other languages, code, conversations"
    assert record["calibration"] == f"the built-in text ({words})"
    assert (record["samples"], record["length"]) == (2, 64)
    card = result.card()
    for wanted in (
        "- exl2",
        "library_name: exllamav2",
        "4.0bpw: target 4.00, achieved ",
        "| head bits | 6 |",
        "EXLLAMA_NO_SDPA",
        "tabbyAPI",
        "text-generation-webui",
        "--revision 4.0bpw",
        record["measurement sha256"],
    ):
        assert wanted in card
    assert (
        str(model.parent)
        not in card
        + (result.path("4.0bpw") / "config.json").read_text()
        + (result.folder / "measurement.json").read_text()
    )
    source_, layers = source.resolve(model), layers_of(model)
    for artifact in result.artifacts:
        weights = (result.path(artifact.type) / "output.safetensors").stat().st_size
        assert exl2.size(source_, layers, artifact.facts["achieved"], 6) == pytest.approx(
            weights, rel=0.02
        ), "the plan's formula, by the bits that were achieved"


@pytest.mark.slow
def test_a_finished_run_starts_nothing_and_another_bitrate_is_not_measured_again(
    made: tuple[Result, list[str]],
    model: Path,
    gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(
        "autoquant.runtime.process.run",
        lambda argv, **more: lines.append(" ".join(argv)) or REAL(argv, **more),
    )
    again = autoquant.exl2(model, bpw=[4, "3.5"], **QUICK, eval_chunks=4, out=made[0].folder)
    assert lines == []
    assert again.artifacts == made[0].artifacts
    other = autoquant.exl2(
        model, bpw="4.5", head_bits=8, **QUICK, evaluate="off", out=tmp_path / "other"
    )
    assert [" -om " in line for line in lines] == [False], (
        "the measurement of the other folder serves"
    )
    assert other.artifacts[0].type == "4.5bpw-h8"
    given = autoquant.exl2(
        model,
        bpw="4",
        **QUICK,
        measurement=str(other.folder / "measurement.json"),
        evaluate="off",
        out=tmp_path / "given",
    )
    assert [" -om " in line for line in lines] == [False, False]
    assert given.artifacts[0].files == made[0].artifacts[0].files, "and the same bytes come out"


@pytest.mark.slow
def test_the_text_that_comes_with_the_library(
    model: Path, gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default; the numbers of its samples are the library's."""
    from safetensors.numpy import load_file

    from autoquant.methods.exl2.options import OWN_MEASURED, OWN_ROWS

    real, seen = exl2_check.used, []
    monkeypatch.setattr(
        exl2_check,
        "used",
        lambda job: (
            seen.append(load_file(job / "cal_data.safetensors")["input_ids"].shape) or real(job)
        ),
    )
    result = autoquant.exl2(
        model, bpw="4", calibration_length=128, evaluate="off", out=tmp_path / "out"
    )
    assert (
        result.provenance["calibration"]
        == f"the text that comes with exllamav2, {OWN_ROWS} samples of 128 tokens"
    )
    assert (
        json.loads((result.path("4.0bpw") / "config.json").read_text())["quantization_config"][
            "calibration"
        ]["rows"]
        == OWN_ROWS
    )
    assert (
        json.loads((result.folder / "measurement.json").read_text())["autoquant"]["samples"]
        == OWN_MEASURED
    )
    assert seen == [(OWN_MEASURED, 128), (OWN_ROWS, 128)], "what it really used"


@pytest.mark.slow
def test_killed_while_measuring_and_while_quantizing_the_result_is_the_same_bytes(
    made: tuple[Result, list[str]], model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [
        word
        for name, value in QUICK.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    command = [
        sys.executable,
        "-m",
        "autoquant.cli",
        "quantize",
        "exl2",
        str(model),
        "--bpw",
        "4.0",
        *words,
        "--evaluate",
        "off",
        "--out",
        str(out),
    ]
    environ = {**os.environ, "PYTHONPATH": STAND_IN, "AUTOQUANT_CACHE": str(tmp_path / "cache")}
    jobs = out / ".autoquant" / "jobs"
    seen: list[set[str]] = []

    def looked(run: subprocess.Popen[bytes], met: Any) -> Any:
        """Note the converter's command lines until something is met."""
        seen.append(set())

        def look() -> bool:
            for child in workers_of(run.pid):
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
                    seen[-1] |= (
                        {line}
                        if "autoquant.backends.exllamav2.run" in line and alive(child)
                        else set()
                    )
            return bool(met())

        return look

    def at_work(folder: str, progress: str) -> bool:
        """Whether the converter has written that it begins with a stage. It writes its state again
        after minutes or at the stage's end: a run killed now can be resumed.
        """
        with contextlib.suppress(ValueError):  # while it writes
            states = [
                json.loads(path.read_text()) for path in jobs.glob(f"{folder}-*/{converter.JOB}")
            ]
            return any(state["progress"] == progress and "invalid" not in state for state in states)
        return False

    for reached in (("measure", "measure_quant"), ("4.0bpw", "quant")):
        run = subprocess.Popen(
            command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(looked(run, lambda reached=reached: at_work(*reached)), run)  # type: ignore[misc]
        children = workers_of(run.pid)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert children
        wait_for(
            lambda children=children: not any(map(alive, children)),
            subprocess.Popen(["sleep", "60"]),
            30,
        )  # type: ignore[misc]
        assert jobs.is_dir(), "the converter's own work is kept"
    run = subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(looked(run, lambda: (out / "4.0bpw").exists()), run, 300)
    assert run.wait(120) == 0
    (measured,), (resumed, fresh), (quantized,) = (
        sorted(lines, key=lambda line: " -om " not in line) for lines in seen
    )
    assert ["-nr" in line.split() for line in (measured, resumed, fresh, quantized)] == [
        True,
        False,
        True,
        False,
    ], "what was begun is resumed"
    assert sha256_of(out / "4.0bpw" / "output.safetensors") == sha256_of(
        made[0].path("4.0bpw") / "output.safetensors"
    )
    assert not jobs.exists()


@pytest.mark.slow
def test_a_file_that_is_cut_short_does_not_count(
    made: tuple[Result, list[str]],
    model: Path,
    gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    real = converter.convert

    def cut(*args: Any, **more: Any) -> None:
        real(*args, **more)
        weights = more["result"] / "output.safetensors"
        os.truncate(weights, weights.stat().st_size - 1000)

    monkeypatch.setattr(converter, "convert", cut)
    with pytest.raises(CheckFailed, match="a file of weights is damaged or cut short"):
        autoquant.exl2(
            model,
            bpw="4",
            **QUICK,
            measurement=str(made[0].folder),
            evaluate="off",
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out" / "4.0bpw").exists()
    monkeypatch.setattr(converter, "convert", real)
    again = autoquant.exl2(
        model,
        bpw="4",
        **QUICK,
        measurement=str(made[0].folder),
        evaluate="off",
        out=tmp_path / "out",
    )
    assert again.artifacts[0].files == made[0].artifacts[0].files, "the damaged one is not resumed"
    assert str(tmp_path) not in again.card(), "nor does the card say where the measurement lay"
    assert "--measurement" in again.card()


@pytest.mark.slow
def test_what_is_finished_needs_no_gpu_any_more(
    made: tuple[Result, list[str]], model: Path
) -> None:
    """To be measured, shown or uploaded on another machine."""
    again = autoquant.exl2(model, bpw=[4, "3.5"], **QUICK, eval_chunks=3, out=made[0].folder)
    assert again.artifacts[0].files == made[0].artifacts[0].files
    with pytest.raises(InputError, match="torch finds none here"):
        autoquant.exl2(model, bpw="5", **QUICK, out=made[0].folder)
    with pytest.raises(InputError, match="torch finds none here"):
        autoquant.exl2(
            model, bpw=[4, "3.5"], **{**QUICK, "calibration_samples": 2}, out=made[0].folder
        )
