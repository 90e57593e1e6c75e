"""Seconds that notebook 01 takes from its first cell to its last, alone and beside one and two
processes that compute without a pause. usage: python -m bench.lesson
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAME = "01_Introduction_to_Quantization.ipynb"


def executed(path: Path) -> tuple[Any, float]:
    """The notebook after all of its cells, and the seconds they took with the kernel's start."""
    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as work:
        client = NotebookClient(
            notebook,
            timeout=900,
            kernel_name="python3",
            resources={"metadata": {"path": work}},
        )
        start = time.perf_counter()
        client.execute(env={**os.environ, "HF_HUB_OFFLINE": "1", "MPLBACKEND": ""})
        return notebook, time.perf_counter() - start


def busy() -> None:
    """Compute without a pause."""
    while True:
        sum(range(100_000))


def main() -> None:
    """Print the seconds of three runs, beside no, one and two busy processes."""
    others: list[multiprocessing.Process] = []
    try:
        for count in range(3):
            if count:
                others.append(multiprocessing.Process(target=busy, daemon=True))
                others[-1].start()
            load = os.getloadavg()[0]
            _, seconds = executed(FOLDER / NAME)
            print(
                f"beside {count} busy processes: {seconds:.1f} s (load before it {load:.1f},"
                f" {os.cpu_count()} cores)",
                flush=True,
            )
    finally:
        for one in others:
            one.terminate()


if __name__ == "__main__":
    main()
