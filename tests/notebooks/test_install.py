"""The install cell itself, in an interpreter that has nothing, with a pip that only writes down
what it is asked.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from packaging.version import InvalidVersion, Version

from tests.notebooks.running import FOLDER
from tools.sync_notebooks import VALID

PIP = """
import json, os, pathlib, sys, sysconfig
words = sys.argv[1:]
kept = ""
if "--constraint" in words:
    kept = pathlib.Path(words[words.index("--constraint") + 1]).read_text()
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
    """An interpreter with two versions of one package on its path, as in Colab, where Ubuntu's lie
    behind its own.
    """
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True
    )
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    (site / "pip").mkdir()
    (site / "pip" / "__main__.py").write_text(PIP)
    for folder, name, version in (
        ("first", "pyparsing", "3.3.3"),
        ("second", "pyparsing", "3.1.1"),
        ("second", "distro-info", "1.1build1"),
        ("second", "torch", "2.11.0+cu128"),
    ):
        info = tmp_path / folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return tmp_path


def install(bare: Path, name: str, **env: str) -> subprocess.CompletedProcess[str]:
    source = next(
        cell.source
        for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
        if cell.id == "install"
    )
    path = os.pathsep.join(str(bare / folder) for folder in ("first", "second"))
    return subprocess.run(
        [str(bare / "venv/bin/python"), "-c", source],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "SEEN": str(bare / "seen"), **env},
        cwd=bare,
        capture_output=True,
        text=True,
        check=False,
    )


def seen(bare: Path) -> list[tuple[list[str], str]]:
    return [tuple(json.loads(line)) for line in (bare / "seen").read_text().splitlines()]


def test_it_holds_what_is_there_once(bare: Path) -> None:
    done = install(bare, "01_Introduction_to_Quantization")
    assert "AutoQuant new is ready" in done.stdout, done.stderr
    ((words, kept),) = seen(bare)
    assert words[-1].startswith("autoquant-notebooks[notebook] @ git+https://")
    assert kept.splitlines().count("pyparsing==3.3.3") == 1
    assert "3.1.1" not in kept, "the one that Python does not import: two pins could not be met"
    assert "torch==2.11.0+cu128" in kept.splitlines()
    assert "distro-info" not in kept, (
        "Ubuntu's, whose version pip refuses: it would refuse the whole file"
    )


def test_what_counts_as_a_version_is_what_pip_takes() -> None:
    good = [
        "1",
        "1.0",
        "2026.1.3",
        "1.0rc1",
        "1.0.0-beta.1",
        "1.0.post1",
        "1.0-1",
        "4.0.dev20260101",
        "2.11.0+cu128",
        "0.2.8.post1",
        "1.0a1.dev3+local.1",
    ]
    bad = ["", "1.1build1", "unknown", "1.0ubuntu2", "2.4.6-1ubuntu1", "1.0~rc1", "1..0", "None"]
    for version in good + bad:
        try:
            Version(version)
        except InvalidVersion:
            assert version in bad
        else:
            assert version in good
    assert [one for one in good + bad if re.fullmatch(VALID, one, re.IGNORECASE)] == good


def test_llama_cpp_comes_as_a_wheel_first_and_one_that_does_not_load_is_taken_away(
    bare: Path,
) -> None:
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
    assert "use a fresh environment" in done.stderr


def test_beside_a_clone_it_takes_the_clone(bare: Path) -> None:
    (bare / "autoquant").mkdir()
    (bare / "autoquant" / "cli.py").write_text("")
    install(bare, "01_Introduction_to_Quantization")
    assert seen(bare)[0][0][-2:] == ["--editable", f"{bare}[notebook]"], "git pull is followed"


def test_a_linked_clone_can_be_imported_in_the_same_kernel(bare: Path) -> None:
    (site,) = (bare / "venv").glob("lib/python3*/site-packages")
    (site / "pip" / "__main__.py").write_text("")  # links: nothing that this kernel would see
    (bare / "autoquant").mkdir()
    for name in ("cli.py", "__init__.py"):
        (bare / "autoquant" / name).write_text("__version__ = 'cloned'")
    done = install(bare, "01_Introduction_to_Quantization")
    assert "AutoQuant cloned is ready" in done.stdout, done.stderr
