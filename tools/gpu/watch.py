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


def gpu_memory(processes: set[int]) -> int:
    """Bytes of the GPU's memory that some processes have, as the driver tells; 0 if it does not."""
    if shutil.which("nvidia-smi") is None:
        return 0
    words = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    found = (line.split(",") for line in done.stdout.splitlines() if line.count(",") == 1)
    return sum(
        int(used) << 20
        for process, used in found
        if process.strip().isdigit() and int(process) in processes and used.strip().isdigit()
    )


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
    """A context manager that notes the most memory of what descends from this process: the GPU's
    ``gpu_bytes``, of all together, and ``host_bytes``, of the largest. 0 where that is not told."""

    def __init__(self, *, gpu: bool) -> None:
        self.gpu_bytes = self.host_bytes = 0
        self._gpu = gpu
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._end.is_set():
            self.look()
            self._end.wait(EVERY)

    def look(self) -> None:
        """Look once."""
        if not Path("/proc/self/stat").is_file():
            return
        below = _below(os.getpid())
        self.host_bytes = max([self.host_bytes, *map(_peak, below)])
        if self._gpu:
            self.gpu_bytes = max(self.gpu_bytes, gpu_memory(set(below)))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=30)
