"""What exllamav2 and exllamav3 share: a machine that is looked at before a model is downloaded, a
CUDA extension that is compiled once, and programs of their own whose exit status is not believed.
"""

from __future__ import annotations

import logging
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from autoquant.core.errors import InputError, OutOfMemory, ProcessFailed
from autoquant.core.progress import Bar
from autoquant.runtime import environments, process

log = logging.getLogger(__name__)


class Environment(ABC):
    """What a library needs of a machine: a GPU that it knows, and its extension, prebuilt or to be
    compiled.
    """

    library: ClassVar[str]
    """Its package."""
    method: ClassVar[str]
    """The method that uses it, and the extra of this package that has it."""
    room: ClassVar[int]
    """Bytes for the compiled extension and what lies around while it is compiled."""
    variables: ClassVar[Mapping[str, str]]
    """What its processes are told."""

    @abstractmethod
    def lacks(self, machine: Mapping[str, Any]) -> str:
        """Why its kernels do not run on a machine that has a GPU; empty if they do."""

    @abstractmethod
    def otherwise(self, machine: Mapping[str, Any]) -> str:
        """How to have its extension without compiling it, as the end of a sentence."""

    @abstractmethod
    def compiling(self, machine: Mapping[str, Any]) -> str:
        """What is said before it is compiled."""

    def refusal(self, machine: Mapping[str, Any]) -> str:
        """Why files cannot be made on a machine, as :meth:`look` saw it; empty if they can."""
        if not machine["gpu"]:
            return (
                f"{self.method}: {self.library} quantizes on an NVIDIA (or AMD) GPU only, and torch"
                " finds none here; nothing was downloaded. In Colab: Runtime, Change runtime type,"
                " T4 GPU. Without a GPU take gguf, or gptq and awq, which work on a CPU too"
            )
        lacks = self.lacks(machine)
        if lacks or machine["extension"] or machine["compiled"]:
            return lacks
        tools = {
            "nvcc (of the CUDA toolkit; set CUDA_HOME if it is in an unusual place)": "nvcc",
            "C++ compiler (g++)": "compiler",
        }
        missing = [name for name, one in tools.items() if not machine[one]]
        if missing:
            return (
                f"{self.method}: {self.library} must compile its CUDA extension here, and there is"
                f" no {' and no '.join(missing)}: install it{self.otherwise(machine)}"
            )
        if machine["disk"] < self.room:
            return (
                f"{self.method}: compiling {self.library}'s extension needs about"
                f" {self.room >> 30} GB under ~/.cache/torch_extensions;"
                f" {machine['disk'] / 1e9:.1f} GB are free"
            )
        return ""

    def _worker(self, name: str) -> str:
        return f"autoquant.backends.{self.library}.gpu:{name}"

    def look(self) -> dict[str, Any]:
        """What the library's gpu module sees, from a process of its own."""
        with tempfile.TemporaryDirectory() as scratch:
            return dict(process.call(self._worker("look"), log=Path(scratch) / "log"))

    def check(self) -> None:
        """Refuse a machine that cannot make files, and say what will take time. Nothing is
        installed. Raises InputError.
        """
        machine = self.look()
        reason = self.refusal(machine)
        if reason:
            raise InputError(reason)
        if not environments.here(self.method):
            environments.refuse(self.method)
        if not (machine["extension"] or machine["compiled"]):
            log.warning("%s", self.compiling(machine))

    def interpreter(self, logs: Path) -> str:
        """The interpreter that has the library: this one (""), or that of an overlay, which is made
        on first use.
        """
        return environments.beside(self.method, logs)

    def ready(self, logs: Path) -> str:
        """The same with the extension compiled. Raises InputError where a machine cannot."""
        machine = self.look()
        said = self.refusal(machine)
        if said:
            raise InputError(said)
        python = self.interpreter(logs)
        if not (machine["extension"] or machine["compiled"]):
            self.build(python, logs)
        return python

    def prepare(self, logs: Path) -> str:
        """Install the library if it is not here and compile its extension if that is due. On a
        machine that it refuses nothing is done; returns why.
        """
        reason = self.refusal(self.look())
        if not reason:
            self.build(self.interpreter(logs), logs)
        return reason

    def build(self, python: str, logs: Path) -> None:
        """Have the extension compiled. Raises ProcessFailed with the compiler's last lines."""
        try:
            with Bar(f"{self.library}'s extension"):
                process.call(
                    self._worker("build"), log=logs, env=dict(self.variables), python=python
                )
        except ProcessFailed as failure:
            raise ProcessFailed(
                f"{self.library} cannot be loaded, or its extension not compiled: {failure}"
            ) from None


def start(
    name: str,
    words: Sequence[str],
    *,
    logs: Path,
    variables: Mapping[str, str],
    heard: Callable[[str], None] | None = None,
    memory: str,
) -> None:
    """Run one of their programs to its end; ``name`` is what errors call it, ``heard`` gets its
    lines, ``memory`` is what to do when the GPU's is not enough. Raises ProcessFailed; OutOfMemory
    for the GPU's memory.
    """
    begin = logs.stat().st_size if logs.exists() else 0
    try:
        process.run(words, log=logs, env=dict(variables), on_line=heard, name=name)
    except ProcessFailed:
        with open(logs, "rb") as file:
            file.seek(begin)
            said = file.read()
        if b"OutOfMemoryError" in said or b"CUDA out of memory" in said:
            failure = OutOfMemory(
                f"out of memory on the GPU in {name}. To go on, {memory}; what is finished is kept"
            )
            failure.where = "out of memory on the GPU"
            raise failure from None
        raise


def unfinished(name: str, logs: Path) -> ProcessFailed:
    """The error of a program that said nothing is wrong and left nothing whole."""
    return ProcessFailed(
        f"{name} exited with status 0 but did not finish. Log: {logs}. Its end:"
        f" {process.tail(logs)}"
    )
