"""How exllamav2's converter is used: what it is given, may resume, and must have done."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from autoquant.backends.exllamav2 import converter
from autoquant.core.errors import OutOfMemory, ProcessFailed
from tests.exl2.conftest import REAL


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
    with pytest.raises(OutOfMemory, match="out of memory on the GPU in exllamav2's converter"):
        convert(
            tmp_path, monkeypatch, "raise RuntimeError('CUDA out of memory. Tried to allocate')"
        )


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
