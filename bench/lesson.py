"""Seconds that notebook 01 takes from its first cell to its last, alone and beside one and two
processes that compute without a pause. usage: python -m bench.lesson [--pictures FOLDER]

``--pictures`` runs the notebook and its translations once instead, and writes the picture of what
one has in the end, which stands in their second cell.
"""

from __future__ import annotations

import base64
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAME = "01_Introduction_to_Quantization.ipynb"
PICTURES = {"lesson.png": FOLDER / NAME, "lesson.tr.png": FOLDER / "tr" / NAME}


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


def pictures(folder: Path) -> None:
    """Write the picture of each language."""
    for name, path in PICTURES.items():
        notebook, _ = executed(path)
        cell = next(one for one in notebook.cells if one.id == "picture")
        drawn = next(one.data for one in cell.outputs if "image/png" in one.get("data", {}))
        (folder / name).write_bytes(base64.b64decode(drawn["image/png"]))
        print(folder / name)


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
    if sys.argv[1:2] == ["--pictures"]:
        pictures(Path(sys.argv[2]))
    else:
        main()
