"""How a method that writes a folder makes it, and the call of its library in a worker."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoquant import calibration
from autoquant.methods.samples import Samples
from autoquant.runtime import environments, process


@dataclass(frozen=True)
class Recipe:
    """How a folder is made, and what it must be.

    ``algorithm`` and ``file_format`` are kept apart: several algorithms write the same format.
    ``settings`` go to the backend's function and into the journal's key; ``wanted`` is what the
    config's quantization block must say; ``bits`` per weight decide how far a layer may move, and
    ``advice`` is what to do if one moves far; ``scaled``: the algorithm scales weights (see
    formats.checks.relative_error). ``samples``: the function is given calibration samples;
    ``arguments`` are further ones that belong to them. ``environment`` is a separate one, of
    runtime.environments.PINS, in place of the method's own. ``facts`` are noted of the artifact.
    """

    target: str
    settings: Mapping[str, Any]
    algorithm: str
    file_format: str
    wanted: Mapping[str, Any]
    bits: int
    advice: str
    samples: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: str = ""
    scaled: bool = False
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def call_backend(
    recipe: Recipe,
    samples: Samples | None,
    *,
    log: Path,
    env: dict[str, str],
    python: str,
    progress: process.Progress,
    **work: Any,
) -> dict[str, Any]:
    """Run the backend's function; what it says of the samples it used."""
    work |= {**recipe.settings, **recipe.arguments}
    if samples and recipe.environment:
        # a library of another time may read the tokenizer otherwise: the samples are packed here
        packing = samples.packing()
        ids = process.call(
            "autoquant.calibration:pack", log=log, env=env, folder=work["model"], **packing
        )
        python = environments.python(recipe.environment, log)
        process.call(
            recipe.target,
            log=log,
            env=env,
            progress=progress,
            python=python,
            fresh=True,
            ids=ids,
            **work,
        )
        return {"samples": len(ids), "calibration sha256": calibration.digest(ids)}
    if samples:
        work["packing"] = samples.packing()
    called = process.call(recipe.target, log=log, env=env, progress=progress, python=python, **work)
    return dict(called)


def cores_for_gptqmodel() -> dict[str, str]:
    """GPTQModel 7.6 fails on two processors unless told how many workers there are."""
    return {"GPTQMODEL_CPU_WORKERS": str(os.cpu_count() or 2)}
