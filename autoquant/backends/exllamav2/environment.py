"""What EXL2 needs of a machine: a GPU, and exllamav2's extension, prebuilt or to be compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from autoquant.backends import exllama

VERSION = "0.3.2"
# The project's releases have wheels with the extension compiled, for Linux and Windows: torch ->
# CUDA; with Python 3.10 to 3.13. PyPI's wheel has its sources only.
WHEELS = {"2.7": "128", "2.8": "128", "2.9": "128"}
WHEEL_PYTHONS = ((3, 10), (3, 13))
WHEEL = "https://github.com/turboderp-org/exllamav2/releases/download/v{version}/exllamav2-{version}+cu{cuda}.torch{torch}.0-cp{python}-cp{python}-linux_x86_64.whl"


def wheel(torch: str, cuda: str, python: tuple[int, int]) -> str:
    """The address of the prebuilt wheel for a torch release ("2.9.0"), a CUDA release ("12.8") and
    a Python, or nothing if there is none.
    """
    release = ".".join(torch.split(".")[:2])
    built = WHEELS.get(release)
    within = WHEEL_PYTHONS[0] <= python <= WHEEL_PYTHONS[1]
    if built is None or built != cuda.replace(".", "") or not within:
        return ""
    return WHEEL.format(
        version=VERSION, cuda=built, torch=release, python=f"{python[0]}{python[1]}"
    )


class Environment(exllama.Environment):
    """Of exllamav2."""

    library: ClassVar[str] = "exllamav2"
    method: ClassVar[str] = "exl2"
    room: ClassVar[int] = 2 << 30
    variables: ClassVar[Mapping[str, str]] = {
        # without flash-attn or xformers (on a T4) its path through torch's attention lets tokens
        # see those after them
        "EXLLAMA_NO_SDPA": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }

    def lacks(self, machine: Mapping[str, Any]) -> str:
        """Nothing: it runs on every card that torch runs on."""
        return ""

    def otherwise(self, machine: Mapping[str, Any]) -> str:
        """The prebuilt wheel, if there is one."""
        prebuilt = _prebuilt(machine)
        if prebuilt:
            return f"; or take its prebuilt one: pip install {prebuilt}"
        return (
            f". (Prebuilt ones are for torch {', '.join(WHEELS)} with CUDA 12.8, and this machine"
            f" has torch {machine['torch']} and CUDA {machine['cuda'] or '(none)'})"
        )

    def compiling(self, machine: Mapping[str, Any]) -> str:
        """Minutes, or a wheel."""
        prebuilt = _prebuilt(machine)
        wheel = f" (a prebuilt one: pip install {prebuilt})" if prebuilt else ""
        return f"exllamav2 compiles its CUDA extension first: 5 to 10 minutes, once{wheel}"


def _prebuilt(machine: Mapping[str, Any]) -> str:
    python = machine["python"]
    return wheel(machine["torch"], machine["cuda"], (python[0], python[1]))


EXLLAMAV2 = Environment()
