"""The machine: what it is, wheels from a folder, functions in processes of their own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu.children import end, tail
from gpu.extension import headers

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
STAND_INS = TOOLS / "gpu" / "stand_ins"
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "triton",
    "accelerate",
    "exllamav2",
    "gptqmodel",
    "optimum",
    "auto-round",
    "hqq",
    "bitsandbytes",
    "compressed-tensors",
    "datasets",
    "pydantic",
    "pypcre",
)
ENDED = 124  # the status that timeout(1) gives


def versions() -> dict[str, str]:
    """The versions of Python and the libraries that matter, of those that are there."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def facts() -> dict[str, Any]:
    """Card, driver, versions, commit. Looks with torch, so call it in a process of its own."""
    import torch

    found: dict[str, Any] = {
        "versions": versions(),
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "cuda": torch.version.cuda or "",
    }
    found["commit"] = commit()
    if torch.cuda.is_available():
        seen: Any = torch.cuda.get_device_properties(0)
        asked = ["nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError):
            done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
            found["driver"] = done.stdout.strip()
        from torch.utils.cpp_extension import CUDA_HOME

        include = Path(sysconfig.get_path("include")) / "Python.h"
        found |= {
            "card": seen.name,
            "memory": seen.total_memory,
            "toolkit": CUDA_HOME or "",
            "capability": f"{seen.major}.{seen.minor}",
            "Python.h": include.is_file(),
            "headers": headers(CUDA_HOME or ""),
            "ninja": bool(shutil.which("ninja")),
        }
    return found


def commit() -> str:
    """The commit of this tree: GPU_CHECK_COMMIT (a copy may lie in another repository, or seem
    changed), or git's; "" if unknown.
    """
    if os.environ.get("GPU_CHECK_COMMIT"):
        return os.environ["GPU_CHECK_COMMIT"]
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return ""


def install(wheels: Path, target: Path) -> None:
    """Unpack the wheels of a folder below ``target``, without an index. Raises RuntimeError."""
    found = sorted(str(path) for path in wheels.rglob("*.whl"))
    for written in wheels.rglob("commit.txt"):  # a copy of the tree may lack git's folder
        os.environ["GPU_CHECK_COMMIT"] = written.read_text(encoding="utf-8").strip()
    if not found:
        raise RuntimeError(f"there are no wheels in {wheels}")
    words = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--no-cache-dir",
        "--upgrade",
        "--target",
        str(target),
        *found,
    ]
    # settings of this machine (indexes, pins) have no say in what the folder holds
    alone = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_CONSTRAINT": ""}
    done = subprocess.run(words, capture_output=True, text=True, env=alone, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the wheels could not be installed: {done.stderr.strip()[-600:]}")


def search_path(*first: Path | None) -> str:
    """PYTHONPATH for what is started: this tree, the given folders, and what is there already."""
    given = [str(path) for path in first if path is not None]
    before = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    return os.pathsep.join(dict.fromkeys([*given, str(ROOT), *before]))


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def call(target: str, *, limit: float, env: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
    """Call ``module:function`` with JSON-able arguments in a process of its own.

    Returns its JSON-able result. Raises TimeoutError after ``limit`` seconds, RuntimeError with
    the process's last lines if it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log"
        words = [sys.executable, str(TOOLS / "gpu_check.py"), "--call", target, str(answer)]
        with open(log, "wb") as sink:
            child = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
            try:
                child.communicate(json.dumps(kwargs).encode(), timeout=limit)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"not done after {limit:.0f} s: {tail(log)}") from None
            finally:
                if child.poll() is None:
                    end(child)
        if child.returncode != 0 or not answer.is_file():
            raise RuntimeError(f"status {child.returncode}: {tail(log)}")
        sys.stderr.buffer.write(log.read_bytes()[-20_000:])  # into the stage's log
        return json.loads(answer.read_text(encoding="utf-8"))


def at_once(jobs: Mapping[str, Any], workers: int) -> dict[str, Any]:
    """Run functions in threads; name -> result, or the exception it raised."""

    def guarded(job: Any) -> Any:
        try:
            return job()
        except Exception as error:  # noqa: BLE001 (whoever reads the result says what it means)
            return error

    with ThreadPoolExecutor(max_workers=workers) as pool:
        made = {name: pool.submit(guarded, job) for name, job in jobs.items()}
        return {name: future.result() for name, future in made.items()}


def found(made: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A result of :func:`at_once`; raises what the function raised."""
    if isinstance(made[name], Exception):
        raise made[name]
    return dict(made[name])
