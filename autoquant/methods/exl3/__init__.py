"""EXL3 folders for exllamav3 and TabbyAPI: exllamav3's own converter, its files read back by our
own reader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from autoquant import calibration
from autoquant.backends.exllama import Environment
from autoquant.backends.exllamav2.check import HEAD
from autoquant.backends.exllamav3.environment import EXLLAMAV3
from autoquant.core.errors import InputError
from autoquant.core.journal import RunFolder
from autoquant.core.options import MethodOptions
from autoquant.core.records import Artifact, RunRecord, Snapshot, Source
from autoquant.formats.exl2 import FUSED
from autoquant.formats.exl3 import BLOCK
from autoquant.methods.base import ComparisonVariants, Output, UsualType
from autoquant.methods.bitrates import Bitrates, Layers
from autoquant.methods.bitrates.options import USUAL_HEAD, bitrate
from autoquant.methods.exl3 import making, mixing
from autoquant.methods.exl3.options import LEAST, SAMPLES, Exl3Options
from autoquant.source import layers as layers_of
from autoquant.source import shapes

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


class Exl3(Bitrates[Exl3Options]):
    """EXL3."""

    name: ClassVar[str] = "exl3"
    title: ClassVar[str] = "EXL3"
    summary: ClassVar[str] = (
        "1 to 8 bits per weight on average by a trellis code, made for 2 to 4; for NVIDIA GPUs"
        " with exllamav3, TabbyAPI"
    )
    Options: ClassVar[type[MethodOptions]] = Exl3Options
    take_when: ClassVar[str] = (
        "it must fit your NVIDIA GPU in 2 to 4 bits per weight (any average of 1 to 8 bits)"
    )
    bits: ClassVar[str] = "1 to 8, any average"
    runtimes: ClassVar[str] = "exllamav3, TabbyAPI"
    machine: ClassVar[Environment] = EXLLAMAV3
    costs: ClassVar[str] = COSTS
    usual_bits: ClassVar[tuple[str, ...]] = ("2.0", "2.5", "3.0", "4.0", "5.0", "6.0")
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

    def refuse(self, source: Source, options: Exl3Options) -> Layers:
        """What exllamav3 would spoil, and averages that cannot be mixed."""
        return refuse(source, options)

    def size(self, source: Source, layers: Layers, bpw: float, head_bits: int) -> int:
        """The blocks' matrices at ``bpw``, the head at its own, 16 bits for all else."""
        return size(source, layers, bpw, head_bits)

    def states(self, source: Source, options: Exl3Options, layers: Layers) -> int:
        """In float32."""
        tokens = options.calibration_samples * min(options.calibration_length, source.context)
        return int(4 * tokens * _config(source)["hidden_size"])

    def averages(self, options: Exl3Options) -> tuple[str, ...]:
        """Those that are mixed too."""
        return (*options.bpw, *options.optimized_bpw)

    def memory(self, source: Source, options: Exl3Options, states: int) -> int:
        """The converter's or the optimizer's, whichever is more."""
        most = super().memory(source, options, states)
        hidden = int(_config(source)["hidden_size"])
        return max(most, mixing.memory(source, options, hidden)[1] if options.optimized else 0)

    def notes(self, options: Exl3Options) -> tuple[str, ...]:
        """Of the optimizer too."""
        return (*super().notes(options), *((MIXING,) if options.optimized else ()))

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


def refuse(source: Source, options: Exl3Options) -> Layers:
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


def size(source: Source, layers: Layers, bpw: float, head_bits: int) -> int:
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
