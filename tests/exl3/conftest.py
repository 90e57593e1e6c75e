"""EXL3 by exllamav3's real converter on a CPU: tests/fakes stands in for a GPU, for Triton and for
the compiled extension; all else is the library's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.result import Result
from autoquant.runtime import process
from tests.conftest import STAND_IN
from tests.exl2.conftest import LLAMA3
from tests.workers import in_exl3_worker

QUICK: dict[str, Any] = {
    "calibration": "builtin",
    "calibration_samples": 3,
    "calibration_length": 64,
}
REAL = process.run


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exl3")


@pytest.fixture(scope="session")
def model(scratch: Path) -> Path:
    """One block whose widths are no multiples of 128, but for the hidden size: so all its layers
    are padded.
    """
    return Path(
        in_exl3_worker(
            "tests.helpers.models:tiny",
            scratch,
            folder=str(scratch / "tiny"),
            architecture="LlamaForCausalLM",
            rope_parameters=LLAMA3,
            intermediate_size=160,
            head_dim=24,
        )
    )


@pytest.fixture(scope="session")
def made(model: Path, scratch: Path) -> tuple[Result, list[str]]:
    """Two bitrates, and the converter's command lines."""
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", STAND_IN)
        patch.setattr(
            "autoquant.runtime.process.run",
            lambda argv, **more: lines.append(" ".join(argv)) or REAL(argv, **more),
        )
        result = autoquant.exl3(model, bpw=[4, "2.5"], **QUICK, eval_chunks=4, out=scratch / "out")
    return result, lines


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", STAND_IN)
