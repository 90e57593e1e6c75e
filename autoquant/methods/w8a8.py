"""W8A8: weights and activations of 8 bits, as integers or floating-point numbers, in the
compressed-tensors format that vLLM loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from autoquant import calibration
from autoquant.calibration import CalibrationOptions
from autoquant.core.errors import InputError
from autoquant.core.options import MethodOptions, option
from autoquant.core.records import Artifact, RunRecord, Source
from autoquant.formats import compressed_tensors
from autoquant.forward import cost
from autoquant.methods import how_to_run
from autoquant.methods.base import UsualType
from autoquant.methods.recipe import Recipe
from autoquant.methods.tensorwise import TensorwiseMethod
from autoquant.runtime import environments
from autoquant.source import layers as layers_of
from autoquant.source.parts import division
from autoquant.source.structure import structure

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
        "int8-dynamic: integers, activations with one scale per token, computed at run time;"
        " int8-static: one per layer, from calibration (faster, less accurate); fp8-dynamic:"
        " floating point (E4M3), for GPUs from Ada and Hopper on",
    )


class W8a8(TensorwiseMethod[W8a8Options]):
    """W8A8 and FP8."""

    name: ClassVar[str] = "w8a8"
    cards: ClassVar[str] = "NVIDIA H100"
    title: ClassVar[str] = "W8A8 / FP8"
    summary: ClassVar[str] = (
        "weights and activations of 8 bits, integers or floating point, in the compressed-tensors"
        " format; for GPUs with vLLM"
    )
    Options: ClassVar[type[MethodOptions]] = W8a8Options
    start: ClassVar[str] = "vllm serve {path} --max-model-len {context}"
    take_when: ClassVar[str] = "you serve many users at once, in INT8 or FP8"
    bits: ClassVar[str] = "8, activations too"
    requires_calibration: ClassVar[str] = f"for {STATIC} only"
    gpu_to_run: ClassVar[str] = "yes: Turing (INT8), Ada (FP8)"
    runtimes: ClassVar[str] = "vLLM, SGLang; transformers (for inspection only)"
    # vLLM: https://docs.vllm.ai/en/latest/features/quantization/
    usual_types: ClassVar[tuple[UsualType, ...]] = (
        UsualType("int8-dynamic", 8.0, "vLLM", 7.5, options={"scheme": "int8-dynamic"}),
        UsualType("fp8-dynamic", 8.0, "vLLM", 8.9, options={"scheme": "fp8-dynamic"}),
    )
    # bench/RESULTS.md, "Tensor by tensor": 3.2 billion weights
    pace: ClassVar[Mapping[str, float]] = {"": 24.0}
    extra: ClassVar[str] = "w8a8"
    heavy_imports: ClassVar[tuple[str, ...]] = ("compressed_tensors",)
    packages: ClassVar[tuple[str, ...]] = (
        "compressed-tensors",
        "accelerate",
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
    )

    def type_of(self, options: W8a8Options) -> str:
        """The scheme."""
        return options.scheme

    def folder_suffix(self, options: W8a8Options) -> str:
        """W8A8-int8-dynamic."""
        return f"W8A8-{options.scheme}"

    def check(self, source: Source, options: W8a8Options) -> None:
        """What can be refused within a second."""
        if options.scheme == STATIC:
            if structure(source).experts:
                raise InputError(
                    f"{source.id} ({source.architecture}) is a mixture of experts, and vLLM and"
                    " SGLang run experts with a scale for each token only. Take scheme int8-dynamic"
                    " (--scheme int8-dynamic) or fp8-dynamic"
                )
            layers_of.check(source, f"W8A8 with scheme {STATIC}", towers=True)
        super().check(source, options)
        calibration.check(options)

    def memory(self, source: Source, options: W8a8Options) -> int:
        """With static scales the model is run before, a block at a time."""
        rounding = super().memory(source, options)
        if options.scheme != STATIC:
            return rounding
        length = min(options.calibration_length, source.context)
        samples = options.calibration_samples
        ran = cost.of(source).memory(samples, length, ahead=False, single=False, part=2)
        return max(rounding, ran)

    def size(self, source: Source, options: W8a8Options) -> int:
        """A byte per weight and 16-bit scales of each layer, and 16 bits for all else."""
        divided = division(source)
        layers = divided.shapes
        weights = sum(outputs * inputs for outputs, inputs in layers.values())
        scales = sum(outputs for outputs, _ in layers.values())
        scales += len(layers) if options.scheme == STATIC else 0
        return divided.kept + weights + 2 * scales

    def recipe(self, options: W8a8Options) -> Recipe:
        """By compressed-tensors, plain rounding."""
        numbers = "float" if options.scheme.startswith("fp8") else "int"
        format = compressed_tensors.FORMATS[numbers]
        version = environments.version("compressed-tensors")
        return Recipe(
            target="autoquant.backends.compressed_tensors:quantize",
            settings={"scheme": options.scheme},
            algorithm=f"rounding to nearest, {options.scheme} (compressed-tensors {version})",
            file_format=f"compressed-tensors ({format})",
            wanted={
                "quant_method": "compressed-tensors",
                "format": format,
                "quantization_status": "compressed",
            },
            bits=8,
            advice="something is wrong with it: please report it",
            samples=options.scheme == STATIC,
        )

    def describe_type(self, artifact: Artifact) -> str:
        """One line: when to take an artifact of its type."""
        return {
            "int8-dynamic": "many requests at once on NVIDIA GPUs from Turing on",
            "int8-static": "only to compare; cheaper to run, loses more",
            "fp8-dynamic": "many requests at once on GPUs from Ada and Hopper on",
        }[artifact.type]

    def how_to_run(self, record: RunRecord) -> str:
        """The card's section on running the model."""
        simulated = (
            ": for inspection, not speed; activations are rounded correctly, but multiplied in 16"
            " bits"
        )
        return "\n\n".join(
            (
                how_to_run.INTRODUCED,
                how_to_run.with_vllm(record, " that computes with such numbers"),
                how_to_run.with_transformers(record, "compressed-tensors accelerate", simulated),
            )
        )
