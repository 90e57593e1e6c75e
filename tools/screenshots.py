"""Screenshots of every notebook after Run All, in JupyterLab in Debian's Chromium, to be looked at.

usage: python tools/screenshots.py [NOTEBOOK…]     (`make pictures`; for example tr/10_Formats)

Each notebook runs on the bundled models, without a network, with values that make it a quick one;
04_EXL2 stops where it needs a GPU. Its page, in pieces, becomes browser-output/NOTEBOOK-N.png.
All of them take twenty minutes on two cores. Where another cell raised, or a notebook was not done
in time, the exit status is 1 and a line names the cell: those are no pictures of a finished run.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.browser.lab import SHOTS, chromium, menu, opened, serving, wait
from tests.notebooks.running import FOLDER

WIDTH, PIECE, MOST = 1000, 1800, 30_000  # pixels
SECONDS = 900
SHORT = {"calibration_samples": 8, "calibration_length": 64}
QUICK: dict[str, dict[str, Any]] = {
    "00_AutoQuant": {"methods": "gguf,hqq", "gguf_types": "Q6_K,Q4_K_M"},
    "02_GGUF_llama_cpp": {"compare": "Q6_K,Q4_K_M,Q2_K"},
    "03_GPTQ": {**SHORT, "compare": "8,3"},
    "04_EXL2": {"compare": ""},
    "05_AWQ": {**SHORT, "iterations": 4},
    "06_HQQ_and_more": {"compare": "3,nf4"},
    "07_Compare": {"calibration_samples": 8, "gptq_bits": "4"},
    "08_Many_models": {"methods": "hqq,w8a8", "eval_chunks": 4},
}


STOPS = {"04_EXL2": "run"}  # the cell at which one ends on a machine without a GPU


def wrong(notebook: Any, name: str) -> str:
    """The first cell of a notebook after Run All that raised, or did not run, in a line; empty if
    it ran to its end, or to where it may stop.
    """
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        errors = [one for one in cell.outputs if one.output_type == "error"]
        if errors and STOPS.get(name) == cell.id:
            return ""
        if errors:
            return f"{name}: cell {cell.id} raised {errors[0].ename}: {errors[0].evalue}"
        if cell.execution_count is None:
            return f"{name}: cell {cell.id} did not run"
    return ""


def quick(path: Path) -> None:
    """Put quick values behind a notebook's form, as papermill does."""
    notebook = nbformat.read(path, as_version=4)
    values = QUICK.get(path.stem, {})
    at = [i for i, cell in enumerate(notebook.cells) if cell.id in ("parameters", "more")]
    if at and values:
        lines = "\n".join(f"{name} = {value!r}" for name, value in values.items())
        notebook.cells.insert(at[-1] + 1, nbformat.v4.new_code_cell(lines, id="quick"))
    nbformat.write(notebook, path)


def finished(page: Any, path: Path, name: str) -> str:
    """Run a notebook that is open, which lies at ``path``, to its end; what went wrong."""
    menu(page, "Run", "Run All Cells")
    end = time.monotonic() + SECONDS
    page.wait_for_timeout(3000)
    while page.locator(".jp-InputPrompt", has_text="[*]").count():
        if time.monotonic() > end:
            return f"{name}: not done within {SECONDS} s"
        page.wait_for_timeout(1000)
    page.wait_for_timeout(2000)
    before = path.stat().st_mtime_ns
    menu(page, "File", "Save Notebook")
    wait(lambda: path.stat().st_mtime_ns > before, 20, "saving the notebook")
    return wrong(nbformat.read(path, as_version=4), name)


def taken(page: Any, name: str) -> list[Path]:
    """Photograph a notebook's page from top to bottom."""
    inside = page.locator(".jp-NotebookPanel:visible .jp-WindowedPanel-outer").first
    tall = inside.evaluate("one => one.scrollHeight") + 150
    page.set_viewport_size({"width": WIDTH, "height": min(tall, MOST)})
    inside.evaluate("one => { one.scrollTop = 0 }")  # it has followed the cells as they ran
    page.wait_for_timeout(2000)
    made = []
    for i, top in enumerate(range(0, min(tall, MOST), PIECE), 1):
        made.append(SHOTS / f"{name.replace('/', '-')}-{i}.png")
        height = min(PIECE, min(tall, MOST) - top)
        page.screenshot(
            path=str(made[-1]), clip={"x": 0, "y": top, "width": WIDTH, "height": height}
        )
    return made


def main(names: list[str]) -> None:
    """Photograph some notebooks, or all of them."""
    there = sorted(
        str(path.relative_to(FOLDER).with_suffix(""))
        for path in (*FOLDER.glob("*.ipynb"), *FOLDER.glob("??/*.ipynb"))
    )
    unknown = [name for name in names if name not in there]
    if unknown:
        sys.exit(f"there is no notebook {', '.join(unknown)}; there are: {', '.join(there)}")
    found = list[str]()
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / one for one in ("lab", "home", "profile")]
        for one in folders:
            one.mkdir()
        with serving(*folders[:2]) as lab, chromium(folders[2], WIDTH) as browser:
            for name in names or there:
                quick(lab / f"{name}.ipynb")
                page = opened(browser, f"{name}.ipynb")
                found.append(finished(page, lab / f"{name}.ipynb", name))
                for path in taken(page, name):
                    print(os.path.relpath(path))
                page.close()
    if any(found):
        sys.exit("no pictures of a finished run:\n" + "\n".join(filter(None, found)))


if __name__ == "__main__":
    main(sys.argv[1:])
