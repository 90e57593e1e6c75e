"""GPTQ files, for GPUs: by the GPTQ algorithm (GPTQModel, or AutoGPTQ in an environment of its own)
or by AutoRound.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from autoquant.core.errors import InputError
from autoquant.core.journal import RunFolder
from autoquant.core.options import MethodOptions, option
from autoquant.core.plans import Plan
from autoquant.core.records import Artifact, RunRecord, Snapshot, Source
from autoquant.display.gains import RECIPE
from autoquant.formats.gptq import Kind
from autoquant.methods import gradients, grouped
from autoquant.methods.base import (
    ComparisonVariants,
    Output,
    UsualType,
    choice,
    parse_choice,
)
from autoquant.methods.gptq import bits as by_module
from autoquant.methods.grouped import GroupedMethod, GroupedOptions, group
from autoquant.methods.recipe import Recipe
from autoquant.runtime import environments, process

BITS = (2, 3, 4, 8)
DAMP = 0.05  # GPTQModel's default; AutoGPTQ's is 0.01
# those of AutoGPTQ 0.7.1 that transformers has, whose blocks are called layers.N, and that are no
# mixtures of experts
AUTO_GPTQ_MODELS = ("gemma", "gpt_neox", "llama", "mistral", "opt", "qwen2")
BY_MODULE = "bits by module"  # in facts and card: how they were chosen
WIDTHS = tuple(str(bits) for bits in reversed(BITS))


class GptqOptions(GroupedOptions):
    """The options of GPTQ. Names are GPTQModel's and AutoGPTQ's."""

    applies: ClassVar[Mapping[str, str]] = {
        **GroupedOptions.applies,
        "desc_act": "algorithm=gptq",
        "damp_percent": "algorithm=gptq",
        "backend": "algorithm=gptq",
        "bits": "!bpw",
        "bpw": "algorithm=gptq",
        "sensitivity_samples": "bpw",
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
        "bits per weight: 2, 3, 4 or 8; 4 is the usual choice; 4 and 8 have the fast kernels",
        metavar="2|3|4|8",
    )
    bpw: float = option(
        0,
        "instead of bits: 4 or 8 bits for each module, in groups of group_size or 32, as its"
        " Fisher information says, so that the quantized matrices have at most so many bits per"
        " weight with scales and zero points; from 4.16 to 8.18 in groups of 128. 0: all modules"
        " have bits",
        unit="bits per weight",
        ge=0,
        le=9,
    )
    sensitivity_samples: int = option(
        32,
        "with bpw: chunks of 512 tokens (or the model's context) to measure on which modules need"
        " 8 bits; more change little",
        unit="chunks",
        ge=2,
        le=10_000,
    )
    desc_act: bool = option(
        False,
        "quantize inputs in the order of their activations (act-order): a little better, slower to"
        " run in some runtimes",
    )
    sym: bool = option(
        True,
        "symmetric: one zero point for all groups; off: one for each group, better at few bits,"
        " same size, fewer runtimes",
    )
    damp_percent: float = option(
        DAMP,
        "damping: the share of the Hessian's mean diagonal that is added to it; more is more"
        " stable; AutoGPTQ's own default was 0.01",
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
        return choice(value, BITS)


class Gptq(GroupedMethod[GptqOptions]):
    """GPTQ."""

    name: ClassVar[str] = "gptq"
    cards: ClassVar[str] = "NVIDIA H100"
    title: ClassVar[str] = "GPTQ"
    # groups of 128: a scale of 16 bits, a zero point of 4
    usual_types: ClassVar[tuple[UsualType, ...]] = (
        UsualType("4bit-128g", 4 + 20 / 128, "vLLM", 7.0, options={"bits": 4}),
    )
    summary: ClassVar[str] = (
        "weights of 2, 3, 4 or 8 bits, calibrated on text; for GPUs with vLLM, SGLang, transformers"
    )
    Options: ClassVar[type[MethodOptions]] = GptqOptions
    start: ClassVar[str] = "vllm serve {path} --max-model-len {context}"
    take_when: ClassVar[str] = "you run it on a GPU with vLLM or SGLang, at 8, 4, 3 or 2 bits"
    bits: ClassVar[str] = ", ".join(WIDTHS)
    chosen: ClassVar[str] = (
        "Each module has 4 or 8 bits, in groups of the usual size or of 32, so that the least is"
        " lost within the bits per weight that were asked for, as the Fisher information of its"
        " weights predicts. What runtimes join has the same."
    )
    # bench/RESULTS.md: SmolLM2 on 128 samples of 512 tokens ("Cost of the wrapper, GPTQ");
    # AutoRound's 200 steps 13 times GPTQ ("What AutoRound's steps cost")
    pace: ClassVar[Mapping[str, float]] = {"gptq": 1080.0, "autoround": 14_000.0}
    demo_options: ClassVar[Mapping[str, Any]] = {
        "calibration_samples": 16,
        "calibration_length": 256,
    }
    comparison_variants: ClassVar[ComparisonVariants | None] = ComparisonVariants(
        ("8", "4", "3"),
        parse_choice(*WIDTHS),
        f"bit widths ({', '.join(WIDTHS)})",
        without=("bpw", "sensitivity_samples"),
    )

    def type_of(self, options: GptqOptions) -> str:
        """4bit-128g or 5.00bpw-128g, with -act, -asym and -autoround where they are chosen."""
        order, sym = "-act" if options.desc_act else "", "" if options.sym else "-asym"
        algorithm = "-autoround" if options.algorithm == "autoround" else ""
        bits = f"{options.bpw:.2f}bpw" if options.bpw else f"{options.bits}bit"
        return f"{bits}-{group(options.group_size)}{order}{sym}{algorithm}"

    def by_gptqmodel(self, options: GptqOptions) -> bool:
        """Whether GPTQModel chooses the codes."""
        return super().by_gptqmodel(options) and options.backend == "gptqmodel"

    def folder_suffix(self, options: GptqOptions) -> str:
        """GPTQ-4bit-128g."""
        return f"GPTQ-{self.type_of(options)}"

    def check(self, source: Source, options: GptqOptions) -> None:
        """What can be refused within a second (backend auto-gptq: some; CUDA is looked for)."""
        layers = self.check_layers(source, options)
        fit = [bits for bits in BITS if _packs(layers, bits)]
        if options.bits not in fit:
            raise InputError(
                "bits: the widths of this model's layers cannot be packed into words of 32 at"
                f" {options.bits} bits; widths that fit: {', '.join(map(str, fit)) or 'none'}"
            )
        if options.bpw:
            by_module.refuse(source, options, layers)
        if options.backend == "auto-gptq":
            _refuse_auto_gptq(source)

    def without_slow_checks(self, options: GptqOptions) -> GptqOptions:
        """CUDA is looked for in a process of its own, which takes seconds."""
        if options.algorithm != "gptq":
            return options
        return options.model_copy(update={"backend": "gptqmodel"})

    def size(self, source: Source, options: GptqOptions) -> int:
        """Codes, zero points, scales (float16) and group numbers (int32) of each layer, and 16 bits
        for all else; with bpw at most that.
        """
        layers = self.shapes(source, options)
        numbers = 4 * sum(inputs for _, inputs in layers.values())
        alike = grouped.size_of(layers, source, options, options.bits) + numbers
        if not options.bpw:
            return alike
        base = Kind(options.bits, options.group_size)
        own = sum(grouped.taken(shape, *base) for shape in layers.values())
        return alike - own + by_module.budget(layers, options.bpw)

    def plan(self, source: Source, options: GptqOptions, out: Path) -> Plan:
        """The size to be, from the headers alone; with bpw at most that, and what gradients take
        comes on top.
        """
        plan = super().plan(source, options, out)
        if not options.bpw:
            return plan
        chunks, more = options.sensitivity_samples, by_module.memory(self.shapes(source, options))
        (item,) = plan.items
        return dataclasses.replace(
            plan,
            items=(dataclasses.replace(item, note="at most; each module at 4 or 8 bits"),),
            memory_needed=max(plan.memory_needed, gradients.memory(source, chunks, more)),
            seconds={"measure sensitivities": gradients.seconds(source, chunks)},
        )

    def fetch(self, source: Source, options: GptqOptions, out: Path) -> Snapshot:
        """Have the files at hand; where there is no memory for gradients, that is said before."""
        if options.bpw:
            by_module.refuse_without_memory(source, self.shapes(source, options), options, out)
        return super().fetch(source, options, out)

    def prepared(self, snapshot: Snapshot, options: GptqOptions, run: RunFolder) -> Recipe:
        """How it is made; with bpw the bits of the modules are chosen first."""
        recipe = self.recipe(options)
        if not options.bpw:
            return recipe
        modules, env = self.quantized(snapshot.source, options), self.environment(options)
        chosen, said = by_module.chosen(snapshot, run, options, modules, env)
        dynamic = by_module.dynamic(chosen.kinds, Kind(options.bits, options.group_size))
        return dataclasses.replace(
            recipe,
            settings={**recipe.settings, "dynamic": dynamic},
            wanted={**recipe.wanted, **({"dynamic": dynamic} if dynamic else {})},
            facts={RECIPE: by_module.recipe(chosen.kinds), BY_MODULE: said},
        )

    def quantize(self, snapshot: Snapshot, options: GptqOptions, run: RunFolder) -> Output:
        """Quantize and verify; with bpw the card says how the bits of the modules were chosen."""
        output = super().quantize(snapshot, options, run)
        for artifact in output.artifacts:
            if BY_MODULE in artifact.facts:
                output.provenance[BY_MODULE] = artifact.facts[BY_MODULE]
        return output

    def recipe(self, options: GptqOptions) -> Recipe:
        """By which function, in which environment."""
        basic: dict[str, Any] = {
            "bits": options.bits,
            "group_size": options.group_size,
            "sym": options.sym,
        }
        gptq = {**basic, "desc_act": options.desc_act, "damp_percent": options.damp_percent}
        learned = {**basic, "format": "auto_gptq", "iterations": options.iterations}
        wanted: dict[str, Any] = {
            "quant_method": "gptq",
            **basic,
            "desc_act": options.desc_act,
            "checkpoint_format": "gptq",
        }
        settings: dict[str, Any]
        if options.algorithm == "autoround":
            target, settings = "autoquant.backends.auto_round:quantize", learned
            algorithm = f"AutoRound {environments.version('auto-round')}"
        elif options.backend == "auto-gptq":
            target, settings = environments.AUTO_GPTQ_WORKER, gptq
            algorithm = f"GPTQ (AutoGPTQ {environments.PINS['auto-gptq']['auto-gptq']})"
        else:
            target, settings = "autoquant.backends.gptqmodel:quantize", gptq
            settings |= {"algorithm": "gptq"}
            algorithm = f"GPTQ (GPTQModel {environments.version('gptqmodel')})"
        by_gptqmodel = options.algorithm == "gptq" and options.backend == "gptqmodel"
        return Recipe(
            target=target,
            settings=settings,
            algorithm=algorithm,
            file_format="GPTQ (version 1)",
            wanted=wanted,
            bits=options.bits,
            advice=grouped.ADVICE,
            samples=True,
            arguments={"batch_size": options.batch_size},
            environment="auto-gptq" if options.backend == "auto-gptq" else "",
            notes=() if options.sym or by_gptqmodel else (grouped.FOREIGN,),
        )

    def describe_type(self, artifact: Artifact) -> str:
        """One line: when to take an artifact of its type."""
        if RECIPE in artifact.facts:
            return "4 and 8 bits where they matter, for GPUs: vLLM, GPTQModel"
        return {
            8: "practically lossless, at half the size",
            4: "4 bits for GPUs: vLLM, SGLang, transformers",
            3: "when 4 bits do not fit; clear loss on small models",
            2: "experiments; large models only",
        }[artifact.facts["settings"]["bits"]]

    def how_to_run(self, record: RunRecord) -> str:
        """The card's section on running the model. vLLM's Marlin kernels run symmetric codes of 4
        and 8 bits (its TYPE_MAP); all others need float16.
        """
        settings = [artifact.facts["settings"] for artifact in record.artifacts]
        if any(one.get("dynamic") for one in settings):
            return by_module.how_to_run_mixed(record)
        if all(one["bits"] in (4, 8) and one["sym"] for one in settings):
            return grouped.card(record)
        return grouped.card(
            record,
            "; such codes run in its plain GPTQ kernels, which take float16 only",
            " --dtype float16",
        )


def _packs(layers: Mapping[str, tuple[int, int]], bits: int) -> bool:
    """Whether every layer's rows and columns come out even in words of 32 bits."""
    return all(size * bits % 32 == 0 for shape in layers.values() for size in shape)


def _refuse_auto_gptq(source: Source) -> None:
    """AutoGPTQ needs CUDA and a model it knows: both are looked at before anything is installed."""
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
