"""Every method, written out by hand. Adding one: a file here, a line in METHODS, a notebook, a
CHANGELOG line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoquant.core.options import MethodOptions

if TYPE_CHECKING:
    from autoquant.core.journal import RunFolder
    from autoquant.core.records import Artifact, Plan, RunRecord, Snapshot, Source


@dataclass(frozen=True)
class Made:
    """What a method hands back: its artifacts, the unquantized file if one lies around until the
    run ends, and files to go with the artifacts.
    """

    artifacts: tuple[Artifact, ...]
    unquantized: Path | None
    provenance: dict[str, Any]
    extras: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What somebody asks who chooses a method: a row of the table of all methods (``autoquant
    methods``, docs/methods.md).

    ``bits`` a weight that are offered; ``calibration``: whether it looks at text;
    ``gpu_to_quantize`` and ``gpu_to_run``: whether it needs one; ``runtimes`` that load the files.
    The table's figures are in measured.json, which ``bench/methods.py`` writes.
    """

    bits: str
    calibration: str
    gpu_to_quantize: str
    gpu_to_run: str
    runtimes: str


@dataclass(frozen=True)
class Beside:
    """What a method's notebook makes beside a run, to set quality against size: names by
    ``default``; ``read`` gives a name as it is written, or raises ValueError or InputError;
    ``kind`` is what they are.
    """

    default: tuple[str, ...]
    read: Callable[[str], str]
    kind: str


def one_of(*allowed: str) -> Callable[[str], str]:
    """For :class:`Beside`: a name that is one of a few."""

    def read(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"{value!r} is not allowed; allowed: {', '.join(allowed)}")
        return value

    return read


@dataclass(frozen=True)
class Method:
    """All the rest of the package knows about a method.

    ``kind`` is how its artifacts are run for measuring: "gguf" (llama.cpp) or "folder"
    (transformers). ``settle`` fills in what options leave to the source; ``check`` looks at the
    options against the source and raises InputError within a second; ``plan`` takes some seconds;
    ``quantize`` works. ``variants`` are the artifact types that options will make. ``demo`` are the
    options that suit the embedded model, ``survey`` gives those that make a plan show everything,
    beside the ones that are given. ``environment`` are the worker processes' variables. ``machine``
    refuses a machine that cannot do it, unless the run's folder has all that is asked for.
    ``lighter`` are defaults of its notebook, where its own would keep a CPU busy for long: Run All
    is a try. ``beside`` is what the notebook makes beside a run. ``facts`` are for the table of all
    methods. ``prepare`` fetches beforehand what the method needs beside its packages, with a log of
    its own.
    """

    name: str
    title: str
    summary: str
    facts: Facts
    options: type[MethodOptions]
    kind: Literal["gguf", "folder"]
    library_name: str
    demo: dict[str, Any]
    variants: Callable[[Any], Sequence[str]]
    settle: Callable[[Source, Any], Any]
    check: Callable[[Source, Any], None]
    plan: Callable[[Source, Any, Path], Plan]
    quantize: Callable[[Snapshot, Any, RunFolder], Made]
    environment: Callable[[Any], dict[str, str]]
    who_for: Callable[[str], str]
    how_to_run: Callable[[RunRecord], str]
    folder_suffix: Callable[[Any], str]
    packages: Sequence[str]
    prepare: Callable[[Path], None]
    machine: Callable[[Any, Path], None] = lambda options, folder: None
    survey: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda given: {}
    lighter: Mapping[str, Any] = field(default_factory=dict)
    beside: Beside | None = None


def _methods() -> dict[str, Method]:
    from autoquant.methods import awq, bitsandbytes, exl2, gguf, gptq, hqq, w8a8

    return {
        method.name: method
        for method in (
            gguf.METHOD,
            gptq.METHOD,
            exl2.METHOD,
            awq.METHOD,
            hqq.METHOD,
            bitsandbytes.METHOD,
            w8a8.METHOD,
        )
    }


METHODS = _methods()
