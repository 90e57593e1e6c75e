"""GPTQ files, for GPUs: by the GPTQ algorithm (GPTQModel, or AutoGPTQ in an environment of its own)
or by AutoRound.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from autoquant import environments, process
from autoquant.core.errors import InputError
from autoquant.core.journal import RunFolder
from autoquant.core.options import option
from autoquant.core.records import Plan, RunRecord, Snapshot, Source
from autoquant.methods import Beside, Facts, Made, Method, folders, one_of
from autoquant.methods.folders import FolderOptions, Recipe

BITS = (2, 3, 4, 8)
DAMP = 0.05  # GPTQModel's default; AutoGPTQ's is 0.01
# those of AutoGPTQ 0.7.1 that transformers has, whose blocks are called layers.N, and that are no
# mixtures of experts
AUTO_GPTQ_MODELS = ("gemma", "gpt_neox", "llama", "mistral", "opt", "qwen2")


class GptqOptions(FolderOptions):
    """The options of GPTQ. Names are GPTQModel's and AutoGPTQ's."""

    applies: ClassVar[Mapping[str, str]] = {
        **FolderOptions.applies,
        "desc_act": "algorithm=gptq",
        "damp_percent": "algorithm=gptq",
        "backend": "algorithm=gptq",
    }
    main: ClassVar[tuple[str, ...]] = (
        "bits",
        "group_size",
        "algorithm",
        "calibration",
        "evaluate",
        "upload",
    )

    bits: int = option(
        4,
        "bits a weight: 2, 3, 4 or 8; 4 is the usual choice; 4 and 8 have the fast kernels",
        metavar="2|3|4|8",
    )
    desc_act: bool = option(
        False,
        "quantize inputs in the order of their activations (act-order): a little better, slower to"
        " run in some runtimes",
    )
    sym: bool = option(
        True,
        "symmetric: all zero points alike; off chooses one for each group: better at few bits, no"
        " larger, but known to fewer runtimes",
    )
    damp_percent: float = option(
        DAMP,
        "how much the Hessian's diagonal is raised, as a share of its mean; more is steadier;"
        " AutoGPTQ's own default was 0.01",
        ge=0.001,
        le=0.5,
    )
    algorithm: Literal["gptq", "autoround"] = option(
        "gptq",
        "how codes are chosen: gptq, or autoround, which learns the rounding: better, above all at"
        " 2 and 3 bits, and several times slower; the file format is the same",
    )
    backend: Literal["gptqmodel", "auto-gptq"] = option(
        "gptqmodel",
        "library that runs the algorithm gptq: gptqmodel; or auto-gptq, archived and for CUDA only,"
        " to repeat old results in an environment of its own",
    )

    @field_validator("bits")
    @classmethod
    def _bits(cls, value: int) -> int:
        return folders.choice(value, BITS)

    @property
    def type(self) -> str:
        """The artifact's name: 4bit-128g, with -act, -asym and -autoround where they are chosen."""
        order, sym = "-act" if self.desc_act else "", "" if self.sym else "-asym"
        algorithm = "-autoround" if self.algorithm == "autoround" else ""
        return f"{self.bits}bit-{folders.group(self.group_size)}{order}{sym}{algorithm}"


def check(source: Source, options: GptqOptions) -> None:
    """What can be refused within a second (backend auto-gptq: some; CUDA is looked for)."""
    folders.refuse_iterations(options, options.algorithm)
    if options.algorithm == "autoround":
        for name, idle in (
            ("desc_act", options.desc_act),
            ("damp_percent", options.damp_percent != DAMP),
        ):
            if idle:
                raise InputError(
                    f"{name}: AutoRound has no such setting; leave it out, or take algorithm='gptq'"
                )
        if options.backend == "auto-gptq":
            raise InputError(
                "backend: auto-gptq runs the algorithm gptq only; leave out backend or algorithm"
            )
    layers = folders.check(source, options, "GPTQ")
    if options.algorithm == "autoround":
        folders.refuse_uneven(
            layers, 32, "AutoRound leaves layers unquantized whose outputs are no multiple of"
        )

    def packs(bits: int) -> bool:
        return all(
            outputs * bits % 32 == 0 and inputs * bits % 32 == 0
            for outputs, inputs in layers.values()
        )

    if not packs(options.bits):
        fit = ", ".join(str(bits) for bits in BITS if packs(bits)) or "none"
        raise InputError(
            "bits: the widths of this model's layers cannot be packed into words of 32 at"
            f" {options.bits} bits; widths that fit: {fit}"
        )
    if options.backend == "auto-gptq":
        _refuse_auto_gptq(source)


def _refuse_auto_gptq(source: Source) -> None:
    """AutoGPTQ needs CUDA and a model it knows: both are looked at before anything is installed."""
    import json
    import tempfile

    kind = json.loads((source.folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind not in AUTO_GPTQ_MODELS:
        raise InputError(
            f"backend: AutoGPTQ does not know the architecture {kind!r}; it knows:"
            f" {', '.join(AUTO_GPTQ_MODELS)}. Leave out backend: GPTQModel knows more"
        )
    with tempfile.TemporaryDirectory() as scratch:
        if not process.call(environments.CUDA_WORKER, log=Path(scratch) / "log"):
            raise InputError(
                "backend: auto-gptq quantizes on an NVIDIA GPU only, and torch finds none here;"
                " nothing was installed. Leave out backend: GPTQModel writes the same format, on a"
                " CPU too. In Colab: Runtime, Change runtime type, T4 GPU"
            )
    environments.refuse("auto-gptq")


def size(source: Source, options: GptqOptions) -> int:
    """The size to be: codes, zero points, scales (float16) and group numbers (int32) of each layer,
    and 16 bits for all else.
    """
    layers = folders.linears(source)
    total = 2 * (source.parameters - sum(outputs * inputs for outputs, inputs in layers.values()))
    for outputs, inputs in layers.values():
        groups = 1 if options.group_size == -1 else inputs // options.group_size
        total += (
            (outputs * inputs + groups * outputs) * options.bits // 8
            + 2 * groups * outputs
            + 4 * inputs
        )
    return total


def plan(source: Source, options: GptqOptions, out: Path) -> Plan:
    """The size to be, from the headers alone."""
    check(source, options)
    memory = folders.memory_needed(source, options, options.algorithm)
    return folders.plan(
        "gptq", source, out, type=options.type, size=size(source, options), memory=memory
    )


def recipe(options: GptqOptions) -> Recipe:
    """By which function, in which environment."""
    settings: dict[str, Any]
    basic = {"bits": options.bits, "group_size": options.group_size, "sym": options.sym}
    gptq = {**basic, "desc_act": options.desc_act, "damp_percent": options.damp_percent}
    wanted = {
        "quant_method": "gptq",
        "bits": options.bits,
        "group_size": options.group_size,
        "sym": options.sym,
        "desc_act": options.desc_act,
        "checkpoint_format": "gptq",
    }
    if options.algorithm == "autoround":
        target, settings = (
            "autoquant.quantizers:autoround",
            {
                **basic,
                "format": "auto_gptq",
                "iterations": options.iterations,
            },
        )
        algorithm = f"AutoRound {environments.version('auto-round')}"
    elif options.backend == "auto-gptq":
        target, settings, algorithm = (
            environments.AUTO_GPTQ_WORKER,
            gptq,
            f"GPTQ (AutoGPTQ {environments.PINS['auto-gptq']['auto-gptq']})",
        )
    else:
        target, settings = "autoquant.quantizers:gptqmodel", {**gptq, "algorithm": "gptq"}
        algorithm = f"GPTQ (GPTQModel {environments.version('gptqmodel')})"
    return Recipe(
        type=options.type,
        target=target,
        settings=settings,
        algorithm=algorithm,
        file_format="GPTQ (version 1)",
        wanted=wanted,
        bits=options.bits,
        estimate=options.algorithm,
        environment="auto-gptq" if options.backend == "auto-gptq" else "gptq",
        notes=() if options.sym or "GPTQModel" in algorithm else (folders.FOREIGN,),
    )


def quantize(snapshot: Snapshot, options: GptqOptions, run: RunFolder) -> Made:
    """Calibrate, quantize and verify, unless the journal knows it as done. The run's folder becomes
    the model's folder.
    """
    return folders.quantize(snapshot, options, run, recipe(options))


def who_for(type: str) -> str:
    """One line: when to take this type."""
    return {
        "8": "practically lossless, at half the size",
        "4": "the usual choice for GPUs: vLLM, SGLang, transformers",
        "3": "when 4 bits do not fit; clear loss on small models",
        "2": "experiments; large models only",
    }[type[0]]


def how_to_run(result: RunRecord) -> str:
    """The card's section on running the model. vLLM's Marlin kernels run symmetric codes of 4 and 8
    bits (its TYPE_MAP); all others need float16.
    """
    if all(
        artifact.type[0] in "48" and "-asym" not in artifact.type for artifact in result.artifacts
    ):
        return folders.how_to_run(result)
    return folders.how_to_run(
        result,
        "; such codes run in its plain GPTQ kernels, which take float16 only",
        " --dtype float16",
    )


METHOD = Method(
    name="gptq",
    title="GPTQ",
    summary=(
        "weights of 2, 3, 4 or 8 bits, calibrated on text; for GPUs with vLLM, SGLang, transformers"
    ),
    facts=Facts(
        bits="8, 4, 3, 2",
        calibration="yes",
        gpu_to_quantize="no, but quicker",
        gpu_to_run="yes, for speed",
        runtimes="vLLM, SGLang, transformers",
    ),
    beside=Beside(("8", "4", "3", "2"), one_of("8", "4", "3", "2"), "bit widths (8, 4, 3, 2)"),
    options=GptqOptions,
    kind="folder",
    library_name="transformers",
    demo={"calibration_samples": 16, "calibration_length": 256},
    variants=lambda options: (options.type,),
    settle=folders.settle,
    check=check,
    plan=plan,
    quantize=quantize,
    environment=folders.environment,
    who_for=who_for,
    how_to_run=how_to_run,
    prepare=partial(folders.prepare, "gptq"),
    folder_suffix=lambda options: f"GPTQ-{options.type}",
    packages=("gptqmodel", "optimum", "auto-round", "torch", "transformers", "tokenizers", "numpy"),
)
