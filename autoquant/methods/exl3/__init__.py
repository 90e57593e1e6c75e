"""EXL3 folders for exllamav3 and TabbyAPI: exllamav3's own converter, its files read back by our
own reader.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from autoquant import calibration
from autoquant.backends.exllamav2.check import HEAD
from autoquant.backends.exllamav3 import environment
from autoquant.core import journal
from autoquant.core.errors import InputError
from autoquant.core.files import free_bytes
from autoquant.core.journal import RunFolder
from autoquant.core.machine import memory_available
from autoquant.core.options import MethodOptions
from autoquant.core.plans import Plan, PlanItem
from autoquant.core.records import Artifact, RunRecord, Snapshot, Source
from autoquant.display.tables import size as in_words
from autoquant.formats.exl2 import FUSED
from autoquant.formats.exl3 import BLOCK
from autoquant.hub.fetch import same_disk
from autoquant.methods.base import ComparisonVariants, Method, Output, UsualType
from autoquant.methods.exl2.options import bitrate
from autoquant.methods.exl3 import making, mixing
from autoquant.methods.exl3.options import LEAST, SAMPLES, USUAL_HEAD, Exl3Options
from autoquant.methods.size import Size
from autoquant.source import bytes_to_fetch, shapes
from autoquant.source import layers as layers_of

# Of those that exllamav3 1.6.5 knows: dense language models that transformers has too, so that the
# files can be read back, and which it runs as transformers does: a test compares them one by one.
ARCHITECTURES: tuple[str, ...] = (
    "ArceeForCausalLM",
    "CohereForCausalLM",
    "Gemma2ForCausalLM",
    "Glm4ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SeedOssForCausalLM",
    "SmolLM3ForCausalLM",
)
WINDOWED = ("Gemma2ForCausalLM",)  # of these, those whose local attention it has
# of exllamav3's README, not measured here
COSTS = (
    "each bitrate is a conversion of its own; exllamav3's README puts one at a couple of minutes"
    " for smaller models and a few hours for 70 billion parameters and more, on one high-end"
    " consumer GPU"
    " (not measured here)"
)
MIXING = (
    "for optimized_bpw exllamav3 runs the model once for each group of layers of each bitrate, from"
    " there to its end, on one GPU (how long that takes was not measured here)"
)


class Exl3(Method[Exl3Options]):
    """EXL3."""

    name: ClassVar[str] = "exl3"
    title: ClassVar[str] = "EXL3"
    summary: ClassVar[str] = (
        "1 to 8 bits per weight on average by a trellis code, made for 2 to 4; for NVIDIA GPUs"
        " with exllamav3, TabbyAPI"
    )
    Options: ClassVar[type[MethodOptions]] = Exl3Options
    start: ClassVar[str] = (
        "python main.py --model-dir {folder} --model-name {name}  # in TabbyAPI's folder"
    )
    take_when: ClassVar[str] = (
        "it must fit your NVIDIA GPU in 2 to 4 bits per weight (any average of 1 to 8 bits)"
    )
    bits: ClassVar[str] = "1 to 8, any average"
    requires_calibration: ClassVar[str] = "yes"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)
    gpu_to_run: ClassVar[str] = "yes"
    runtimes: ClassVar[str] = "exllamav3, TabbyAPI"
    tested_on: ClassVar[str] = "CPU, with CUDA kernels mocked"
    # assumed, and measured nowhere
    pace: ClassVar[Mapping[str, float]] = {"": 400.0}
    extra: ClassVar[str] = "exl3"
    heavy_imports: ClassVar[tuple[str, ...]] = ("exllamav3",)
    packages: ClassVar[tuple[str, ...]] = ("exllamav3", "torch", "transformers", "numpy")
    library_name: ClassVar[str] = "exllamav3"
    usual_types: ClassVar[tuple[UsualType, ...]] = tuple(
        UsualType(
            f"{bits}bpw", bits, "exllamav3", 7.5, head=USUAL_HEAD, options={"bpw": (str(bits),)}
        )
        for bits in (6.0, 5.0, 4.0, 3.0, 2.0)
    )
    demo_options: ClassVar[Mapping[str, Any]] = {
        "calibration": "builtin",
        "calibration_samples": 6,
        "calibration_length": 128,
        "bpw": ("4.0",),
    }
    comparison_variants: ClassVar[ComparisonVariants | None] = ComparisonVariants(
        ("2.0", "4.0"),
        lambda value: bitrate(value, LEAST),
        "bitrates (1 to 8)",
        without=("size", "optimized_bpw", "measurement_samples"),
    )

    def variants(self, options: Exl3Options) -> tuple[str, ...]:
        """One for each bitrate, and for each average that is mixed of them."""
        return options.types

    def resolve_defaults(self, source: Source, options: Exl3Options) -> Exl3Options:
        """Sizes as the bits that they allow."""
        if not options.size:
            return options
        if options.bpw != Exl3Options.model_fields["bpw"].default:
            raise InputError("size: bpw says the same in bits; leave one of them out")
        bits = tuple(dict.fromkeys(bits_for(source, options, one) for one in options.size))
        return options.model_copy(update={"bpw": bits, "size": ()})

    def folder_suffix(self, options: Exl3Options) -> str:
        """One folder for all bitrates."""
        return "EXL3"

    def environment(self, options: Exl3Options) -> dict[str, str]:
        """Variables of its workers."""
        return dict(environment.VARIABLES)

    def prepare(self, logs: Path) -> None:
        """Install exllamav3 and compile its extension, where there is a GPU."""
        environment.prepare(logs)

    def check(self, source: Source, options: Exl3Options) -> None:
        """What can be refused before anything is downloaded, but for the machine."""
        refuse(source, options)

    def about(self, source: Source, options: Exl3Options) -> list[str]:
        """Also, where exllamav3 does not look back only as far as the model does."""
        config = _config(source)
        window = config.get("sliding_window")
        used = config.get("use_sliding_window", True) and source.architecture not in WINDOWED
        if not (used and window and window < source.context):
            return super().about(source, options)
        return [
            *super().about(source, options),
            f"this model looks back {window:,} tokens, and exllamav3 1.6.5 lets it look back"
            " further: on longer texts its predictions differ from the original's",
        ]

    def check_hardware(self, options: Exl3Options, folder: Path) -> None:
        """Refuse a machine that cannot, unless all bitrates are in the folder already: they can be
        measured and uploaded anywhere.
        """
        steps = journal.read(folder)[1]
        if not all(f"quantize {type}" in steps for type in options.types):
            environment.check()

    def plan_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The usual bitrates."""
        return {} if given.get("size") else {"bpw": ("2.0", "2.5", "3.0", "4.0", "5.0", "6.0")}

    def plan(self, source: Source, options: Exl3Options, out: Path) -> Plan:
        """Sizes from the headers alone. ``refused`` if this machine has no GPU for it."""
        layers = refuse(source, options)
        averages = (*options.bpw, *options.optimized_bpw)
        sizes = {
            name: size(source, layers, float(bpw), options.head_bits)
            for name, bpw in zip(options.types, averages, strict=True)
        }
        download, free = bytes_to_fetch(source), free_bytes(out)
        hidden = _config(source)["hidden_size"]
        tokens = options.calibration_samples * min(options.calibration_length, source.context)
        states = 4 * tokens * hidden  # in float32 between blocks
        mixed = mixing.memory(source, options, hidden)[1] if options.optimized else 0
        # the quantized layers once as the converter's own files and once in the folder; the
        # samples' states, and their copy while they are written
        needed = sum(sizes.values()) + max(sizes.values()) + 2 * states
        needed += download if download and same_disk(out) else 0
        refused = environment.refusal(environment.look())
        if needed > free and not refused:
            refused = (
                f"not enough room on the disk: {needed / 1e9:.3f} GB are needed,"
                f" {free / 1e9:.3f} GB are free"
            )
        return Plan(
            self.name,
            source,
            tuple(
                PlanItem(name, bytes, 8 * bytes / source.parameters, False, "")
                for name, bytes in sizes.items()
            ),
            states,
            disk_needed=needed,
            disk_free=free,
            memory_needed=2_500_000_000 + max(states + 2 * source.largest_tensor, mixed),
            memory_available=memory_available(),
            download=download,
            refused=refused,
            notes=(COSTS, *((MIXING,) if options.optimized else ())),
        )

    def quantize(self, snapshot: Snapshot, options: Exl3Options, run: RunFolder) -> Output:
        """Make and verify each bitrate."""
        return making.quantize(snapshot, options, run)

    def describe_type(self, artifact: Artifact) -> str:
        """One line: when to take an artifact of its type."""
        for least, said in (
            (6, "practically lossless"),
            (5, "very close to the original"),
            (4, "the usual choice"),
            (3, "when 4 bits do not fit; a clear loss on small models"),
            (2, "large models only"),
        ):
            if artifact.facts["bpw"] >= least:
                return said
        return "the largest models only, as a last resort"

    def how_to_run(self, record: RunRecord) -> str:
        """The card's section on running the model."""
        types = [artifact.type for artifact in record.artifacts]
        tokens = max(256, min(record.source.context, 8192) // 256 * 256)
        return f"""Fetch one bitrate (a branch of its name, if this repository has branches for
them; otherwise leave out `--revision`, or name its folder with `--include`):

```bash
hf download MODEL --revision {types[0]} --local-dir model
```

```python
# exllamav3, on an NVIDIA GPU: a wheel from its releases, or pip install exllamav3, which compiles
from exllamav3 import Cache, Config, Generator, Model, Tokenizer

config = Config.from_directory("model")
model = Model.from_config(config)
cache = Cache(model, max_num_tokens={tokens})
model.load()
generator = Generator(model=model, cache=cache, tokenizer=Tokenizer.from_config(config))
print(generator.generate(prompt="Once upon a time", max_new_tokens=32))
```

[TabbyAPI](https://github.com/theroyallab/tabbyAPI): put the folder into its `models` folder and
name it as `model_name` in `config.yml`."""


def refuse(source: Source, options: Exl3Options) -> dict[str, tuple[int, int]]:
    """Refuse a source or options that cannot work, but for the machine; return the blocks'
    matrices.
    """
    layers = layers_of.check(source, "EXL3")
    if source.architecture not in ARCHITECTURES:
        raise InputError(
            f"exl3: the architecture {source.architecture} is not among those tested here:"
            f" {', '.join(ARCHITECTURES)}. GGUF takes more"
        )
    config = _config(source)
    if config["hidden_size"] % BLOCK:
        raise InputError(
            f"exl3: the hidden size of {source.id} is {config['hidden_size']}, and exllamav3 1.6.5"
            f" runs such models only where it is a multiple of {BLOCK}. Take exl2, gguf, gptq or"
            " awq"
        )
    if any(name.rpartition(".")[2] in FUSED for name in layers):
        odd = _odd_parts(config)
        if odd:
            raise InputError(
                f"exl3: exllamav3 stores this model's fused matrices in parts, whose outputs"
                f" ({', '.join(map(str, odd))}) must be multiples of {BLOCK} to be read back. Take"
                " gguf, gptq or awq"
            )
    mixing.refuse(options)
    if not options.own_text:
        calibration.check(options)
    elif options.calibration_samples > SAMPLES:
        raise InputError(
            f"calibration_samples: {options.calibration_samples}; the text that comes with"
            f" exllamav3 is taken for up to {SAMPLES}, its default. Choose fewer, or another"
            " calibration"
        )
    return layers


def _config(source: Source) -> dict[str, Any]:
    return dict(json.loads((source.folder / "config.json").read_text(encoding="utf-8")))


def _odd_parts(config: Mapping[str, Any]) -> list[int]:
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    of_keys = width * int(config.get("num_key_value_heads") or heads)
    return [one for one in (width * heads, of_keys, config["intermediate_size"]) if one % BLOCK]


def _padded(outputs: int, inputs: int, bits: float) -> float:
    """Bytes of a matrix at a bitrate: codes of both sides padded, two scales, a mark."""
    rows, columns = (-(-one // BLOCK) * BLOCK for one in (outputs, inputs))
    return rows * columns * bits / 8 + 2 * (rows + columns) + 4


def size(source: Source, layers: Mapping[str, tuple[int, int]], bpw: float, head_bits: int) -> int:
    """The size to be, nearly: the blocks' matrices at ``bpw``, the head at its own, 16 bits for all
    else (with the embeddings; a head that is tied to them is stored beside them).
    """
    blocks = sum(outputs * inputs for outputs, inputs in layers.values())
    hidden = _config(source)["hidden_size"]
    head = source.vocab_size * hidden
    tied = f"{HEAD}.weight" not in shapes(source)
    rest = source.parameters - blocks - (0 if tied else head)
    held = sum(_padded(*shape, bpw) for shape in layers.values())
    return int(
        held
        + (2 * head if head_bits == 16 else _padded(source.vocab_size, hidden, head_bits))
        + 2 * rest
    )


def bits_for(source: Source, options: Exl3Options, asked: str) -> str:
    """The most bits per weight with which a model's weights take no more than a size. Raises
    InputError for a size that 1 to 8 bits do not reach.
    """
    wanted, layers = Size.parse(asked).bytes(0), refuse(source, options)
    least, most = (size(source, layers, bits, options.head_bits) for bits in (LEAST, 8.0))
    bits = LEAST + (8.0 - LEAST) * (wanted - least) / (most - least)
    if not least <= wanted <= most * 1.01:
        raise InputError(
            f"size: {asked} is {in_words(wanted)}, and with {LEAST} to 8 bits this model has"
            f" {in_words(least)} to {in_words(most)}. Ask for a size in between"
        )
    return bitrate(math.floor(100 * min(8.0, bits)) / 100, LEAST)
