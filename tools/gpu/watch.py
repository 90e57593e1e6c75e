"""Memory while something runs: the card's, and that of the largest process below this one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

EVERY = 0.25  # seconds between looks
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def gpu_used() -> int:
    """Bytes of the first GPU's memory in use, by any process; 0 if that cannot be told."""
    if shutil.which("nvidia-smi") is None:
        return 0
    words = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    said = done.stdout.strip()
    return int(said) << 20 if said.isdigit() else 0


def _below(root: int) -> list[int]:
    """The ids of all processes that descend from one."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _peak(process: int) -> int:
    """The most memory that a process has had resident, in bytes."""
    try:
        found = PEAK.search((Path("/proc") / str(process) / "status").read_text())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


class Watch:
    """A context manager that notes ``gpu_bytes`` (above what was in use before) and ``host_bytes``
    (of the largest process that descends from this one; 0 where there is no /proc)."""

    def __init__(self, *, gpu: bool) -> None:
        self.gpu_bytes = self.host_bytes = 0
        self._gpu = gpu
        self._before = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._end.is_set():
            self.look()
            self._end.wait(EVERY)

    def look(self) -> None:
        """Look once."""
        if self._gpu:
            self.gpu_bytes = max(self.gpu_bytes, gpu_used() - self._before)
        if Path("/proc/self/stat").is_file():
            self.host_bytes = max([self.host_bytes, *map(_peak, _below(os.getpid()))])

    def __enter__(self) -> Watch:
        self._before = gpu_used() if self._gpu else 0
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=30)
