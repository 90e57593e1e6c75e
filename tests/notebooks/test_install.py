"""The install cell itself, in an interpreter that has nothing, with a pip that only writes down
what it is asked. A GPU, its driver's tool and its libraries are made up too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import packaging
import pytest
from packaging.version import InvalidVersion, Version

from autoquant.core.version import __version__
from autoquant.notebook import installing
from tests.notebooks.running import FOLDER, ROOT

# FAIL: words with which it fails. LOADS: the index ("" for a compiled one) of the llama_cpp that
# can be imported. MAKES: the folder of the package that it installs
PIP = """
import json, os, pathlib, sys, sysconfig
words = sys.argv[1:]
kept = ""
if "--constraint" in words:
    kept = pathlib.Path(words[words.index("--constraint") + 1]).read_text()
with open(os.environ["SEEN"], "a") as file:
    file.write(json.dumps([words, kept]) + "\\n")
if os.environ.get("FAIL", "nothing") in " ".join(words):
    sys.exit("ERROR: no matching distribution")
site = pathlib.Path(sysconfig.get_path("purelib"))
if "--no-deps" in words and "--only-binary" not in words:
    if "MAKES" in os.environ:
        (site / "autoquant").symlink_to(os.environ["MAKES"])
    info = site / "autoquant_notebooks-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(os.environ["METADATA"])
index = next((one.rpartition("/")[2] for one in words if one.startswith("https://abetlen")), None)
if index is not None or "--no-binary" in words:
    good = (index or "") == os.environ.get("LOADS", "")
    said = "" if good else "raise OSError('libcudart.so.12: no such file')"
    (site / "llama_cpp.py").write_text(said)
    print("Downloading llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl (60.1 MB)")
    print("Requirement already satisfied: numpy")
"""
METADATA = """Metadata-Version: 2.1
Name: autoquant-notebooks
Version: 0.1.0
Requires-Dist: torch>=2.6
Requires-Dist: pyparsing>=3.3
Requires-Dist: jinja2>=3.1
Requires-Dist: ipywidgets>=7.7.1; extra == "notebook"
Requires-Dist: llama-cpp-python==0.3.36; extra == "gguf"
Requires-Dist: gptqmodel==7.6.0; extra == "gptq"
"""
LESSON, GGUF = "01_Introduction_to_Quantization", "02_GGUF_llama_cpp"


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
    (site / "packaging").symlink_to(packaging.__path__[0])
    for folder, name, version in (
        ("first", "pyparsing", "3.3.3"),
        ("second", "pyparsing", "3.1.1"),
        ("second", "distro-info", "1.1build1"),
        ("second", "torch", "2.11.0+cu128"),
    ):
        _there(tmp_path / folder, name, version)
    return tmp_path


def _there(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def gpu(bare: Path) -> dict[str, str]:
    """Variables of a machine whose driver runs CUDA 12.8, with the libraries of CUDA 12."""
    tool = bare / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '| Driver Version: 570.1   CUDA Version: 12.8 |'\n")
    tool.chmod(0o755)
    for name in ("libcudart.so.12", "libcublas.so.12"):
        subprocess.run(["cc", "-shared", "-x", "c", "/dev/null", "-o", bare / name], check=True)
    return {"LD_LIBRARY_PATH": str(bare)}


def install(bare: Path, name: str, **env: str) -> subprocess.CompletedProcess[str]:
    source = next(
        cell.source
        for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
        if cell.id == "install"
    )
    path = os.pathsep.join(str(bare / folder) for folder in ("first", "second"))
    given = {
        "PATH": f"{bare}:{os.environ['PATH']}",
        "PYTHONPATH": path,
        "SEEN": str(bare / "seen"),
        "MAKES": str(ROOT / "autoquant"),
        "METADATA": METADATA,
        **env,
    }
    return subprocess.run(
        [str(bare / "venv/bin/python"), "-c", source],
        env=given,
        cwd=bare,
        capture_output=True,
        text=True,
        check=False,
    )


def seen(bare: Path) -> list[tuple[list[str], str]]:
    return [tuple(json.loads(line)) for line in (bare / "seen").read_text().splitlines()]


def test_it_holds_what_is_there_once_and_takes_its_own_release(bare: Path) -> None:
    done = install(bare, LESSON)
    assert f"AutoQuant {__version__} is ready" in done.stdout, done.stderr
    (itself, _), (words, kept) = seen(bare)
    assert itself[-1].startswith("git+https://")
    assert itself[-1].endswith(f"@v{__version__}"), "not whatever its repository has today"
    assert words[-2:] == ["jinja2>=3.1", "ipywidgets>=7.7.1"], "what is not there"
    assert kept.splitlines().count("pyparsing==3.3.3") == 1
    assert "3.1.1" not in kept, "the one that Python does not import: two pins could not be met"
    assert "torch==2.11.0+cu128" in kept.splitlines()
    assert "autoquant" not in kept
    assert "distro-info" not in kept, (
        "Ubuntu's, whose version pip refuses: it would refuse the whole file"
    )
    assert "packages: jinja2, ipywidgets" in done.stdout
    assert "reload this page once" in done.stdout


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
    assert [one for one in good + bad if installing.VALID.fullmatch(one)] == good


def test_the_flags_are_the_makefiles_and_the_requirements_are_read() -> None:
    line = next(
        one for one in (ROOT / "Makefile").read_text().splitlines() if "CMAKE_ARGS ?=" in one
    )
    assert line.partition("?= ")[2] == installing.FLAGS
    asked = installing.wanted(["notebook", "gguf"])
    assert asked[installing.LLAMA].startswith("llama-cpp-python==")
    assert {"ipywidgets", "huggingface-hub", "sentencepiece"} <= set(asked)
    assert "gptqmodel" not in asked
    assert installing.too_old(installing.installed(), asked) == []


def test_llama_cpp_comes_as_a_wheel_first_and_one_that_does_not_load_is_taken_away(
    bare: Path,
) -> None:
    done = install(bare, GGUF)
    asked = [words for words, _ in seen(bare)][2:]
    assert "--only-binary" in asked[0]
    assert "--no-deps" in asked[0], "nothing else comes from that index"
    assert asked[0][-2].endswith("/whl/cpu")
    assert asked[2][0] == "uninstall", "import llama_cpp failed"
    assert asked[3][-3:-1] == ["--no-binary", "llama-cpp-python"]
    assert "Downloading llama_cpp_python-0.3.36" in done.stdout
    assert "already satisfied" not in done.stdout
    assert "not taken: it does not load (OSError: libcudart.so.12: no such file)" in done.stdout
    assert "compiling it, since it does not load" in done.stdout
    assert "RuntimeError" in done.stderr, "this Python cannot set gguf up: said, not passed over"


@pytest.mark.parametrize(
    ("refused", "loads", "indexes"),
    [
        ("nothing", "cu125", ["cu125"]),
        ("whl/cu125", "cpu", ["cu125", "cpu"]),  # it is not there
        ("nothing", "cpu", ["cu125", "cpu"]),  # it does not load
        ("https://abetlen", "", ["cu125", "cpu", ""]),  # the index cannot be reached: compiled
    ],
)
def test_on_a_gpu_runtime_a_build_with_cuda_is_taken_where_there_is_one(
    refused: str, loads: str, indexes: list[str], bare: Path, gpu: dict[str, str]
) -> None:
    done = install(bare, GGUF, **gpu, FAIL=refused, LOADS=loads)
    tried = [
        next((one.rpartition("/")[2] for one in words if one.startswith("https://")), "")
        for words, _ in seen(bare)[2:]
        if "--only-binary" in words or "--no-binary" in words
    ]
    assert tried == indexes, done.stdout
    assert "looking for a build for CUDA 12.5" in done.stdout
    assert ("not taken: " in done.stdout) == (len(indexes) > 1)
    assert ("5 to 15 minutes" in done.stdout) == ("" in indexes)


def test_a_gpu_without_cudas_libraries_is_said(bare: Path, gpu: dict[str, str]) -> None:
    done = install(bare, GGUF, LOADS="cpu")
    assert (
        "not for the GPU, since the driver runs CUDA 12.8, whose libraries are not" in done.stdout
    )
    assert gpu


def test_a_failure_is_loud(bare: Path) -> None:
    done = install(bare, "03_GPTQ", FAIL="jinja2")
    assert done.returncode != 0
    assert "RuntimeError: AutoQuant could not be installed: the lines above say why" in done.stderr
    assert "ERROR: no matching distribution" in done.stdout
    assert "use a fresh environment" in " ".join(done.stdout.split())


def test_what_is_too_old_is_said_before_anything_is_installed(bare: Path) -> None:
    _there(bare / "first", "jinja2", "2.9")
    done = install(bare, LESSON)
    assert "jinja2 2.9 is installed, and AutoQuant needs jinja2>=3.1" in done.stdout
    assert "RuntimeError" in done.stderr
    assert len(seen(bare)) == 1, "itself alone"


def test_beside_a_clone_it_takes_the_clone(bare: Path) -> None:
    (bare / "autoquant").mkdir()
    (bare / "autoquant" / "cli.py").write_text("")
    install(bare, LESSON)
    assert seen(bare)[0][0][-2:] == ["--editable", str(bare)], "git pull is followed"


def test_a_linked_clone_can_be_imported_in_the_same_kernel(bare: Path) -> None:
    (site,) = (bare / "venv").glob("lib/python3*/site-packages")
    (site / "pip" / "__main__.py").write_text("")  # links: nothing that this kernel would see
    (bare / "autoquant" / "notebook").mkdir(parents=True)
    for name in ("cli.py", "__init__.py", "notebook/__init__.py", "notebook/installing.py"):
        (bare / "autoquant" / name).write_text("__version__ = 'cloned'")
    done = install(bare, LESSON)
    assert "AutoQuant cloned is ready" in done.stdout, done.stderr
