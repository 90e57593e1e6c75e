"""Make the pictures with which notebooks begin: what somebody will have at the end, by the bundled
models.

usage: python tools/notebook_pictures.py [NOTEBOOK…]     (for example 02_GGUF_llama_cpp)

Each notebook is executed without a network, and the last picture of one of its cells becomes
docs/images/NOTEBOOK.png. Needs what the tests need; takes some minutes.
"""

from __future__ import annotations

import base64
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
# notebook -> the cell whose picture it is, and values that make it a quick one
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "00_AutoQuant": ("run", {"methods": "gguf,hqq,w8a8", "gguf_types": "Q6_K,Q4_K_M,Q3_K_M"}),
    "02_GGUF_llama_cpp": ("size", {}),
    "03_GPTQ": ("size", {"calibration_samples": 16, "calibration_length": 256}),
    "05_AWQ": ("size", {"calibration_samples": 16, "calibration_length": 256}),
    "06_HQQ_and_more": ("size", {}),
    "07_Compare": ("equal", {"calibration_samples": 16}),
}


def make(name: str) -> None:
    """Execute one and keep its picture."""
    cell_id, values = PICTURES[name]
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    at = max(i for i, cell in enumerate(notebook.cells) if cell.id in ("parameters", "more"))
    lines = "\n".join(f"{key} = {value!r}" for key, value in values.items())
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(lines, id="injected"))
    end = next(i for i, cell in enumerate(notebook.cells) if cell.id == cell_id)
    del notebook.cells[end + 1 :]
    with tempfile.TemporaryDirectory() as work:
        resources = {"metadata": {"path": work}}
        client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources)
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{work}/hf"}
        client.execute(env={**os.environ, **offline})
    shown = [
        output["data"]["text/html"]
        for output in notebook.cells[end].outputs
        if "text/html" in output.get("data", {})
    ]
    picture = shown[-1].rpartition("data:image/png;base64,")[2].partition('"')[0]
    target = ROOT / "docs" / "images" / f"{name}.png"
    target.write_bytes(base64.b64decode(picture))
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    names = sys.argv[1:] or list(PICTURES)
    unknown = [name for name in names if name not in PICTURES]
    if unknown:
        sys.exit(f"no picture is made of {', '.join(unknown)}; of: {', '.join(PICTURES)}")
    for name in names:
        make(name)
