"""Calls of functions in worker processes, with the variables that methods give theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoquant.backends.exllamav2.environment import EXLLAMAV2
from autoquant.backends.exllamav3.environment import EXLLAMAV3
from autoquant.backends.llamacpp import converter
from autoquant.methods import METHODS
from autoquant.methods.gptq import GptqOptions
from autoquant.runtime import process


def in_worker(target: str, tmp_path: Path, /, **kwargs: Any) -> Any:
    """As methods do that write a folder; ``finding`` names libraries to be found."""
    return process.call(
        target,
        log=tmp_path / "log",
        env={
            **METHODS["gptq"].environment(GptqOptions()),
            **process.finding(kwargs.pop("finding", ())),
        },
        **kwargs,
    )


def in_llama_worker(target: str, tmp_path: Path, /, **kwargs: Any) -> Any:
    """As GGUF does, with llama.cpp's converter and its gguf-py."""
    return process.call(
        target, log=tmp_path / "log", env=converter.environment(converter.locate()), **kwargs
    )


def in_exl2_worker(target: str, tmp_path: Path, /, **kwargs: Any) -> Any:
    """As EXL2 does."""
    return process.call(target, log=tmp_path / "log", env=dict(EXLLAMAV2.variables), **kwargs)


def in_exl3_worker(target: str, tmp_path: Path, /, **kwargs: Any) -> Any:
    """As EXL3 does."""
    return process.call(target, log=tmp_path / "log", env=dict(EXLLAMAV3.variables), **kwargs)
