"""exllamav2's compiled extension: taken from a folder, or compiled here while other stages run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAME = "exllamav2_ext.so"
CODE = "import exllamav2.ext; print(exllamav2.ext.exllamav2_ext.__file__)"


def variables(work: Path, capability: str) -> dict[str, str]:
    """What a build, and all that is to find it, needs in the environment."""
    jobs = str(max(2, (os.cpu_count() or 2) - 2))
    return {"TORCH_EXTENSIONS_DIR": str(work / "torch_extensions"), "MAX_JOBS": jobs,
            "TORCH_CUDA_ARCH_LIST": capability, "EXLLAMA_NO_SDPA": "1"}


def place(work: Path) -> Path:
    """Where torch puts it."""
    return work / "torch_extensions" / "exllamav2_ext" / NAME


class Build:
    """The compilation, in a process of its own. ``seconds`` is what it took, once it has ended."""

    def __init__(self, work: Path, env: dict[str, str]) -> None:
        self.log = work / "extension.log"
        self.begin = time.monotonic()
        self.seconds = 0.0
        with open(self.log, "wb") as sink:
            self.child: subprocess.Popen[Any] = subprocess.Popen(
                [sys.executable, "-c", CODE], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                env={**os.environ, **env}, start_new_session=True)

    def wait(self, limit: float) -> str:
        """Wait for its end; why it failed, or nothing."""
        from gpu.machine import tail

        try:
            status = self.child.wait(max(1.0, limit))
        except subprocess.TimeoutExpired:
            return f"not compiled after {time.monotonic() - self.begin:.0f} s: {tail(self.log)}"
        self.seconds = self.seconds or time.monotonic() - self.begin
        return "" if status == 0 else f"not compiled (status {status}): {tail(self.log)}"

    def close(self) -> None:
        """End it, if it still runs."""
        from gpu.machine import end

        if self.child.poll() is None:
            end(self.child)


def bring_back(work: Path, out: Path, most: int = 15 << 20) -> None:
    """Copy what was compiled into the output, stripped, if it is small enough to be kept."""
    built = place(work)
    if built.is_file():
        target = out / NAME
        shutil.copyfile(built, target)
        if shutil.which("strip"):
            subprocess.run(["strip", "--strip-unneeded", str(target)], check=False)
        if target.stat().st_size > most:
            target.unlink()
