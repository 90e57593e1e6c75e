"""What EXL3 needs of a machine, said before a model is downloaded: a GPU that exllamav3 knows, a
torch and CUDA that are new enough, and its extension, prebuilt or to be compiled.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from autoquant.core.errors import InputError, ProcessFailed
from autoquant.core.progress import Bar
from autoquant.runtime import environments, process

log = logging.getLogger(__name__)
# of exllamav3 1.6.5: its metadata ask for this torch, its README for this CUDA; the oldest cards
# its kernels have a path for are Turing's (exllamav3_ext/arch.cuh)
TORCH, CUDA, CAPABILITY = (2, 6), (12, 4), (7, 5)
RELEASES = "https://github.com/turboderp-org/exllamav3/releases"
CHECK = "autoquant.backends.exllamav3.gpu:look"
BUILD = "autoquant.backends.exllamav3.gpu:build"
ROOM = 4 << 30  # bytes for the compiled extension and what lies around while it is compiled
VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def refusal(machine: dict[str, Any]) -> str:
    """Why EXL3 files cannot be made on a machine, as :func:`gpu.look` saw it;
    empty if they can.
    """
    if not machine["gpu"]:
        return (
            "exl3: exllamav3 quantizes on an NVIDIA (or AMD) GPU only, and torch finds none here;"
            " nothing was downloaded. In Colab: Runtime, Change runtime type, T4 GPU. Without a GPU"
            " take gguf, or gptq and awq, which work on a CPU too"
        )
    if not machine["hip"]:
        if tuple(machine["capability"]) < CAPABILITY:
            wanted, seen = (".".join(map(str, one)) for one in (CAPABILITY, machine["capability"]))
            return (
                f"exl3: exllamav3's kernels need an NVIDIA GPU of compute capability {wanted}"
                f" (Turing: T4, RTX 20) or newer, and {machine['name']} has {seen}. Take gguf or"
                " gptq"
            )
        if machine["cuda"] and _release(machine["cuda"]) < CUDA:
            return (
                f"exl3: exllamav3 needs CUDA {'.'.join(map(str, CUDA))} or newer, and torch"
                f" {machine['torch']} here is built for {machine['cuda']}: install a torch of a"
                " newer CUDA (pytorch.org)"
            )
    if _release(machine["torch"]) < TORCH:
        return (
            f"exl3: exllamav3 needs torch {'.'.join(map(str, TORCH))} or newer, and this machine"
            f" has {machine['torch']}: pip install -U torch"
        )
    if machine["extension"] or machine["compiled"]:
        return ""
    missing = [
        name
        for name, there in (
            (
                "nvcc (of the CUDA toolkit; set CUDA_HOME if it is in an unusual place)",
                machine["nvcc"],
            ),
            ("C++ compiler (g++)", machine["compiler"]),
        )
        if not there
    ]
    if missing:
        return (
            "exl3: exllamav3 must compile its CUDA extension here, and there is no"
            f" {' and no '.join(missing)}: install it, or a wheel of exllamav3 for torch"
            f" {machine['torch']} and CUDA {machine['cuda'] or '(none)'} from {RELEASES}, if there"
            " is one"
        )
    if machine["disk"] < ROOM:
        return (
            f"exl3: compiling exllamav3's extension needs about {ROOM >> 30} GB under"
            f" ~/.cache/torch_extensions; {machine['disk'] / 1e9:.1f} GB are free"
        )
    return ""


def look() -> dict[str, Any]:
    """What :func:`autoquant.backends.exllamav3.gpu.look` sees, from a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        return dict(process.call(CHECK, log=Path(scratch) / "log"))


def check() -> None:
    """Refuse a machine that cannot make EXL3 files, and say what will take time. Nothing is
    installed. Raises InputError.
    """
    machine = look()
    reason = refusal(machine)
    if reason:
        raise InputError(reason)
    if not environments.here("exl3"):
        environments.refuse("exl3")
    if not (machine["extension"] or machine["compiled"]):
        log.warning(
            "exllamav3 compiles its CUDA extension first, once: minutes (%s has prebuilt wheels for"
            " some releases of torch and CUDA)",
            RELEASES,
        )


def interpreter(logs: Path) -> str:
    """The interpreter that has exllamav3: this one (""), or that of an overlay, which is made on
    first use.
    """
    return environments.beside("exl3", logs)


def prepare(logs: Path) -> None:
    """Install exllamav3 if it is not here and compile its extension if that is due. Without a GPU
    nothing is done, and why is logged.
    """
    reason = refusal(look())
    if reason:
        log.warning("%s", reason)
        return
    build(interpreter(logs), logs)


def build(python: str, logs: Path) -> None:
    """Have the extension compiled. Raises ProcessFailed with the compiler's last lines."""
    try:
        with Bar("exllamav3's extension"):
            process.call(BUILD, log=logs, env=VARIABLES, python=python)
    except ProcessFailed as failure:
        raise ProcessFailed(
            f"exllamav3 cannot be loaded, or its extension not compiled: {failure}"
        ) from None
