"""W8A8: weights and activations of 8 bits, as integers or floating-point numbers, in the
compressed-tensors format that vLLM loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from autoquant import calibration, compressed_format, environments
from autoquant.calibration import CalibrationOptions
from autoquant.core.errors import InputError
from autoquant.core.journal import RunFolder
from autoquant.core.options import option
from autoquant.core.records import Plan, RunRecord, Snapshot, Source
from autoquant.methods import Facts, Made, Method, folders
from autoquant.methods.folders import Recipe

STATIC = "int8-static"
CALIBRATION = tuple(
    name for name in CalibrationOptions.model_fields if name.startswith("calibration")
)


class W8a8Options(CalibrationOptions):
    """The options of W8A8."""

    applies: ClassVar[Mapping[str, str]] = {
        **CalibrationOptions.applies,
        **dict.fromkeys(CALIBRATION, f"scheme={STATIC}"),
    }
    main: ClassVar[tuple[str, ...]] = ("scheme", "calibration", "evaluate", "upload")

    scheme: Literal["int8-dynamic", "int8-static", "fp8-dynamic"] = option(
        "int8-dynamic",
        "int8-dynamic: integers, activations with a scale for each token, found while the model"
        " runs; int8-static: with one scale a layer, found by calibration: quicker to run, worse;"
        " fp8-dynamic: floating point (E4M3), for GPUs from Ada and Hopper on",
    )

    @property
    def type(self) -> str:
        """The artifact's name: the scheme."""
        return self.scheme


def check(source: Source, options: W8a8Options) -> None:
    """What can be refused within a second."""
    if options.scheme != STATIC:
        idle = [
            name
            for name in CALIBRATION
            if getattr(options, name) != W8a8Options.model_fields[name].default
        ]
        if idle:
            raise InputError(
                f"{idle[0]}: has a meaning for scheme {STATIC} only, the others look at no text;"
                f" take scheme='{STATIC}' (--scheme {STATIC}), or leave it out"
            )
    folders.check_source(source, "W8A8")
    calibration.check(options)


def size(source: Source, options: W8a8Options) -> int:
    """The size to be: a byte a weight and 16-bit scales of each layer, and 16 bits for all else."""
    layers = folders.linears(source)
    rest = 2 * (source.parameters - sum(outputs * inputs for outputs, inputs in layers.values()))
    return rest + sum(
        outputs * inputs + 2 * outputs + (2 if options.scheme == STATIC else 0)
        for outputs, inputs in layers.values()
    )


def plan(source: Source, options: W8a8Options, out: Path) -> Plan:
    """The size to be, from the headers alone."""
    check(source, options)
    return folders.plan(
        "w8a8",
        source,
        out,
        type=options.type,
        size=size(source, options),
        memory=folders.memory_whole(source),
    )


def quantize(snapshot: Snapshot, options: W8a8Options, run: RunFolder) -> Made:
    """Quantize (and calibrate, if the scheme is static) and verify, unless the journal knows it as
    done. The run's folder becomes the model's folder.
    """
    format = compressed_format.FORMATS["float" if options.scheme.startswith("fp8") else "int"]
    return folders.quantize(
        snapshot,
        options,
        run,
        Recipe(
            type=options.type,
            target="autoquant.quantizers:w8a8",
            settings={"scheme": options.scheme},
            calibrates=options.scheme == STATIC,
            algorithm=(
                f"rounding to nearest, {options.scheme} (compressed-tensors"
                f" {environments.version('compressed-tensors')})"
            ),
            file_format=f"compressed-tensors ({format})",
            bits=8,
            wanted={
                "quant_method": "compressed-tensors",
                "format": format,
                "quantization_status": "compressed",
            },
            environment="w8a8",
            imports=("compressed_tensors",),
            advice="something is wrong with it: please report it",
        ),
    )


def who_for(type: str) -> str:
    """One line: when to take this type."""
    return {
        "int8-dynamic": "many requests at once on NVIDIA GPUs from Turing on",
        "int8-static": "comparison; quicker scales, more loss",
        "fp8-dynamic": "many requests at once on GPUs from Ada and Hopper on",
    }[type]


def how_to_run(result: RunRecord) -> str:
    """The card's section on running the model."""
    simulated = (
        ": to look at, not faster; activations are rounded as they should be, but computed with in"
        " 16 bits"
    )
    return "\n\n".join(
        (
            folders.INTRODUCED,
            folders.with_vllm(result, " that computes with such numbers"),
            folders.with_transformers("compressed-tensors accelerate", simulated),
        )
    )


METHOD = Method(
    name="w8a8",
    title="W8A8 / FP8",
    summary=(
        "weights and activations of 8 bits, integers or floating point, in the compressed-tensors"
        " format; for GPUs with vLLM"
    ),
    facts=Facts(
        bits="8, activations too",
        calibration="for int8-static only",
        gpu_to_quantize="no",
        gpu_to_run="yes: Turing (INT8), Ada (FP8)",
        runtimes="vLLM, SGLang; transformers to look at",
    ),
    options=W8a8Options,
    kind="folder",
    library_name="transformers",
    demo={},
    variants=lambda options: (options.type,),
    settle=lambda source, options: options,
    check=check,
    plan=plan,
    quantize=quantize,
    environment=folders.environment,
    who_for=who_for,
    how_to_run=how_to_run,
    prepare=partial(folders.prepare, "w8a8"),
    folder_suffix=lambda options: f"W8A8-{options.type}",
    packages=("compressed-tensors", "accelerate", "torch", "transformers", "tokenizers", "numpy"),
)
