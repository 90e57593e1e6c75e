"""Make the pictures with which notebooks begin: what somebody will have at the end, by the bundled
models.

usage: python tools/notebook_pictures.py [NOTEBOOK…]     (for example tr/09_Outliers)

Each notebook is executed without a network, and the last picture of one of its cells becomes
docs/images/NOTEBOOK.png, in Turkish NOTEBOOK.tr.png (of 01 lesson.png and lesson.tr.png); of 00 all
that the cell shows, table and plot as Debian's Chromium draws them, becomes
docs/images/notebook-results.png. Needs what the tests need; takes some minutes.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.browser.lab import chromium
from tests.notebooks.running import ROOT

# notebook -> the cell whose picture it is, and values that make it a quick one
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "00_AutoQuant": ("run", {"methods": "gguf", "gguf_types": "Q8_0,Q5_K_M,Q2_K"}),
    "01_Introduction_to_Quantization": ("picture", {}),
    "tr/01_Introduction_to_Quantization": ("picture", {}),
    "02_GGUF_llama_cpp": ("size", {}),
    "03_GPTQ": ("size", {"calibration_samples": 16, "calibration_length": 256}),
    "05_AWQ": ("size", {"calibration_samples": 16, "calibration_length": 256}),
    "06_HQQ_and_more": ("size", {}),
    "07_Compare": ("equal", {"calibration_samples": 16}),
    "08_Many_models": ("compare", {}),
    "09_Outliers": ("picture", {}),
    "tr/09_Outliers": ("picture", {}),
}

NAMES = {  # of pictures that are not called like their notebook
    "00_AutoQuant": "notebook-results",
    "01_Introduction_to_Quantization": "lesson",
    "tr/01_Introduction_to_Quantization": "lesson.tr",
    "tr/09_Outliers": "09_Outliers.tr",
}
WHOLE = ("00_AutoQuant",)  # what a cell shows as a whole
PAGE = """<!doctype html><meta charset="utf-8"><style>
body { margin: 0; zoom: 1.5; font: 13px sans-serif; background: white }
#shown { padding: 8px 12px; width: 820px }
#shown > div > div { flex-direction: column }
table { border-collapse: collapse }
th, td { padding: 5px 7px }
th { border-bottom: 1px solid #bdbdbd }
tr:nth-child(even) td { background: #f5f5f5 }
</style><div id="shown">"""


def photographed(shown: str) -> bytes:
    """HTML that a cell shows, as it looks on a notebook's page."""
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        page = browser.new_page()
        page.set_content(f"{PAGE}{shown}</div>")
        taken: bytes = page.locator("#shown").screenshot()
        return taken


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
    made = [output.get("data", {}) for output in notebook.cells[end].outputs]
    figures = [one["image/png"] for one in made if "image/png" in one]
    shown = [one["text/html"] for one in made if "text/html" in one]
    if name in WHOLE:
        drawn = photographed(shown[-1])
    else:  # a lesson's figure, or one within the HTML of a result
        inside = shown and shown[-1].rpartition("data:image/png;base64,")[2].partition('"')[0]
        drawn = base64.b64decode(figures[-1] if figures else inside)
    target = ROOT / "docs" / "images" / f"{NAMES.get(name, name)}.png"
    target.write_bytes(drawn)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    names = sys.argv[1:] or list(PICTURES)
    unknown = [name for name in names if name not in PICTURES]
    if unknown:
        sys.exit(f"no picture is made of {', '.join(unknown)}; of: {', '.join(PICTURES)}")
    for name in names:
        make(name)
