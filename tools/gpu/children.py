"""Processes that we started: their end, and what they wrote last."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any


def end(child: subprocess.Popen[Any]) -> None:
    """End a process that we started, and what it started itself."""
    for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
            return


def tail(log: Path, lines: int = 4) -> str:
    """The last lines of a log in one."""
    said = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " / ".join([line.strip() for line in said if line.strip()][-lines:])[-700:]
