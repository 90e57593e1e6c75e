"""bitsandbytes: NF4, FP4 and LLM.int8(), without calibration, through transformers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from autoquant import environments
from autoquant.core.errors import InputError
from autoquant.core.journal import RunFolder
from autoquant.core.options import MethodOptions, option
from autoquant.core.records import Plan, RunRecord, Snapshot, Source
from autoquant.methods import Facts, Made, Method, folders
from autoquant.methods.folders import Recipe

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
        "of nf4 and fp4: the scales are quantized too, which saves 0.37 bits a weight and costs"
        " next to nothing",
    )
    threshold: float = option(
        THRESHOLD,
        "of int8: inputs with values this large keep 16 bits; 0 quantizes all of them, which large"
        " models do not survive",
        ge=0,
        le=1000,
    )

    @property
    def type(self) -> str:
        """The artifact's name: nf4, fp4 (with -single where scales are not quantized) or int8 (with
        the threshold, if it is another).
        """
        if self.quant_type == "int8":
            return "int8" if self.threshold == THRESHOLD else f"int8-{self.threshold:g}"
        return f"{self.quant_type}{'' if self.double_quant else '-single'}"


def check(source: Source, options: BitsandbytesOptions) -> None:
    """What can be refused within a second."""
    if options.quant_type != "int8" and options.threshold != THRESHOLD:
        raise InputError(
            f"threshold: {options.threshold:g} has a meaning for quant_type int8 only; take"
            " quant_type='int8' (--quant-type int8), or leave it out"
        )
    if options.quant_type == "int8" and not options.double_quant:
        raise InputError(
            "double_quant: has a meaning for quant_type nf4 and fp4 only; leave it out"
        )
    folders.check_source(source, "bitsandbytes")


def size(source: Source, options: BitsandbytesOptions) -> int:
    """The size to be, but for some bytes a layer: codes and scales of each layer, and 16 bits for
    all else.
    """
    layers = folders.linears(source)
    total = 2 * (source.parameters - sum(outputs * inputs for outputs, inputs in layers.values()))
    for outputs, inputs in layers.values():
        if options.quant_type == "int8":
            total += outputs * inputs + 4 * outputs + 1
            continue
        blocks = -(-outputs * inputs // BLOCK)
        total += (
            -(-outputs * inputs // 2)
            + 4 * 16
            + (
                blocks + 4 * -(-blocks // NESTED) + 4 * 256 + NESTED_STATE
                if options.double_quant
                else 4 * blocks + STATE
            )
        )
    return total


def plan(source: Source, options: BitsandbytesOptions, out: Path) -> Plan:
    """The size to be, from the headers alone."""
    check(source, options)
    return folders.plan(
        "bitsandbytes",
        source,
        out,
        type=options.type,
        size=size(source, options),
        memory=folders.memory_whole(source),
    )


def quantize(snapshot: Snapshot, options: BitsandbytesOptions, run: RunFolder) -> Made:
    """Quantize and verify, unless the journal knows it as done. The run's folder becomes the
    model's folder.
    """
    settings = {
        "quant_type": options.quant_type,
        "double_quant": options.double_quant,
        "threshold": options.threshold,
    }
    wanted: dict[str, Any] = {"quant_method": "bitsandbytes"}
    if options.quant_type == "int8":
        wanted |= {"load_in_8bit": True, "llm_int8_threshold": options.threshold}
    else:
        wanted |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": options.quant_type,
            "bnb_4bit_use_double_quant": options.double_quant,
        }
    return folders.quantize(
        snapshot,
        options,
        run,
        Recipe(
            type=options.type,
            target="autoquant.quantizers:bitsandbytes",
            settings=settings,
            algorithm=(
                f"{TITLES[options.quant_type]} (bitsandbytes"
                f" {environments.version('bitsandbytes')})"
            ),
            file_format="bitsandbytes, as transformers writes it",
            bits=8 if options.quant_type == "int8" else 4,
            calibrates=False,
            environment="bitsandbytes",
            wanted=wanted,
            imports=("bitsandbytes",),
            advice="take int8",
        ),
    )


def who_for(type: str) -> str:
    """One line: when to take this type."""
    return {
        "nf4": "the usual choice, above all for fine-tuning adapters on it (QLoRA)",
        "fp4": "comparison; NF4 is better at the same size",
        "int8": "near lossless; slower than 16 bits in many runtimes",
    }[type.split("-")[0]]


def how_to_run(result: RunRecord) -> str:
    """The card's section on running the model."""
    parts = (
        folders.INTRODUCED,
        folders.with_transformers("bitsandbytes accelerate", ", on a GPU or a CPU"),
        folders.with_vllm(result, " (pip install bitsandbytes)"),
    )
    return "\n\n".join(parts)


METHOD = Method(
    name="bitsandbytes",
    title="bitsandbytes",
    summary=(
        "NF4 or FP4 weights of 4 bits, or LLM.int8(), without calibration data, in seconds; for"
        " transformers, QLoRA and vLLM"
    ),
    facts=Facts(
        bits="4 (NF4, FP4), 8 (LLM.int8())",
        calibration="no",
        gpu_to_quantize="no",
        gpu_to_run="no",
        runtimes="transformers, vLLM",
    ),
    options=BitsandbytesOptions,
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
    prepare=partial(folders.prepare, "bitsandbytes"),
    folder_suffix=lambda options: f"BNB-{options.type}",
    packages=("bitsandbytes", "accelerate", "torch", "transformers", "tokenizers", "numpy"),
)
