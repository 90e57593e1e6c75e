"""Run 00_AutoQuant in the versions that Colab publishes: its install cell, then GGUF, GPTQ, HQQ and
W8A8 of the bundled model, from an environment in which nothing of AutoQuant is installed.

usage: python tools/colab_check.py FOLDER [--python PROGRAM] [--torch VERSION]
(`make colab-check`)

Needs a package index and a C++ compiler, no Hub and no GPU; takes about half an hour on two cores,
and some GB in FOLDER, which it makes anew each time.
Colab's Python is taken if uv or pyenv has it, else this one. ``--torch``: another release than
Colab's 2.11.0, whose file for Linux on PyPI brings CUDA (several GB); where PyTorch's own index can
be reached, the build without it is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
VERSION = "3.13"  # Colab's Python
PUBLISHED = ROOT / "tests" / "notebooks" / "colab" / f"python-{VERSION}.txt"  # with its date
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# of what Colab ships, what AutoQuant and its libraries meet; what these need comes with them
SHIPPED = (
    "transformers huggingface_hub tokenizers safetensors accelerate peft datasets numpy scipy"
    " pandas pyarrow matplotlib pydantic protobuf sentencepiece Jinja2 tqdm ipywidgets ipykernel"
    " ipython jupyter_client requests httpx packaging filelock PyYAML psutil torchao cmake einops"
    " regex setuptools wheel"
).split()
METHODS = ("gguf", "gptq", "hqq", "w8a8")


def python() -> str:
    """Colab's Python if there is one here, else this one."""
    words = [sys.executable, "-m", "uv", "python", "find", "--no-python-downloads", VERSION]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else sys.executable


def pip(env: Path, *words: str) -> None:
    """pip of an environment."""
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([env / "bin" / "python", "-m", "pip", *words, *quiet], check=True)


def freeze(env: Path) -> dict[str, str]:
    """The version of each package of an environment."""
    words = [env / "bin" / "python", "-m", "pip", "list", "--format", "json"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return {one["name"]: one["version"] for one in json.loads(listed)}


def make(env: Path, program: str, torch: str) -> None:
    """An environment with what Colab ships; ``torch``: in place of its own release."""
    shutil.rmtree(env, ignore_errors=True)
    subprocess.run([program, "-m", "venv", env], check=True)
    lines = [line for line in PUBLISHED.read_text().splitlines() if line and line[0] != "#"]
    shipped = {line.partition("==")[0].lower(): line for line in lines}
    if torch:  # later ones want a newer setuptools
        shipped |= {"torch": f"torch=={torch}", "setuptools": "setuptools>=77"}
    torch, held = shipped["torch"], env / "held.txt"
    held.write_text("\n".join(shipped.values()) + "\n")
    pip(env, "install", shipped["pip"])
    alone = ["--no-deps", "--retries", "0", "--index-url", TORCH_INDEX, torch]
    words = [env / "bin" / "python", "-m", "pip", "install", "--quiet", *alone]
    subprocess.run(words, check=False, capture_output=True)
    pip(env, "install", "--constraint", str(held), torch)
    pip(env, "install", "--constraint", str(held), *(shipped[one.lower()] for one in SHIPPED))


def copy(target: Path) -> None:
    """The repository's files as they are now: the install cell links this package's folder."""
    shutil.rmtree(target, ignore_errors=True)
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def execute(folder: Path, env: Path) -> Any:
    """The notebook, executed in the environment in Colab's guise. What cells say is written to
    ``folder/executed.ipynb``, also of one that fails.
    """
    kernel = folder / "jupyter" / "kernels" / "colab" / "kernel.json"
    kernel.parent.mkdir(parents=True, exist_ok=True)
    argv = [str(env / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "colab", "language": "python"}))
    clone = folder / "clone"
    notebook = nbformat.read(clone / "notebooks" / "00_AutoQuant.ipynb", as_version=4)
    at = next(i for i, cell in enumerate(notebook.cells) if cell.id == "more")
    chosen = f'model = "demo"\nmethods = "{",".join(METHODS)}"\ngguf_types = "Q8_0,Q4_K_M"'
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(chosen, id="chosen"))
    os.environ["JUPYTER_PATH"] = str(folder / "jupyter")
    client = NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="colab",
        resources={"metadata": {"path": str(clone / "notebooks")}},
    )
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    guise = {
        "COLAB_RELEASE_TAG": "release-colab-check",
        "PYTHONPATH": str(clone / "tests" / "fakes"),  # google.colab
        "AUTOQUANT_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "MPLBACKEND": "",
        "PIP_NO_CACHE_DIR": "1",  # a wheel that was compiled before is none that Colab has
        "PATH": os.pathsep.join([str(env / "bin"), os.environ["PATH"]]),
    }
    try:
        client.execute(env={**given, **guise})
    finally:
        nbformat.write(notebook, folder / "executed.ipynb")
    return notebook


def said(notebook: Any, cell_id: str) -> str:
    """The text that a cell has shown."""
    outputs = next(cell.outputs for cell in notebook.cells if cell.id == cell_id)
    data = [one.get("text", "") + str(one.get("data", {}).get("text/plain", "")) for one in outputs]
    return "".join(data)


def main() -> None:
    """Make the environment, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="")
    parser.add_argument("--torch", default="")
    asked = parser.parse_args()
    folder, began = asked.folder.resolve(), time.monotonic()
    env, before = folder / "env", folder / "env-before.json"
    program = asked.python or python()
    make(env, program, asked.torch)
    shipped = freeze(env)
    before.write_text(json.dumps(shipped, indent=1))
    version = subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stdout
    print(f"{version.strip()}, {PUBLISHED.name}; torch {shipped['torch']}", flush=True)
    copy(folder / "clone")
    for name in ("cache", "hf"):
        shutil.rmtree(folder / name, ignore_errors=True)
    notebook = execute(folder, env)
    for cell_id in ("install", "run", "files", "check"):
        print(f"--- {cell_id}\n{said(notebook, cell_id).strip()}")
    after = freeze(env)
    wrong = [
        f"{one} {shipped[one]} became {after.get(one)}"
        for one in shipped
        if after.get(one) != shipped[one]
    ]
    table = said(notebook, "run")
    wrong += [f"no row of {one}" for one in METHODS if not re.search(rf"^{one} ", table, re.M)]
    print(f"--- added: {', '.join(f'{one} {after[one]}' for one in after if one not in shipped)}")
    print(f"--- {time.monotonic() - began:.0f} s")
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
