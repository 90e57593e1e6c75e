"""AWQ files, for GPUs: by AutoRound or by the AWQ algorithm (GPTQModel). The algorithm and the file
format are two things: the card names both.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import field_validator

from autoquant import environments
from autoquant.core.journal import RunFolder
from autoquant.core.options import option
from autoquant.core.records import Plan, Snapshot, Source
from autoquant.methods import Beside, Facts, Made, Method, folders, one_of
from autoquant.methods.folders import FolderOptions, Recipe

# GPTQModel's AWQ looks for clipping bounds that many outputs at a time, and fails if they do not
# come out even
CLIP_ROWS = 64


class AwqOptions(FolderOptions):
    """The options of AWQ. Names are AutoAWQ's."""

    main: ClassVar[tuple[str, ...]] = (
        "group_size",
        "algorithm",
        "calibration",
        "evaluate",
        "upload",
    )

    bits: int = option(
        4, "bits a weight: the file format that vLLM and transformers load has 4 only", metavar="4"
    )
    zero_point: bool = option(
        True,
        "asymmetric, as nearly all AWQ files are; off is a little worse and no smaller: for"
        " runtimes that want it",
    )
    algorithm: Literal["autoround", "awq"] = option(
        "autoround",
        "how codes are chosen: autoround, which learns the rounding (the better one in our"
        " measurements), or awq (activation-aware scaling and clipping); the file format is the"
        " same",
    )

    @field_validator("bits")
    @classmethod
    def _bits(cls, value: int) -> int:
        return folders.choice(
            value, (4,), " (AWQ's file format has no other; for 2, 3 or 8 bits take GPTQ)"
        )

    @property
    def type(self) -> str:
        """The artifact's name: 4bit-128g, with -sym and -autoround where they are chosen."""
        sym = "" if self.zero_point else "-sym"
        algorithm = "-autoround" if self.algorithm == "autoround" else ""
        return f"{self.bits}bit-{folders.group(self.group_size)}{sym}{algorithm}"


def check(source: Source, options: AwqOptions) -> None:
    """What can be refused within a second."""
    folders.refuse_iterations(options, options.algorithm)
    layers = folders.check(source, options, "AWQ")
    if options.algorithm == "awq":
        folders.refuse_uneven(
            layers, CLIP_ROWS, "the AWQ algorithm clips outputs that many at a time:"
        )
    else:
        folders.refuse_uneven(
            layers, 32, "AutoRound leaves layers unquantized whose outputs are no multiple of"
        )


def size(source: Source, options: AwqOptions) -> int:
    """The size to be: codes, zero points and 16-bit scales of each layer, 16 bits for all else."""
    layers = folders.linears(source)
    total = 2 * (source.parameters - sum(outputs * inputs for outputs, inputs in layers.values()))
    for outputs, inputs in layers.values():
        groups = 1 if options.group_size == -1 else inputs // options.group_size
        total += (outputs * inputs + groups * outputs) // 2 + 2 * groups * outputs
    return total


def plan(source: Source, options: AwqOptions, out: Path) -> Plan:
    """The size to be, from the headers alone."""
    check(source, options)
    memory = folders.memory_needed(source, options, options.algorithm)
    return folders.plan(
        "awq", source, out, type=options.type, size=size(source, options), memory=memory
    )


def recipe(options: AwqOptions) -> Recipe:
    """By which function."""
    basic = {"bits": options.bits, "group_size": options.group_size, "sym": not options.zero_point}
    wanted = {
        "quant_method": "awq",
        "bits": options.bits,
        "group_size": options.group_size,
        "zero_point": options.zero_point,
        "version": "gemm",
    }
    if options.algorithm == "autoround":
        algorithm = f"AutoRound {environments.version('auto-round')}"
        return Recipe(
            type=options.type,
            target="autoquant.quantizers:autoround",
            settings={**basic, "format": "auto_awq", "iterations": options.iterations},
            algorithm=algorithm,
            file_format="AWQ (gemm)",
            wanted=wanted,
            bits=options.bits,
            estimate="autoround",
        )
    return Recipe(
        type=options.type,
        target="autoquant.quantizers:gptqmodel",
        settings={**basic, "algorithm": "awq"},
        algorithm=(
            "AWQ: activation-aware scaling and clipping (GPTQModel"
            f" {environments.version('gptqmodel')})"
        ),
        file_format="AWQ (gemm)",
        wanted=wanted,
        bits=options.bits,
        estimate="awq",
        scaled=True,
    )


def quantize(snapshot: Snapshot, options: AwqOptions, run: RunFolder) -> Made:
    """Calibrate, quantize and verify, unless the journal knows it as done. The run's folder becomes
    the model's folder.
    """
    return folders.quantize(snapshot, options, run, recipe(options))


def who_for(type: str) -> str:
    """One line: when to take this type."""
    return (
        "the usual choice for vLLM, SGLang and transformers on GPUs"
        if "row" not in type
        else "one scale a row: smaller, clearly worse than groups"
    )


METHOD = Method(
    name="awq",
    title="AWQ",
    summary=(
        "weights of 4 bits in the AWQ format, calibrated on text; for GPUs with vLLM, SGLang,"
        " transformers"
    ),
    facts=Facts(
        bits="4",
        calibration="yes",
        gpu_to_quantize="no, but quicker",
        gpu_to_run="yes, for speed",
        runtimes="vLLM, SGLang, transformers",
    ),
    lighter={"calibration_samples": 32, "iterations": 50},
    beside=Beside(("autoround", "awq"), one_of("autoround", "awq"), "algorithms (autoround, awq)"),
    options=AwqOptions,
    kind="folder",
    library_name="transformers",
    demo={"calibration_samples": 16, "calibration_length": 256, "iterations": 20},
    variants=lambda options: (options.type,),
    settle=folders.settle,
    check=check,
    plan=plan,
    quantize=quantize,
    environment=folders.environment,
    who_for=who_for,
    how_to_run=folders.how_to_run,
    prepare=partial(folders.prepare, "gptq"),
    folder_suffix=lambda options: f"AWQ-{options.type}",
    packages=("gptqmodel", "optimum", "auto-round", "torch", "transformers", "tokenizers", "numpy"),
)
