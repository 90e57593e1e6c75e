"""The install cell's work: what AutoQuant and some methods need, installed beside what is there,
and said as it happens.

Runs in an interpreter of its own, ``python -m autoquant.notebook.installing gguf gptq``, right
after this package was installed without what it depends on: so it imports the standard library
alone.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PACKAGE, LLAMA = "autoquant-notebooks", "llama-cpp-python"
# the llama-cpp-python project's own indexes of wheels, and the CUDA releases that it builds for
WHEELS = "https://abetlen.github.io/llama-cpp-python/whl"
CUDA = ((11, 8), (12, 1), (12, 2), (12, 3), (12, 4), (12, 5), (13, 0), (13, 2))
# the lean build: libllama only, for any x86-64 processor with AVX2 (as in the Makefile)
FLAGS = (
    "-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
    " -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF"
)
FRESH = "use a fresh environment: `make notebook`, or python -m venv"
WIDTH = 92  # letters in a line of a notebook's page
SAID = re.compile(  # of pip's lines; it says itself every minute that a wheel is still being built
    r"\s*(Downloading (?!.*\.metadata)|Building wheel|Installing collected|ERROR|error:)"
)
# versions by https://packaging.python.org/en/latest/specifications/version-specifiers/, but for the
# rare epoch and v in front
VALID = re.compile(
    r"\d+(\.\d+)*([._-]?(a|b|c|rc|alpha|beta|pre|preview)[._-]?\d*)?"
    r"(-\d+|[._-]?(post|rev|r)[._-]?\d*)?([._-]?dev[._-]?\d*)?(\+[a-z\d]+([._-][a-z\d]+)*)?",
    re.IGNORECASE,
)


class Failed(Exception):
    """What could not be installed, in lines for a reader of the notebook."""


def say(text: str) -> None:
    """Lines, at once; long ones broken between words, where the page would break them anywhere."""
    for line in text.split("\n"):
        words = line.lstrip()
        margin = line[: len(line) - len(words)]
        broken = textwrap.fill(
            words,
            WIDTH,
            initial_indent=margin,
            subsequent_indent=f"{margin}    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        sys.stdout.write(f"{broken}\n")
    sys.stdout.flush()


def normal(name: str) -> str:
    """A package's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """The version of each package: of several the one that Python imports, which comes first."""
    found: dict[str, str] = {}
    for one in importlib.metadata.distributions():
        found.setdefault(normal(one.name or ""), one.version or "")
    return found


def wanted(extras: Iterable[str]) -> dict[str, str]:
    """What this package's metadata ask for, with what some extras do: requirements by name."""
    found = {}
    for one in importlib.metadata.requires(PACKAGE) or ():
        text, _, marker = (part.strip() for part in one.partition(";"))
        extra = re.fullmatch(r"extra == ['\"](.+)['\"]", marker)
        if not marker or (extra and extra[1] in extras):
            found[normal(re.split(r"[^\w.-]", text)[0])] = text
    return found


def too_old(there: Mapping[str, str], asked: Mapping[str, str]) -> list[str]:
    """Lines for the packages that are there in a version which this package cannot use."""
    try:
        requirements: Any = importlib.import_module("packaging.requirements")
    except ImportError:
        requirements = importlib.import_module("pip._vendor.packaging.requirements")
    return [
        f"{name} {there[name]} is installed, and AutoQuant needs {text}"
        for name, text in asked.items()
        if name in there
        and not requirements.Requirement(text).specifier.contains(there[name], prereleases=True)
    ]


def run(words: list[str], env: Mapping[str, str] | None = None) -> tuple[bool, str]:
    """Run a command, with what it says worth reading shown as it comes: whether it ended well, and
    the end of all that it said.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
    )
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        if words[1:3] != ["-m", "pip"]:
            say(f"    {line.strip()}")
        elif SAID.match(line):
            say(f"    {line.strip()[:150]}")
    well = process.wait() == 0
    if well and (seconds := time.monotonic() - began) > 5:
        say(f"    done in {seconds:.0f} s")
    return well, "".join(lines[-30:])


def pip(command: str, *words: str) -> list[str]:
    """A command of this interpreter's pip."""
    return [sys.executable, "-m", "pip", command, "--disable-pip-version-check", *words]


def packages(parts: Iterable[str], kept: Path) -> None:
    """Install what is missing. ``kept`` becomes the constraints by which nothing that is there is
    changed. Raises Failed.
    """
    there = installed()
    asked = wanted(["notebook", *(["gguf"] if "gguf" in parts else [])])
    if old := too_old(there, asked):
        raise Failed("\n".join([*old, f"This cell changes no installed package: {FRESH}."]))
    kept.write_text(
        "\n".join(
            f"{name}=={version}"
            for name, version in there.items()
            if name and name != PACKAGE and VALID.fullmatch(version)  # some of Ubuntu's are not
        )
    )
    missing = {name: text for name, text in asked.items() if name not in there}
    llama = missing.pop(LLAMA, "")
    if missing:
        say(f"packages: {', '.join(missing)}")
        well, told = run(pip("install", "--constraint", str(kept), *missing.values()))
        if not well:
            raise Failed(f"{told}\nIf installed packages are too old for AutoQuant, {FRESH}.")
    if llama:
        llama_cpp(llama, kept)


def cuda() -> tuple[str, str]:
    """The part of an index's address for the GPU of this machine ("cu125"), and why there is none:
    the newest CUDA release that the driver runs and whose libraries can be loaded. Both are empty
    without a GPU.
    """
    tool = shutil.which("nvidia-smi")
    told = subprocess.run([tool], capture_output=True, text=True, check=False) if tool else None
    found = re.search(r"CUDA[\w ]*Version: *(\d+)\.(\d+)", told.stdout) if told else None
    if found is None:
        return "", ""
    driver = (int(found[1]), int(found[2]))
    for release in reversed(CUDA):
        if release <= driver and loads_cuda(release[0]):
            return f"cu{release[0]}{release[1]}", ""
    return "", f"the driver runs CUDA {found[1]}.{found[2]}, whose libraries are not found"


def loads_cuda(major: int) -> bool:
    """Whether CUDA's runtime libraries of a release are where the loader looks."""
    try:
        for name in ("cudart", "cublas"):
            ctypes.CDLL(f"lib{name}.so.{'11.0' if (name, major) == ('cudart', 11) else major}")
    except OSError:
        return False
    return True


def llama_cpp(requirement: str, kept: Path) -> None:
    """Install llama.cpp: a wheel of the llama-cpp-python project, for the GPU if there is one;
    where none can be had or loaded, compiled here. Raises Failed.
    """
    held = pip("install", "--constraint", str(kept))
    release, why = cuda()
    if why:
        say(f"llama.cpp: not for the GPU, since {why}")
    for index in filter(None, (release, "cpu")):
        said = f"CUDA {index[2:-1]}.{index[-1]}" if index != "cpu" else "processors"
        say(f"llama.cpp: looking for a build for {said}")
        # without what it depends on: nothing else is taken from that index
        only = ["--no-deps", "--only-binary", LLAMA, "--retries", "1", "--timeout", "20"]
        well, told = run([*held, *only, "--extra-index-url", f"{WHEELS}/{index}", requirement])
        if not well:
            why = f"there is none that pip can have ({last(told)})"
        else:
            well, told = run([*held, requirement])
            why = last(told)
            if well and not (why := broken()):
                return
            run(pip("uninstall", "--yes", LLAMA))
            why = f"it does not load ({why})"
        say(f"    not taken: {why}")
    say(f"llama.cpp: compiling it, since {why}. Once; 5 to 15 minutes on two cores")
    well, told = run([*held, "--no-binary", LLAMA, requirement], {"CMAKE_ARGS": FLAGS})
    if not well or (told := broken()):
        raise Failed(f"{told}\nllama.cpp could not be compiled; that needs a C++ compiler.")


def broken() -> str:
    """Why llama.cpp cannot be imported; empty if it can."""
    words = [sys.executable, "-c", "import llama_cpp"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return (last(done.stderr) or "it fails") if done.returncode else ""


def last(told: str) -> str:
    """The last line of what a program said."""
    lines = [line for line in told.splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("ERROR: ")[:200] if lines else ""


def main(parts: list[str]) -> int:
    """Install for some methods. Exit status 1, after lines that say why, if it does not work."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            packages(parts, Path(scratch) / "kept.txt")
        for part in parts:
            well, told = run([sys.executable, "-m", "autoquant.cli", "setup", part])
            if not well:
                raise Failed(last(told))
    except Failed as failure:
        say(str(failure))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
