"""EXL2 by exllamav2's real, unmodified converter on a CPU: tests/fakes/exl2 stands in for a GPU and
for the compiled extension; all else is the library's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autoquant
from autoquant import source
from autoquant.backends.exllamav2 import check as exl2_check
from autoquant.backends.exllamav2 import converter, environment, measurement
from autoquant.core.errors import CheckFailed, InputError, OutOfMemory, ProcessFailed
from autoquant.core.files import sha256_of
from autoquant.formats import exl2 as format
from autoquant.formats.tensors import Tensors
from autoquant.methods import exl2
from autoquant.result import Result
from autoquant.runtime import process
from autoquant.source.layers import linears
from tests.conftest import STAND_IN
from tests.test_resume import alive, wait_for, workers_of

QUICK: dict[str, Any] = {
    "calibration": "builtin",
    "calibration_samples": 3,
    "calibration_length": 64,
    "measurement_samples": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


REAL = process.run


def in_worker(target: str, place: Path, **kwargs: Any) -> Any:
    return process.call(target, log=place / "log", env=environment.VARIABLES, **kwargs)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exl2")


@pytest.fixture(scope="module")
def model(scratch: Path) -> Path:
    return Path(
        in_worker(
            "tests.helpers.models:tiny",
            scratch,
            folder=str(scratch / "tiny"),
            architecture="LlamaForCausalLM",
            rope_parameters=LLAMA3,
        )
    )


@pytest.fixture(scope="module")
def made(model: Path, scratch: Path) -> tuple[Result, list[str]]:
    """Two bitrates of a model of one block, and the converter's command lines."""
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", STAND_IN)
        patch.setattr(
            "autoquant.runtime.process.run",
            lambda argv, **more: lines.append(" ".join(argv)) or REAL(argv, **more),
        )
        result = autoquant.exl2(model, bpw=[4, "3.5"], **QUICK, eval_chunks=4, out=scratch / "out")
    return result, lines


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", STAND_IN)


# --- the machine ----------------------------------------------------------------------------------


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
    assert environment.refusal(seen()) == "", "Colab: it is compiled"
    assert environment.refusal(seen(nvcc=False, compiler=False, extension=True)) == "", (
        "a prebuilt extension needs no compiler"
    )
    said = environment.refusal(seen(nvcc=False))
    assert "there is no nvcc (of the CUDA toolkit" in said
    assert (
        "Prebuilt ones are for torch 2.7, 2.8, 2.9 with CUDA 12.8, and here are torch 2.11.0 and"
        " CUDA 12.8" in said
    )
    said = environment.refusal(seen(nvcc=False, compiler=False, torch="2.9.0", python=[3, 12]))
    assert " and no C++ compiler (g++): install it; or take its prebuilt one: " in said
    assert said.endswith(
        "pip install"
        " https://github.com/turboderp-org/exllamav2/releases/download/v0.3.2/exllamav2-0.3.2+cu128.torch2.9.0-cp312-cp312-linux_x86_64.whl"
    )
    assert "2 GB under ~/.cache/torch_extensions" in environment.refusal(seen(disk=1 << 30))
    assert (
        environment.wheel("2.9.0", "12.6", (3, 12))
        == environment.wheel("2.9.0", "12.8", (3, 14))
        == ""
    )


def test_setup_without_a_gpu_says_why_it_does_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment.prepare(tmp_path / "log")
    assert "torch finds none here" in caplog.text


# --- the converter --------------------------------------------------------------------------------


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
    assert record["calibration"] == "the built-in text (English novels)"
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
    source_, layers = source.resolve(model), autoquant_layers(model)
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
        after minutes or at the stage's end: what is killed now can be gone on with.
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
    ], "what was begun is gone on with"
    assert sha256_of(out / "4.0bpw" / "output.safetensors") == sha256_of(
        made[0].path("4.0bpw") / "output.safetensors"
    )
    assert not jobs.exists()


def job(folder: Path, **state: Any) -> Path:
    folder.mkdir()
    (folder / converter.JOB).write_text(
        json.dumps({"in_dir": "/model", "compile_full": "/out", "progress": "quant", **state})
    )
    return folder


def test_only_a_job_of_this_model_and_place_is_gone_on_with(tmp_path: Path) -> None:
    """The library itself goes on with whatever lies in its folder."""
    model, out = Path("/model"), Path("/out")
    assert converter.resumable(job(tmp_path / "a"), model, out)
    assert not converter.resumable(job(tmp_path / "b", in_dir="/other"), model, out)
    assert not converter.resumable(job(tmp_path / "c", compile_full="/elsewhere"), model, out)
    assert not converter.resumable(job(tmp_path / "d", invalid=True), model, out), (
        "killed while it wrote its state"
    )
    assert not converter.resumable(job(tmp_path / "e", progress="finished"), model, out), (
        "which it would refuse, with status 0"
    )
    (tmp_path / "a" / converter.JOB).write_text('{"in_dir": "/mod')
    assert not converter.resumable(tmp_path / "a", model, out)
    assert not converter.resumable(tmp_path / "nothing", model, out)


def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    """The converter, replaced by a line of Python."""
    monkeypatch.setattr(
        "autoquant.runtime.process.run",
        lambda argv, **more: REAL([sys.executable, "-c", does], **more),
    )
    converter.convert(
        [],
        model=tmp_path,
        job=tmp_path / "job",
        result=tmp_path / "out",
        python="",
        logs=tmp_path / "log",
        stages=("Quantizing",),
        progress=lambda *_: None,
    )


def test_its_exit_status_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ProcessFailed,
        match=(
            r"exllamav2's converter exited with status 0 but did not finish. Log: .* ##"
            r" Error: 7 is not a supported option"
        ),
    ):
        convert(
            tmp_path,
            monkeypatch,
            "print(' ## Error: 7 is not a supported option for head layer bitrate')",
        )
    with pytest.raises(ProcessFailed, match="exllamav2's converter exited with status 1"):
        convert(tmp_path, monkeypatch, "import sys; sys.exit(1)")
    with pytest.raises(OutOfMemory, match="out of memory on the GPU while exllamav2 converted"):
        convert(
            tmp_path, monkeypatch, "raise RuntimeError('CUDA out of memory. Tried to allocate')"
        )


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
    assert again.artifacts[0].files == made[0].artifacts[0].files, (
        "the damaged one is not gone on with"
    )
    assert str(tmp_path) not in again.card(), "nor does the card say where the measurement lay"
    assert "--measurement" in again.card()


def test_checks_find_a_spoiled_layer_a_lost_one_and_a_missed_target(
    made: tuple[Result, list[str]], model: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder, layers = (
        tmp_path / "m",
        {name: list(shape) for name, shape in autoquant_layers(model).items()},
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


def autoquant_layers(model: Path) -> dict[str, tuple[int, int]]:
    return linears(source.resolve(model))


# --- its traps ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_reads_the_rotary_base_and_scaling_that_transformers_5_keeps_elsewhere(
    made: tuple[Result, list[str]], model: Path, scratch: Path, gpu: None
) -> None:
    """Left alone exllamav2 would take 10000 without a word: from the source, and from the finished
    folder when it is run.
    """
    staged = converter.stage(model, scratch / "staged")
    wanted = {"rope_theta": 500000.0, "scaling": "llama3", "factor": 8.0}
    assert in_worker("tests.helpers.exl2:exllamav2_config", scratch, folder=str(staged)) == wanted
    assert (
        in_worker(
            "tests.helpers.exl2:exllamav2_config", scratch, folder=str(made[0].path("4.0bpw"))
        )
        == wanted
    )
    assert (
        in_worker("tests.helpers.exl2:exllamav2_config", scratch, folder=str(model))["rope_theta"]
        == 10000.0
    ), "the trap; if this fails it is gone"


def test_nothing_but_the_model_is_given_to_it(model: Path, tmp_path: Path) -> None:
    """It would copy whatever lies beside the weights into its result, an index of other shards
    among it.
    """
    shutil.copytree(model, tmp_path / "model")
    for name in (
        "README.md",
        "stray.gguf",
        "model.safetensors.index.json",
        "modeling.py",
        "pytorch_model.bin",
    ):
        (tmp_path / "model" / name).write_text("{}")
    shutil.copy(
        tmp_path / "model" / "model.safetensors", tmp_path / "model" / "consolidated.safetensors"
    )
    staged = converter.stage(tmp_path / "model", tmp_path / "staged")
    assert {path.name for path in staged.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


BASE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"rope_parameters": LLAMA3},
    "MistralForCausalLM": BASE,
    "Qwen2ForCausalLM": BASE,
    "GemmaForCausalLM": {},
    "Phi3ForCausalLM": {},
    "Glm4ForCausalLM": {},
    "Gemma2ForCausalLM": {"query_pre_attn_scalar": 32, "num_hidden_layers": 2},
    "CohereForCausalLM": {},
    "GraniteForCausalLM": {
        "logits_scaling": 2.0,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
}


@pytest.mark.slow
def test_every_architecture_it_is_given_it_runs_as_transformers_does(
    tmp_path: Path, gpu: None
) -> None:
    from autoquant.methods.exl2 import ARCHITECTURES, WRONG

    models = {
        name: {"architecture": name, **MODELS.get(name, {})} for name in (*ARCHITECTURES, *WRONG)
    }
    apart = in_worker(
        "tests.helpers.exl2:in_exllamav2", tmp_path, models=models, scratch=str(tmp_path)
    )
    for name in ARCHITECTURES:
        assert apart[name]["apart"] < 0.005, name
        assert apart[name]["moved"] == 0, f"{name}: no state depends on a later token"
    for name in WRONG:
        assert apart[name]["apart"] > 0.1, f"{name}: if this fails, exllamav2 has been repaired"


@pytest.mark.slow
def test_without_our_variable_it_would_look_at_tokens_to_come(tmp_path: Path, gpu: None) -> None:
    models = {"m": {"architecture": "LlamaForCausalLM"}}
    without = {
        name: value for name, value in environment.VARIABLES.items() if name != "EXLLAMA_NO_SDPA"
    }
    seen = process.call(
        "tests.helpers.exl2:in_exllamav2",
        log=tmp_path / "log",
        env=without,
        models=models,
        scratch=str(tmp_path),
    )
    assert seen["m"]["moved"] > 0.1, (
        "the trap (torch's attention, without flash-attn and xformers); if this fails it is gone"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Phi3ForCausalLM", "Gemma2ForCausalLM", "CohereForCausalLM"])
def test_fused_matrices_tied_heads_and_parallel_blocks_are_read_back(
    name: str, tmp_path: Path, gpu: None
) -> None:
    folder = in_worker(
        "tests.helpers.models:tiny",
        tmp_path,
        folder=str(tmp_path / "tiny"),
        architecture=name,
        **MODELS[name],
    )
    tied = name == "Gemma2ForCausalLM"
    result = autoquant.exl2(
        folder,
        bpw="5",
        **QUICK,
        **({"evaluate": "on", "eval_chunks": 2} if tied else {"evaluate": "off"}),
        out=tmp_path / "out",
    )
    if tied:
        assert result.artifacts[0].evaluation is not None
        assert result.artifacts[0].evaluation.kl_mean < 0.2
    assert (
        float(re.search(r"relative error (\d\.\d+)", result.artifacts[0].checks[0].seen)[1]) < 0.15
    )  # type: ignore[index]


# --- the format -----------------------------------------------------------------------------------


def test_packing_by_hand() -> None:
    """Two groups of different widths, written here bit by bit; 5 bits straddle words."""
    rng = np.random.default_rng(0)
    inputs, outputs = 96, 32
    widths, rows = [5, 3], [32, 64]
    order = rng.permutation(inputs).astype(np.int32)
    code = np.concatenate(
        [rng.integers(0, 1 << bits, (n, outputs)) for bits, n in zip(widths, rows, strict=True)]
    )
    scale, largest = rng.integers(0, 16, (2, outputs)), np.array([0.5, 0.25], dtype=np.float16)
    words, table, at = [], [], 0
    for bits, n in zip(widths, rows, strict=True):
        table += [bits, sum(len(one) for one in words)]
        packed = np.zeros((n * bits // 32, outputs), dtype=np.uint64)
        for column in range(outputs):
            stream = "".join(format_code(int(one), bits) for one in code[at : at + n, column])
            packed[:, column] = [
                int(stream[i : i + 32][::-1], 2) for i in range(0, len(stream), 32)
            ]
        words.append(packed.astype(np.uint32))
        at += n
    scales = np.zeros((2, outputs // 8), dtype=np.uint32)
    for group in range(2):
        for output in range(outputs):
            scales[group, output // 8] |= np.uint32(int(scale[group, output]) << (4 * (output % 8)))
    parts = {
        "q_weight": np.concatenate(words).view(np.int32),
        "q_invperm": order,
        "q_scale": scales.view(np.int32),
        "q_scale_max": largest,
        "q_groups": np.array(table, dtype=np.int16),
    }
    group = np.repeat([0, 1], rows)
    half = np.array([16, 4])[group]
    plain = (
        (code - half[:, None])
        * np.square(scale[group] + 1.0)
        * (largest[group].astype(float) / 256)[:, None]
    )
    assert np.allclose(format.dequantize(parts), plain[order].T, rtol=2e-3), (
        "computed in float16, as the kernels do"
    )
    assert format.groups(parts) == [(5, 32), (3, 64)]


def format_code(value: int, bits: int) -> str:
    """Bits of a code, the lowest first."""
    return f"{value:0{bits}b}"[::-1]


def test_the_reader_on_a_file_of_our_making() -> None:
    """tests/data/exl2: two layers and the head of a random model of width 64, made once by the real
    converter on the stand-in, which had its own weights of them.
    """
    from safetensors.numpy import load_file

    folder = Path(__file__).parent / "data" / "exl2"
    tensors, wanted = (
        load_file(folder / "output.safetensors"),
        json.loads((folder / "weights.json").read_text()),
    )
    for name, facts in wanted.items():
        parts = {part: tensors[f"{name}.{part}"] for part in format.PARTS}
        weight = format.dequantize(parts)
        assert list(weight.shape) == facts["shape"]
        assert hashlib.sha256(weight.astype(np.float16).tobytes()).hexdigest() == facts["sha256"], (
            "bit for bit what exllamav2's make_q_matrix gives"
        )
        assert exl2_check.layer_bits(Tensors(str(folder)), name, weight.size) == pytest.approx(
            facts["bits"], rel=1e-9
        )
        assert [list(one) for one in format.groups(parts)] == facts["groups"]


# --- options and measurements ---------------------------------------------------------------------


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


@pytest.mark.slow
def test_a_measurement_of_another_model_or_one_that_was_changed_is_refused(
    made: tuple[Result, list[str]], model: Path, gpu: None, tmp_path: Path
) -> None:
    path = made[0].folder / "measurement.json"
    data = json.loads(path.read_text())
    other = Path(
        in_worker(
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
    weights = sum(outputs * inputs for outputs, inputs in autoquant_layers(model).values())
    measurement.refuse_foreign(data, snapshot, "theirs", {"0": weights}, weights)
    assert (
        "theirs does not say of which model it is; its layers and sizes are those of tiny"
        in caplog.text
    )


def test_samples_are_those_of_the_other_methods(model: Path, tmp_path: Path) -> None:
    """As text, which exllamav2 tokenizes again: nearly all tokens come back the same."""
    pandas = pytest.importorskip("pandas")
    from autoquant import calibration

    texts = calibration.documents(autoquant_options()).texts
    exl2_check.calibrate(str(model), texts, 4, 64, 0, str(tmp_path / "c.parquet"))
    ids = calibration.pack(str(model), texts, samples=4, length=64, seed=0)
    rows = list(pandas.read_parquet(tmp_path / "c.parquet")["text"])
    assert len(rows) == 4 + 2
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    again = [token for row in rows for token in tokenizer.encode(row, add_special_tokens=False)]
    assert again[:40] == ids[0][:40]
    assert len(again) >= 4 * 64


def autoquant_options() -> Any:
    from autoquant.core import options
    from autoquant.methods.exl2 import Exl2Options

    return options.build(Exl2Options, {"calibration": "builtin"})


def test_the_stand_in_is_nowhere_in_the_package() -> None:
    for path in (Path(autoquant.__file__).parent).rglob("*.py"):
        assert "fakes" not in path.read_text()


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
