"""bitsandbytes: NF4, FP4 and LLM.int8(), without calibration, through transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from autoquant.core.options import MethodOptions, option
from autoquant.core.records import Artifact, RunRecord, Source
from autoquant.methods import how_to_run
from autoquant.methods.base import UsualType
from autoquant.methods.recipe import Recipe
from autoquant.methods.tensorwise import TensorwiseMethod
from autoquant.runtime import environments
from autoquant.source.parts import division

# weights that share a scale, and scales that share one with double quantization: the library's own,
# which transformers leaves as they are
BLOCK, NESTED = 64, 256
THRESHOLD = 6.0  # of the paper, and the library's default
# bytes of JSON a layer without and with double quantization, give or take the digits of some
# numbers
STATE, NESTED_STATE = 79, 168
TITLES = {"nf4": "NF4", "fp4": "FP4", "int8": "LLM.int8()"}


class BitsandbytesOptions(MethodOptions):
    """The options of bitsandbytes. Names are those of BitsAndBytesConfig, shortened."""

    applies: ClassVar[Mapping[str, str]] = {
        **MethodOptions.applies,
        "double_quant": "quant_type!=int8",
        "threshold": "quant_type=int8",
    }
    main: ClassVar[tuple[str, ...]] = ("quant_type", "double_quant", "evaluate", "upload")

    quant_type: Literal["nf4", "fp4", "int8"] = option(
        "nf4",
        "nf4: 4 bits, with values that suit weights (QLoRA's); fp4: 4 bits of floating point,"
        " worse; int8: LLM.int8(), 8 bits for weights and activations",
    )
    double_quant: bool = option(
        True,
        "nf4 and fp4 only: the scales are quantized too, which saves 0.37 bits per weight and costs"
        " next to nothing",
    )
    threshold: float = option(
        THRESHOLD,
        "int8 only: inputs with values this large keep 16 bits; 0 quantizes all inputs, which ruins"
        " large models",
        ge=0,
        le=1000,
    )


class Bitsandbytes(TensorwiseMethod[BitsandbytesOptions]):
    """bitsandbytes."""

    name: ClassVar[str] = "bitsandbytes"
    cards: ClassVar[str] = "NVIDIA H100"
    title: ClassVar[str] = "bitsandbytes"
    summary: ClassVar[str] = (
        "NF4 or FP4 weights of 4 bits, or LLM.int8(), without calibration data, in seconds; for"
        " transformers, QLoRA and vLLM"
    )
    Options: ClassVar[type[MethodOptions]] = BitsandbytesOptions
    start: ClassVar[str] = "vllm serve {path} --max-model-len {context}"
    start_needs: ClassVar[str] = "bitsandbytes"
    take_when: ClassVar[str] = "you fine-tune adapters (QLoRA)"
    bits: ClassVar[str] = "4 (NF4, FP4), 8 (LLM.int8())"
    requires_calibration: ClassVar[str] = "no"
    gpu_to_run: ClassVar[str] = "no"
    runtimes: ClassVar[str] = "transformers, vLLM"
    # absmax of 8 bits a block of 64, theirs in float32 a block of 256
    usual_types: ClassVar[tuple[UsualType, ...]] = (
        UsualType("nf4", 4 + 8 / 64 + 32 / (64 * 256), "transformers", 6.0),
    )
    # bench/RESULTS.md, "Tensor by tensor": 3.2 billion weights
    pace: ClassVar[Mapping[str, float]] = {"": 44.0}
    extra: ClassVar[str] = "bitsandbytes"
    heavy_imports: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    packages: ClassVar[tuple[str, ...]] = (
        "bitsandbytes",
        "accelerate",
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
    )

    def type_of(self, options: BitsandbytesOptions) -> str:
        """nf4, fp4 (with -single where scales are not quantized) or int8 (with the threshold, if it
        is another).
        """
        if options.quant_type == "int8":
            return "int8" if options.threshold == THRESHOLD else f"int8-{options.threshold:g}"
        return f"{options.quant_type}{'' if options.double_quant else '-single'}"

    def folder_suffix(self, options: BitsandbytesOptions) -> str:
        """BNB-nf4."""
        return f"BNB-{self.type_of(options)}"

    def size(self, source: Source, options: BitsandbytesOptions) -> int:
        """Codes and scales of each layer, 16 bits for all else; but for some bytes per layer."""
        divided = division(source)
        total = divided.kept
        for outputs, inputs in divided.shapes.values():
            if options.quant_type == "int8":
                total += outputs * inputs + 4 * outputs + 1
                continue
            blocks = -(-outputs * inputs // BLOCK)
            total += -(-outputs * inputs // 2) + 4 * 16
            if options.double_quant:
                total += blocks + 4 * -(-blocks // NESTED) + 4 * 256 + NESTED_STATE
            else:
                total += 4 * blocks + STATE
        return total

    def recipe(self, options: BitsandbytesOptions) -> Recipe:
        """Through transformers."""
        eight = options.quant_type == "int8"
        wanted: dict[str, Any] = {"quant_method": "bitsandbytes"}
        if eight:
            wanted |= {"load_in_8bit": True, "llm_int8_threshold": options.threshold}
        else:
            wanted |= {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": options.quant_type,
                "bnb_4bit_use_double_quant": options.double_quant,
            }
        version = environments.version("bitsandbytes")
        return Recipe(
            target="autoquant.backends.bitsandbytes:quantize",
            settings={
                "quant_type": options.quant_type,
                "double_quant": options.double_quant,
                "threshold": options.threshold,
            },
            algorithm=f"{TITLES[options.quant_type]} (bitsandbytes {version})",
            file_format="bitsandbytes, as transformers writes it",
            wanted=wanted,
            bits=8 if eight else 4,
            advice="take int8",
        )

    def describe_type(self, artifact: Artifact) -> str:
        """One line: when to take an artifact of its type."""
        return {
            "nf4": "the usual choice, above all for fine-tuning adapters on it (QLoRA)",
            "fp4": "only to compare; NF4 is better at the same size",
            "int8": "near lossless; slower than 16 bits in many runtimes",
        }[artifact.facts["settings"]["quant_type"]]

    def how_to_run(self, record: RunRecord) -> str:
        """The card's section on running the model."""
        return "\n\n".join(
            (
                how_to_run.INTRODUCED,
                how_to_run.with_transformers(
                    record, "bitsandbytes accelerate", ", on a GPU or a CPU"
                ),
                how_to_run.with_vllm(record, " (pip install bitsandbytes)"),
            )
        )
