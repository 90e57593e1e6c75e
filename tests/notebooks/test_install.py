"""The install cell itself, in an interpreter that has nothing, with a pip that only writes down what it is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.notebooks.running import FOLDER

PIP = """
import json, os, pathlib, sys, sysconfig
words = sys.argv[1:]
kept = pathlib.Path(words[words.index("--constraint") + 1]).read_text() if "--constraint" in words else ""
with open(os.environ["SEEN"], "a") as file:
    file.write(json.dumps([words, kept]) + "\\n")
if os.environ.get("FAIL"):
    sys.exit("no matching distribution")
package = pathlib.Path(sysconfig.get_path("purelib")) / "autoquant"
package.mkdir(exist_ok=True)
(package / "__init__.py").write_text("__version__ = 'new'")
"""


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """An interpreter with two versions of one package on its path, as in Colab, where Ubuntu's lie behind its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    (site / "pip").mkdir()
    (site / "pip" / "__main__.py").write_text(PIP)
    for folder, version in (("first", "3.3.3"), ("second", "3.1.1")):
        info = tmp_path / folder / f"pyparsing-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pyparsing\nVersion: {version}\n")
    return tmp_path


def install(bare: Path, name: str, **env: str) -> subprocess.CompletedProcess[str]:
    source = next(cell.source for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells if cell.id == "install")
    path = os.pathsep.join(str(bare / folder) for folder in ("first", "second"))
    return subprocess.run([str(bare / "venv/bin/python"), "-c", source], env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "SEEN": str(bare / "seen"), **env}, cwd=bare,
                          capture_output=True, text=True, check=False)


def seen(bare: Path) -> list[tuple[list[str], str]]:
    return [tuple(json.loads(line)) for line in (bare / "seen").read_text().splitlines()]


def test_it_holds_what_is_there_once(bare: Path) -> None:
    done = install(bare, "01_Introduction_to_Quantization")
    assert "AutoQuant new is ready" in done.stdout, done.stderr
    ((words, kept),) = seen(bare)
    assert words[-1].startswith("autoquant-notebooks[notebook] @ git+https://")
    assert kept.splitlines().count("pyparsing==3.3.3") == 1
    assert "3.1.1" not in kept, "the one that Python does not import: two pins could not be met"


def test_llama_cpp_comes_as_a_wheel_first_and_one_that_does_not_load_is_taken_away(bare: Path) -> None:
    done = install(bare, "02_GGUF_llama_cpp")
    asked = [words for words, _ in seen(bare)]
    assert "--only-binary" in asked[0]
    assert asked[1][0] == "uninstall", "import llama_cpp failed"
    assert asked[2][-1].startswith("autoquant-notebooks[gguf,notebook] @ ")
    assert "RuntimeError" in done.stderr, "this autoquant has no setup: said, not passed over"


def test_a_failure_is_loud(bare: Path) -> None:
    done = install(bare, "03_GPTQ", FAIL="1")
    assert done.returncode != 0
    assert "RuntimeError: AutoQuant could not be installed: no matching distribution" in done.stderr


def test_beside_a_clone_it_takes_the_clone(bare: Path) -> None:
    (bare / "autoquant").mkdir()
    (bare / "autoquant" / "forms.py").write_text("")
    install(bare, "01_Introduction_to_Quantization")
    assert seen(bare)[0][0][-1] == f"{bare}[notebook]"
