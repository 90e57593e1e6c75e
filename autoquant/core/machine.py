"""This machine's memory and processor cores."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def memory_available(system: Path = Path("/")) -> int:
    """Bytes of memory a new process can have: the system's MemAvailable, or less inside limited
    control groups (of either version), whose file caches count as free: they give way. ``system``
    is where /proc and /sys are.
    """
    # a system without /proc/meminfo (macOS): do not refuse for lack of knowledge
    available = shutil.disk_usage("/").free
    meminfo = system / "proc/meminfo"
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    for group in _groups(system):
        for limit, used, cache in (
            ("memory.max", "memory.current", ("inactive_file", "active_file")),
            (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                ("total_inactive_file", "total_active_file"),
            ),
        ):
            if not ((group / limit).is_file() and (group / used).is_file()):
                continue
            bound = (group / limit).read_text().strip()
            if bound.isdigit():
                free = int(bound) - int((group / used).read_text())
                available = min(available, free + _cached(group / "memory.stat", cache))
    return max(0, available)


def _groups(system: Path) -> list[Path]:
    """The control groups for memory that this process is in, the outer ones too."""
    own = system / "proc/self/cgroup"
    lines = own.read_text().splitlines() if own.is_file() else ["0::/"]
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = system / "sys/fs/cgroup" / controllers
        inside = Path(path.lstrip("/"))
        found += [root / one for one in (inside, *inside.parents)]
    return found


def _cached(stat: Path, names: tuple[str, ...]) -> int:
    """Bytes of a group's file cache."""
    lines = stat.read_text().splitlines() if stat.is_file() else []
    pairs = (line.split() for line in lines)
    return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in names)


def nvidia_gpu() -> bool:
    """Whether the driver shows an NVIDIA GPU that has not been hidden from us (Linux). Asking CUDA
    itself would take torch, and seconds.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
