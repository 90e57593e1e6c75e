"""Run a notebook's cells in a kernel, as Jupyter does on Run All."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from autoquant.backends.llamacpp import converter

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"


def environment(cache: Path, *, colab: bool) -> dict[str, str]:
    """A kernel's environment: a cache folder of its own, no network to the Hub, and in Colab's
    guise Colab's module and variable.
    """
    more = filter(None, [os.environ.get("PYTHONPATH")])  # a stand-in for a GPU
    return {
        "AUTOQUANT_CACHE": str(cache),
        "AUTOQUANT_LLAMA_CPP": str(converter.locate()),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cache / "hf"),
        "MPLBACKEND": "",
        **(
            {
                "COLAB_RELEASE_TAG": "release-colab-test",
                "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "fakes"), *more]),
            }
            if colab
            else {}
        ),
    }


def run(
    path: Path,
    work: Path,
    env: dict[str, str],
    parameters: dict[str, Any] | None = None,
    timeout: int = 900,
) -> Any:
    """The executed notebook. ``parameters`` are put after the parameters cell, as papermill does
    (those of another such cell after that). A cell that fails raises, with what it said.
    """
    notebook = nbformat.read(path, as_version=4)
    for last in (("parameters", "more"), ("exl3-parameters",)):
        found = [i for i, cell in enumerate(notebook.cells) if cell.id in last]
        asked = "\n".join(notebook.cells[i].source for i in found)
        lines = [
            f"{name} = {value!r}"
            for name, value in (parameters or {}).items()
            if f"\n{name} = " in asked
        ]
        if lines:
            cell = nbformat.v4.new_code_cell("\n".join(lines), id=f"injected-{last[0]}")
            notebook.cells.insert(found[-1] + 1, cell)
    work.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(work)}},
    )
    client.execute(env={**os.environ, **env})
    return notebook


def shown(cell: Any) -> str:
    """All that a cell shows, as text: plain text, HTML, Markdown, streams."""
    parts = []
    for output in cell.outputs:
        parts += [
            output.get("text", ""),
            *(
                str(output.get("data", {}).get(kind, ""))
                for kind in ("text/plain", "text/html", "text/markdown")
            ),
        ]
    return "\n".join(parts)
