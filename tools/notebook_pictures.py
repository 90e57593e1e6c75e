"""Make the pictures with which notebooks begin: what somebody will have at the end, by the bundled
models.

usage: python tools/notebook_pictures.py [NOTEBOOK…]     (for example tr/09_Outliers)

Each notebook is executed without a network, and the last picture of one of its cells becomes
docs/images/NOTEBOOK.png, in Turkish NOTEBOOK.tr.png (of 01 lesson.png and lesson.tr.png); of 00 all
that the cell shows, table and plot as Debian's Chromium draws them, becomes
docs/images/notebook-results.png; that of 04, which needs a GPU, is drawn of the figures in
bench/GPU.md. Needs what the tests need; takes some minutes.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from autoquant.display.colors import COLORS, RED
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

MEASURED = "04_EXL2"  # on a GPU: its picture has the figures of bench/GPU.md
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


def measured() -> bytes:
    """Size against quality of the EXL2 files that a GPU has made of the bundled model."""
    from matplotlib.figure import Figure

    said = (ROOT / "bench" / "GPU.md").read_text(encoding="utf-8")
    row = next(line for line in said.splitlines() if line.startswith("| exl2 | real converter"))
    file = r"(\d\.\d): \d\.\d+(?: bits achieved)?, KL (\d\.\d+)[^,]*"
    files = re.findall(rf"{file}, perplexity (\d+\.\d+), (\d\.\d+) MB", row)
    (unquantized,) = re.findall(r"unquantized: perplexity (\d+\.\d+)", row)
    sizes = [float(size) for *_, size in files]
    drawn = Figure(figsize=(7.2, 3), layout="constrained", dpi=110)
    left, right = drawn.subplots(1, 2)
    for axis, at, label in (
        (left, 2, "perplexity (lower is better)"),
        (right, 1, "KL divergence, nats per token"),
    ):
        values = [float(one[at]) for one in files]
        axis.plot(sizes, values, "o-", color=COLORS[0], linewidth=0.6)
        for one, size, value in zip(files, sizes, values, strict=True):
            axis.annotate(
                f"{one[0]} bpw",
                (size, value),
                (6 if size < max(sizes) else -6, 4),
                textcoords="offset points",
                ha="left" if size < max(sizes) else "right",
            )
        axis.set(xlabel="size, MB", ylabel=label)
        axis.margins(0.3)
        axis.set_ylim(bottom=0 if axis is right else None)
        axis.grid(alpha=0.25)
    left.axhline(float(unquantized), color=RED, linewidth=1, linestyle="--")
    left.annotate(
        "unquantized",
        (1, float(unquantized)),
        (-4, -4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="top",
        color=RED,
    )
    drawn.suptitle("tiny-austen-4m as EXL2, made on an H100", fontsize=10)
    made = io.BytesIO()
    drawn.savefig(made, format="png")
    return made.getvalue()


def make(name: str) -> None:
    """Execute one and keep its picture."""
    if name == MEASURED:
        (ROOT / "docs" / "images" / f"{name}.png").write_bytes(measured())
        return
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
    known = [*PICTURES, MEASURED]
    names = sys.argv[1:] or known
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"no picture is made of {', '.join(unknown)}; of: {', '.join(known)}")
    for name in names:
        make(name)
