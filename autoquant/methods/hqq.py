"""HQQ: weights of 8 to 1 bits without calibration, by the library hqq, saved as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import field_validator

from autoquant.core.errors import InputError
from autoquant.core.options import MethodOptions, option
from autoquant.core.records import Artifact, RunRecord, Source
from autoquant.formats import hqq as hqq_format
from autoquant.methods.base import ComparisonVariants, UsualType, choice, parse_choice
from autoquant.methods.grouped import AUTO, group
from autoquant.methods.recipe import Recipe
from autoquant.methods.tensorwise import TensorwiseMethod
from autoquant.runtime import environments
from autoquant.source.layers import check_parts
from autoquant.source.parts import division

BITS, GROUP_SIZES = (1, 2, 3, 4, 8), (-1, 8, 16, 32, 64, 128, 256)
DEFAULT_GROUP = 64  # hqq's own default
VALUES = 68  # bytes of a layer's single values, such as its shape
ADVICE = "more bits or smaller groups (--group-size 16) do better"
# its notebook is also that of the other methods without calibration
TECHNIQUES = ("8", "4", "3", "2", "nf4", "int8", "int8-dynamic", "fp8-dynamic")
MORE = ("1", "fp4", "int8-static")  # techniques that its notebook knows too


class HqqOptions(MethodOptions):
    """The options of HQQ. Names are hqq's, except bits (nbits)."""

    main: ClassVar[tuple[str, ...]] = ("bits", "group_size", "axis", "evaluate", "upload")

    bits: int = option(
        4, "bits per weight: 8, 4, 3, 2 or 1; below 4 the loss is large", metavar="1|2|3|4|8"
    )
    group_size: int = option(
        AUTO,
        "weights that share a scale and a zero point, which take 32 bits: 8 to 256, or -1 (a whole"
        " row, or column with axis 0). 0 takes 64, or the largest smaller size that fits every"
        " layer",
        metavar="0|-1|8|16|32|64|128|256",
    )
    axis: int = option(
        1,
        "how weights are grouped: 1 along the inputs of an output, which fast kernels need; 0"
        " across outputs; their losses hardly differ",
        metavar="0|1",
    )

    @field_validator("bits")
    @classmethod
    def _bits(cls, value: int) -> int:
        return choice(value, BITS)

    @field_validator("group_size")
    @classmethod
    def _group(cls, value: int) -> int:
        return choice(
            value, (AUTO, *GROUP_SIZES), " (0: chosen by the model; -1: one scale for a whole row)"
        )

    @field_validator("axis")
    @classmethod
    def _axis(cls, value: int) -> int:
        return choice(value, (0, 1))


class Hqq(TensorwiseMethod[HqqOptions]):
    """HQQ."""

    name: ClassVar[str] = "hqq"
    cards: ClassVar[str] = "NVIDIA H100"
    title: ClassVar[str] = "HQQ"
    summary: ClassVar[str] = (
        "weights of 8, 4, 3, 2 or 1 bits, without calibration data, in seconds to minutes; run by"
        " the library hqq"
    )
    Options: ClassVar[type[MethodOptions]] = HqqOptions
    take_when: ClassVar[str] = "you want no calibration (no text is run through the model)"
    bits: ClassVar[str] = "8, 4, 3, 2, 1"
    requires_calibration: ClassVar[str] = "no"
    gpu_to_run: ClassVar[str] = "no"
    runtimes: ClassVar[str] = "autoquant.formats.hqq (transformers 5 and hqq); transformers 4"
    # with AutoQuant: no server loads all of its kinds
    start: ClassVar[str] = 'autoquant answer {path} "Once upon a time"'
    # bench/RESULTS.md, "Tensor by tensor": 3.2 billion weights
    pace: ClassVar[Mapping[str, float]] = {"": 145.0}
    extra: ClassVar[str] = "hqq"
    heavy_imports: ClassVar[tuple[str, ...]] = ("hqq.core.quantize",)
    packages: ClassVar[tuple[str, ...]] = ("hqq", "torch", "transformers", "tokenizers", "numpy")
    library_name: ClassVar[str] = "hqq"
    # scale and zero of 16 bits a group of 64
    usual_types: ClassVar[tuple[UsualType, ...]] = (
        UsualType("4bit-64g", 4.5, "transformers", 6.0, options={"bits": 4}),
    )
    comparison_variants: ClassVar[ComparisonVariants | None] = ComparisonVariants(
        TECHNIQUES,
        parse_choice(*TECHNIQUES, *MORE),
        "techniques (HQQ by its bits: 8, 4, 3, 2, 1; nf4, fp4, int8; int8-dynamic, int8-static,"
        " fp8-dynamic)",
    )

    def type_of(self, options: HqqOptions) -> str:
        """4bit-64g, with -axis0 where that is chosen."""
        axis = "" if options.axis else "-axis0"
        return f"{options.bits}bit-{group(options.group_size)}{axis}"

    def folder_suffix(self, options: HqqOptions) -> str:
        """HQQ-4bit-64g."""
        return f"HQQ-{self.type_of(options)}"

    def resolve_defaults(self, source: Source, options: HqqOptions) -> HqqOptions:
        """The options with a group size: 64, or the largest below that fits every layer."""
        if options.group_size != AUTO:
            return options
        sizes = sorted((size for size in GROUP_SIZES if 0 < size <= DEFAULT_GROUP), reverse=True)
        layers = division(source).shapes
        fit = (size for size in sizes if not misfits(layers, options, size))
        return options.model_copy(update={"group_size": next(fit, DEFAULT_GROUP)})

    def check(self, source: Source, options: HqqOptions) -> None:
        """What can be refused within a second."""
        layers = check_parts(source, self.title).shapes
        odd = misfits(layers, options, options.group_size)
        if odd:
            fit = [str(size) for size in GROUP_SIZES if not misfits(layers, options, size)]
            named = ", ".join(
                f"{name} ({layers[name][1]} inputs, {layers[name][0]} outputs)" for name in odd[:3]
            )
            raise InputError(
                f"group_size: {options.group_size} with axis {options.axis} and {options.bits} bits"
                f" does not fit {len(odd)} of {len(layers)} layers:"
                f" {named}{' …' if len(odd) > 3 else ''}. Sizes that fit this model:"
                f" {', '.join(fit) or 'none'}"
            )

    def size(self, source: Source, options: HqqOptions) -> int:
        """Codes, float16 scales and zero points and some single values of each layer, and 16 bits
        for all else.
        """
        divided = division(source)
        total = divided.kept
        for shape in divided.shapes.values():
            rows, columns, groups = grouped(shape, options, options.group_size)
            codes = rows * columns * options.bits // 8
            if options.bits == 3:  # ten codes of 3 bits in a word of 32
                codes = 4 * -(-rows // 10) * columns
            total += codes + 4 * groups + VALUES
        return total

    def recipe(self, options: HqqOptions) -> Recipe:
        """By its own library."""
        group_size = None if options.group_size == -1 else options.group_size
        wanted = hqq_format.block(options.bits, group_size, options.axis, [])
        return Recipe(
            target="autoquant.backends.hqq:quantize",
            settings={
                "bits": options.bits,
                "group_size": options.group_size,
                "axis": options.axis,
            },
            algorithm=f"HQQ (hqq {environments.version('hqq')})",
            file_format="hqq in safetensors",
            wanted={name: wanted[name] for name in ("quant_method", "quant_config")},
            bits=options.bits,
            advice=ADVICE,
        )

    def describe_type(self, artifact: Artifact) -> str:
        """One line: when to take an artifact of its type."""
        return {
            8: "practically lossless, at half the size",
            4: "4 bits without a calibration text",
            3: "when 4 bits do not fit; takes 3.2 bits, ten codes in 32",
            2: "experiments; small groups",
            1: "experiments: weights move by about their own size",
        }[artifact.facts["settings"]["bits"]]

    def how_to_run(self, record: RunRecord) -> str:
        """The card's section on running the model."""
        more = ""
        if any(_marlin(artifact) for artifact in record.artifacts):
            more = (
                " vLLM's `hqq_marlin` reads this layout for 4 bits in groups of 64 along axis 1, as"
                " here; that was not tried."
            )
        return f"""**Not with transformers 5**, which fills the quantized layers with random
numbers and says so only in its log. These files are loaded by `autoquant.formats.hqq`, which makes
an ordinary transformers model with the layers of [hqq](https://github.com/mobiusml/hqq) in it;
nothing in the files is pickled, and nothing in them is run.
Replace `MODEL` with the name of the repository that holds these files.

```bash
pip install "autoquant-notebooks[hqq] @ git+{environments.repository()}"
```

```python
from autoquant.formats import hqq
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer

folder = snapshot_download("MODEL")  # of files on this machine: folder = "path/to/folder"
model = hqq.load(folder, device="cpu")  # or "cuda"
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))
```

The tensors and the block in config.json are laid out as transformers 4 wrote them: version 4.57
loads such folders with the same outputs (tested once, on a CPU, after its check for a
GPU had been disabled).{more}"""


def _marlin(artifact: Artifact) -> bool:
    """Whether an artifact has the layout that vLLM's hqq_marlin names."""
    settings = artifact.facts["settings"]
    return bool((settings["bits"], settings["group_size"], settings["axis"]) == (4, 64, 1))


def grouped(shape: tuple[int, int], options: HqqOptions, size: int) -> tuple[int, int, int]:
    """Rows and columns of a layer's matrix [outputs, inputs] as it is reshaped for grouping, and
    how many groups there are.
    """
    if size == -1:
        size = shape[1] if options.axis else shape[0]
    groups = shape[0] * shape[1] // size
    return (groups, size, groups) if options.axis else (size, groups, groups)


def misfits(layers: Mapping[str, tuple[int, int]], options: HqqOptions, size: int) -> list[str]:
    """The layers that a group size does not divide, or whose rows do not come out even in bytes
    (hqq would lose the last ones).
    """

    def fits(shape: tuple[int, int]) -> bool:
        even = 1 if options.bits == 3 else 8 // options.bits
        return (
            size == -1 or (shape[1] if options.axis else shape[0] * shape[1]) % size == 0
        ) and grouped(shape, options, size)[0] % even == 0

    return [name for name, shape in layers.items() if not fits(shape)]
