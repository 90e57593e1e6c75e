"""The GPU check's stages, on a machine that has a GPU. Elsewhere they are skipped: rehearsing them
takes minutes (`make gpu-check GPU_CHECK=--rehearse`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "gpu_check.py"


def _gpu() -> bool:
    """Whether torch finds a GPU; not asked where the driver shows none: importing torch is slow."""
    if (
        shutil.which("nvidia-smi") is None
        or subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode != 0
    ):
        return False
    asked = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return (
        subprocess.run([sys.executable, "-c", asked], capture_output=True, check=False).returncode
        == 0
    )


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.skipif(not _gpu(), reason="no NVIDIA GPU that torch can use")
@pytest.mark.parametrize("stage", ["plain", "evaluation", "blocks", "exl2", "exl3", "gptq"])
def test_a_stage_passes_on_this_gpu(stage: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--stages", stage, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = (
        json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))["rows"]
        if (tmp_path / "gpu_check.json").is_file()
        else []
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert rows
    assert {row["result"] for row in rows} == {"passed"}
