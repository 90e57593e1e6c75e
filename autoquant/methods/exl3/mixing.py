"""Averages between finished bitrates: exllamav3's optimizer measures what each group of layers
gains from more bits, and puts models together from the layers of those bitrates.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoquant.backends.exllamav3 import optimizer
from autoquant.backends.exllamav3.check import NEAR
from autoquant.core.errors import InputError
from autoquant.core.files import key_of, sha256_of
from autoquant.core.machine import memory_available
from autoquant.core.progress import Bar
from autoquant.core.records import Artifact, Source
from autoquant.formats.checkpoint import weight_files
from autoquant.methods.exl3.options import Exl3Options
from autoquant.methods.exl3.work import Work
from autoquant.source.layers import linears, weights_of_blocks

log = logging.getLogger(__name__)


def refuse(options: Exl3Options) -> None:
    """Refuse averages that cannot be mixed of a run's bitrates. Raises InputError."""
    if not options.optimized_bpw:
        return
    least, most = (choose(map(float, options.bpw)) for choose in (min, max))
    if least == most:
        raise InputError(
            f"optimized_bpw: {', '.join(options.optimized_bpw)} is mixed of the layers of two"
            f" bitrates or more, and bpw has {', '.join(options.bpw)} alone. Give bpw one below"
            " and one above"
        )
    for one in options.optimized_bpw:
        if not least < float(one) < most:
            raise InputError(
                f"optimized_bpw: {one} does not lie between {least} and {most}, the smallest and"
                " the largest of bpw; give bpw one below and one above"
            )


def length(source: Source, options: Exl3Options) -> int:
    """Tokens of a sample that is measured."""
    return min(optimizer.LENGTH, options.calibration_length, source.context)


def memory(source: Source, options: Exl3Options, hidden: int) -> tuple[float, int]:
    """What the optimizer is told to keep in memory, in GiB, and how many bytes that comes to."""
    state = 4 * options.measurement_samples * length(source, options) * hidden
    groups = 2 * len(weights_of_blocks(linears(source)))  # each block's attention and MLP
    return optimizer.room(len(options.bpw) - 1, groups, state, memory_available())


def quantize(work: Work, bitrates: Sequence[Artifact]) -> list[Artifact]:
    """Make and verify what the options ask for, from a run's finished bitrates."""
    options = work.options
    inputs = sorted(bitrates, key=lambda one: float(one.facts["bpw"]))
    asked = [
        work.asked,
        [one.type for one in inputs],
        options.measurement_samples,
        length(work.source, options),
    ]
    return [
        work.once(
            type,
            key_of(asked, type),
            functools.partial(_mixed, work, inputs, key_of(asked), type, bits),
        )
        for type, bits in zip(options.optimized, options.optimized_bpw, strict=True)
    ]


def described(mixed: Sequence[Artifact], options: Exl3Options) -> str:
    """What the card says of how they were mixed."""
    counted = (
        f"{one.type} ("
        + ", ".join(f"{count} layers of {bits} bits" for bits, count in one.facts["layers"].items())
        + ")"
        for one in mixed
    )
    return (
        f"{', '.join(counted)}, chosen by the KL divergence that was measured for each group of"
        f" layers on {options.measurement_samples} samples of"
        f" {mixed[0].facts['measured on']} tokens of the text that comes with exllamav3"
    )


def _mixed(work: Work, inputs: Sequence[Artifact], key: str, type: str, bits: str) -> Artifact:
    measured = _measured(work, inputs, key)
    folders, target = _folders(work, inputs), work.run.jobs / f"{type}.model"
    least = inputs[0].facts["codes"]
    optimizer.mix(
        folders,
        measured=work.run.folder / optimizer.NAME,
        # it counts scales, and the option leaves them out as bpw does
        bits=float(bits) + max(0.0, measured["base"]["bpw"] - least),
        target=target,
        python=work.python,
        logs=work.run.logs,
    )
    if _bytes(target) <= _bytes(folders[0]):
        shutil.rmtree(target)
        raise InputError(
            f"optimized_bpw: within {bits} bits exllamav3's optimizer found no layers that are"
            f" worth more than the {least:.2f} bits of {inputs[0].type}; ask for a larger average,"
            " or measure on more samples (measurement_samples)"
        )
    first = inputs[0].facts
    artifact = work.finished(
        type,
        bits,
        target,
        {
            "samples": first["samples"],
            "calibration sha256": first["calibration sha256"],
            "measured on": length(work.source, work.options),
        },
        near=float(bits) - least,
    )
    codes = artifact.facts["codes"]
    if codes >= float(bits) - NEAR:
        return artifact
    useless, groups = optimizer.unhelpful(measured), len(measured["groups"])
    said = (
        f"it has {codes:.2f} bits per weight, asked for {bits}: exllamav3's optimizer found nothing"
        " more to gain within it"
        + (
            f"; in {useless} of {groups} groups of layers more bits lowered nothing that it could"
            " measure"
            if useless
            else ""
        )
    )
    return dataclasses.replace(artifact, notes=(*artifact.notes, said))


def _measured(work: Work, inputs: Sequence[Artifact], key: str) -> dict[str, Any]:
    """The measurement of a run's bitrates; made once, and in the run's folder."""
    place, run = work.run.folder / optimizer.NAME, work.run
    if run.done("measure", key) is None:
        log.info("measuring layers of %s", ", ".join(one.type for one in inputs))
        config = json.loads((work.source.folder / "config.json").read_text(encoding="utf-8"))
        states, _ = memory(work.source, work.options, config["hidden_size"])
        with Bar("measure layers") as progress:
            optimizer.measure(
                _folders(work, inputs),
                [one.type for one in inputs],
                reference=work.model,
                target=place,
                samples=work.options.measurement_samples,
                length=length(work.source, work.options),
                states=states,
                modules=work.modules,
                python=work.python,
                logs=run.logs,
                progress=progress,
            )
        run.record("measure", key, [place], {}, {place.name: sha256_of(place)})
    return dict(json.loads(place.read_text(encoding="utf-8")))


def _folders(work: Work, inputs: Sequence[Artifact]) -> list[Path]:
    return [work.run.folder / one.type for one in inputs]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))
