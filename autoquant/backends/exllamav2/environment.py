"""What EXL2 needs of a machine, said before a model is downloaded: a GPU, and exllamav2's
extension, prebuilt or to be compiled.
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
VERSION = "0.3.2"
# The project's releases have wheels with the extension compiled, for Linux and Windows: torch ->
# CUDA; with Python 3.10 to 3.13. PyPI's wheel has its sources only.
WHEELS = {"2.7": "128", "2.8": "128", "2.9": "128"}
WHEEL_PYTHONS = ((3, 10), (3, 13))
WHEEL = "https://github.com/turboderp-org/exllamav2/releases/download/v{version}/exllamav2-{version}+cu{cuda}.torch{torch}.0-cp{python}-cp{python}-linux_x86_64.whl"
CHECK = "autoquant.backends.exllamav2.gpu:look"
BUILD = "autoquant.backends.exllamav2.gpu:build"
ROOM = 2 << 30  # bytes for the compiled extension and what lies around while it is compiled
VARIABLES = {
    # without flash-attn or xformers (on a T4) its path through torch's attention lets tokens see
    # those after them
    "EXLLAMA_NO_SDPA": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


def wheel(torch: str, cuda: str, python: tuple[int, int]) -> str:
    """The address of the prebuilt wheel for a torch release ("2.9.0"), a CUDA release ("12.8") and
    a Python, or nothing if there is none.
    """
    built = WHEELS.get(".".join(torch.split(".")[:2]))
    if (
        built is None
        or built != cuda.replace(".", "")
        or not WHEEL_PYTHONS[0] <= python <= WHEEL_PYTHONS[1]
    ):
        return ""
    return WHEEL.format(
        version=VERSION,
        cuda=built,
        torch=".".join(torch.split(".")[:2]),
        python=f"{python[0]}{python[1]}",
    )


def refusal(machine: dict[str, Any]) -> str:
    """Why EXL2 files cannot be made on a machine, as :func:`gpu.look` saw it;
    empty if they can.
    """
    if not machine["gpu"]:
        return (
            "exl2: exllamav2 quantizes on an NVIDIA (or AMD) GPU only, and torch finds none here;"
            " nothing was downloaded. In Colab: Runtime, Change runtime type, T4 GPU. Without a GPU"
            " take gguf, or gptq and awq, which work on a CPU too"
        )
    if machine["extension"] or machine["compiled"]:
        return ""
    prebuilt = wheel(
        machine["torch"], machine["cuda"], (machine["python"][0], machine["python"][1])
    )
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
        other = (
            f"; or take its prebuilt one: pip install {prebuilt}"
            if prebuilt
            else (
                f". (Prebuilt ones are for torch {', '.join(WHEELS)} with CUDA 12.8, and this"
                f" machine has torch {machine['torch']} and CUDA {machine['cuda'] or '(none)'})"
            )
        )
        return (
            "exl2: exllamav2 must compile its CUDA extension here, and there is no"
            f" {' and no '.join(missing)}: install it{other}"
        )
    if machine["disk"] < ROOM:
        return (
            f"exl2: compiling exllamav2's extension needs about {ROOM >> 30} GB under"
            f" ~/.cache/torch_extensions; {machine['disk'] / 1e9:.1f} GB are free"
        )
    return ""


def look() -> dict[str, Any]:
    """What :func:`autoquant.backends.exllamav2.gpu.look` sees, from a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        return dict(process.call(CHECK, log=Path(scratch) / "log"))


def check() -> None:
    """Refuse a machine that cannot make EXL2 files, and say what will take time. Nothing is
    installed. Raises InputError.
    """
    machine = look()
    reason = refusal(machine)
    if reason:
        raise InputError(reason)
    if not environments.here("exl2"):
        environments.refuse("exl2")
    if not (machine["extension"] or machine["compiled"]):
        prebuilt = wheel(
            machine["torch"], machine["cuda"], (machine["python"][0], machine["python"][1])
        )
        log.warning(
            "exllamav2 compiles its CUDA extension first: 5 to 10 minutes, once%s",
            f" (a prebuilt one: pip install {prebuilt})" if prebuilt else "",
        )


def interpreter(logs: Path) -> str:
    """The interpreter that has exllamav2: this one (""), or that of an overlay, which is made on
    first use.
    """
    return environments.beside("exl2", logs)


def prepare(logs: Path) -> None:
    """Install exllamav2 if it is not here and compile its extension if that is due. Without a GPU
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
        with Bar("exllamav2's extension"):
            process.call(BUILD, log=logs, env=VARIABLES, python=python)
    except ProcessFailed as failure:
        raise ProcessFailed(
            f"exllamav2 cannot be loaded, or its extension not compiled: {failure}"
        ) from None
