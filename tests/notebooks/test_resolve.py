"""What the install cells ask for, against what Colab ships: it resolves, nothing that is there is
moved, and there are wheels for all but known source packages.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from autoquant.runtime import environments
from tests.notebooks.running import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# no wheels on PyPI: llama.cpp is compiled (or comes as a wheel from its own index); the others are
# pure Python, or a small C extension (PyPcre)
SOURCES = {
    "gguf": {"llama-cpp-python"},
    "gptq": {"gptqmodel", "device-smi", "pypcre", "tokenicer", "logbar", "defuser"},
    "exl2": set(),
    "exl3": set(),
    "hqq": {"hqq"},
    "bitsandbytes": set(),
    "w8a8": set(),
}


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>~!\[; ]", text)[0]).lower()


def _shipped(version: str) -> dict[str, str]:
    lines = (
        (Path(__file__).parent / "colab" / f"python-{version}.txt")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    return {_name(line): line.split("==")[1] for line in lines if line and not line.startswith("#")}


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13"])
@pytest.mark.parametrize("part", ["gguf", "gptq", "exl2", "exl3", "hqq", "bitsandbytes", "w8a8"])
def test_it_resolves_in_colab(part: str, version: str, tmp_path: Path) -> None:
    """Into Colab's own environment, all of whose packages are held; gptq and exl3: overlays, which
    may have other packages, but not these (environments.SHARED).
    """
    shipped = _shipped(version)
    overlay = part in ("gptq", "exl3")
    extras = (part,) if overlay else (part, "notebook")
    held = {name: shipped[_name(name)] for name in environments.SHARED} if overlay else shipped
    (tmp_path / "held.txt").write_text(
        "".join(f"{name}=={number}\n" for name, number in held.items())
    )
    wanted = [
        *PROJECT["dependencies"],
        *(one for extra in extras for one in PROJECT["optional-dependencies"][extra]),
    ]
    (tmp_path / "wanted.txt").write_text("\n".join(wanted) + "\n")
    words = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "--quiet",
        str(tmp_path / "wanted.txt"),
        "--python-version",
        version,
        "--python-platform",
        # Colab's Ubuntu has a newer glibc yet; llguidance, which exllamav3 needs, wants 2.31
        f"x86_64-manylinux_2_{31 if part == 'exl3' else 28}",
        "--constraint",
        str(tmp_path / "held.txt"),
        "--only-binary",
        ":all:",
        *(word for one in SOURCES[part] for word in ("--no-binary", one)),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {
        _name(line): line.split("==")[1].split()[0]
        for line in done.stdout.splitlines()
        if "==" in line and not line.lstrip().startswith("#")
    }
    assert {name: found[name] for name in ("torch", "transformers", "huggingface-hub")} == {
        name: shipped[name] for name in ("torch", "transformers", "huggingface-hub")
    }
    if part == "gptq":
        assert found["gptqmodel"] == "7.6.0"
        assert found["numpy"] != shipped["numpy"], (
            "why it is an overlay: if this fails, GPTQModel could be installed beside Colab's"
            " packages"
        )
