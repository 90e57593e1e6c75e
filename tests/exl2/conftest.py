"""EXL2 by exllamav2's real, unmodified converter on a CPU: tests/fakes/exl2 stands in for a GPU and
for the compiled extension; all else is the library's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant import source
from autoquant.result import Result
from autoquant.runtime import process
from autoquant.source.layers import linears
from tests.conftest import STAND_IN
from tests.workers import in_exl2_worker

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


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exl2")


@pytest.fixture(scope="session")
def model(scratch: Path) -> Path:
    return Path(
        in_exl2_worker(
            "tests.helpers.models:tiny",
            scratch,
            folder=str(scratch / "tiny"),
            architecture="LlamaForCausalLM",
            rope_parameters=LLAMA3,
        )
    )


@pytest.fixture(scope="session")
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


def layers_of(model: Path) -> dict[str, tuple[int, int]]:
    """The linear layers of a model, with their shapes."""
    return linears(source.resolve(model))
