"""This machine's memory and processor cores."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def memory_available() -> int:
    """Bytes of memory a new process can have: the system's MemAvailable, or less inside a limited
    control group.
    """
    # a system without /proc/meminfo (macOS): do not refuse for lack of knowledge
    available = shutil.disk_usage("/").free
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        if Path(limit).is_file() and Path(used).is_file():
            bound = Path(limit).read_text().strip()
            if bound.isdigit():
                available = min(available, int(bound) - int(Path(used).read_text()))
    return max(0, available)


def nvidia_gpu() -> bool:
    """Whether the driver shows an NVIDIA GPU that has not been hidden from us (Linux). Asking CUDA
    itself would take torch, and seconds.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
