"""AWQ files, for GPUs: by AutoRound or by the AWQ algorithm (GPTQModel). The algorithm and the file
format are two things: the card names both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from autoquant.core.errors import InputError
from autoquant.core.options import MethodOptions, option
from autoquant.core.records import Artifact, Source
from autoquant.methods import grouped
from autoquant.methods.base import ComparisonVariants, UsualType, choice, parse_choice
from autoquant.methods.grouped import GroupedMethod, GroupedOptions, group
from autoquant.methods.recipe import Recipe
from autoquant.runtime import environments

# GPTQModel's AWQ looks for clipping bounds that many outputs at a time, and fails if they do not
# come out even
CLIP_ROWS = 64


class AwqOptions(GroupedOptions):
    """The options of AWQ. Names are AutoAWQ's."""

    main: ClassVar[tuple[str, ...]] = (
        "group_size",
        "algorithm",
        "calibration",
        "evaluate",
        "upload",
    )

    bits: int = option(
        4,
        "bits per weight: the file format that vLLM and transformers load has 4 only",
        metavar="4",
    )
    zero_point: bool = option(
        True,
        "asymmetric, as nearly all AWQ files are; turn it off only for runtimes that need symmetric"
        " weights: a little worse, no smaller",
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
        return choice(
            value, (4,), " (AWQ's file format has no other; for 2, 3 or 8 bits take GPTQ)"
        )


class Awq(GroupedMethod[AwqOptions]):
    """AWQ."""

    name: ClassVar[str] = "awq"
    title: ClassVar[str] = "AWQ"
    cards: ClassVar[str] = "NVIDIA H100, H200"
    # groups of 128: a scale of 16 bits, a zero point of 4
    usual_types: ClassVar[tuple[UsualType, ...]] = (
        UsualType("4bit-128g-autoround", 4 + 20 / 128, "vLLM", 7.5),
    )
    summary: ClassVar[str] = (
        "weights of 4 bits in the AWQ format, calibrated on text; for GPUs with vLLM, SGLang,"
        " transformers"
    )
    Options: ClassVar[type[MethodOptions]] = AwqOptions
    start: ClassVar[str] = "vllm serve {path} --max-model-len {context}"
    take_when: ClassVar[str] = "you run it on a GPU with vLLM or SGLang, at 4 bits"
    bits: ClassVar[str] = "4"
    demo_options: ClassVar[Mapping[str, Any]] = {
        "calibration_samples": 16,
        "calibration_length": 256,
        "iterations": 20,
    }
    # bench/RESULTS.md: SmolLM2 on 16 samples of 256 tokens ("GPTQ, AWQ and AutoRound");
    # AutoRound's 200 steps 13 times GPTQ ("What AutoRound's steps cost")
    pace: ClassVar[Mapping[str, float]] = {"awq": 6440.0, "autoround": 14_000.0}
    notebook_defaults: ClassVar[Mapping[str, Any]] = {"calibration_samples": 32, "iterations": 50}
    comparison_variants: ClassVar[ComparisonVariants | None] = ComparisonVariants(
        ("autoround", "awq"), parse_choice("autoround", "awq"), "algorithms (autoround, awq)"
    )

    def type_of(self, options: AwqOptions) -> str:
        """4bit-128g, with -sym and -autoround where they are chosen."""
        sym = "" if options.zero_point else "-sym"
        algorithm = "-autoround" if options.algorithm == "autoround" else ""
        return f"{options.bits}bit-{group(options.group_size)}{sym}{algorithm}"

    def folder_suffix(self, options: AwqOptions) -> str:
        """AWQ-4bit-128g."""
        return f"AWQ-{self.type_of(options)}"

    def check(self, source: Source, options: AwqOptions) -> None:
        """What can be refused within a second."""
        layers = self.check_layers(source, options)
        if options.algorithm == "awq":
            _refuse_uneven(layers)

    def size(self, source: Source, options: AwqOptions) -> int:
        """Codes, zero points and 16-bit scales of each layer, 16 bits for all else."""
        return grouped.size_of(self.shapes(source, options), source, options, options.bits)

    def recipe(self, options: AwqOptions) -> Recipe:
        """By which function."""
        basic = {"bits": options.bits, "group_size": options.group_size}
        basic |= {"sym": not options.zero_point}
        learned = options.algorithm == "autoround"
        settings: dict[str, Any] = {**basic, "algorithm": "awq"}
        if learned:
            settings = {**basic, "format": "auto_awq", "iterations": options.iterations}
        return Recipe(
            target=f"autoquant.backends.{'auto_round' if learned else 'gptqmodel'}:quantize",
            settings=settings,
            algorithm=(
                f"AutoRound {environments.version('auto-round')}"
                if learned
                else (
                    "AWQ: activation-aware scaling and clipping (GPTQModel"
                    f" {environments.version('gptqmodel')})"
                )
            ),
            file_format="AWQ (gemm)",
            wanted={
                "quant_method": "awq",
                "bits": options.bits,
                "group_size": options.group_size,
                "zero_point": options.zero_point,
                "version": "gemm",
            },
            bits=options.bits,
            advice=grouped.ADVICE,
            samples=True,
            arguments={"batch_size": options.batch_size},
            scaled=not learned,
        )

    def describe_type(self, artifact: Artifact) -> str:
        """One line: when to take an artifact of its type."""
        if artifact.facts["settings"]["group_size"] == -1:
            return "one scale per row: smaller, clearly worse than groups"
        return "4 bits for GPUs, in the format that vLLM, SGLang and transformers know as AWQ"


def _refuse_uneven(layers: Mapping[str, tuple[int, int]]) -> None:
    """Refuse layers whose outputs do not come out even in the search for clipping bounds."""
    odd = [(name, outputs) for name, (outputs, _) in layers.items() if outputs % CLIP_ROWS]
    if odd:
        raise InputError(
            f"algorithm: awq clips outputs {CLIP_ROWS} at a time; {len(odd)} of {len(layers)}"
            f" layers are not divisible by it, e.g. {odd[0][0]} ({odd[0][1]} outputs). Take"
            " algorithm autoround (--algorithm autoround), or method gptq"
        )
