"""EXL2 folders for exllamav2, TabbyAPI and text-generation-webui: exllamav2's own converter,
measured once for any number of bitrates, its files read back by our own reader.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from autoquant import calibration
from autoquant.backends.exllama import Environment
from autoquant.backends.exllamav2 import check as exl2_check
from autoquant.backends.exllamav2 import converter, measurement
from autoquant.backends.exllamav2.environment import EXLLAMAV2
from autoquant.core.errors import InputError
from autoquant.core.journal import RunFolder
from autoquant.core.options import MethodOptions
from autoquant.core.records import Artifact, RunRecord, Snapshot, Source
from autoquant.methods.base import ComparisonVariants, Output, UsualType
from autoquant.methods.bitrates import Bitrates, Layers
from autoquant.methods.bitrates.options import bitrate
from autoquant.methods.exl2 import work
from autoquant.methods.exl2.options import OWN_ROWS, Exl2Options
from autoquant.source import layers as layers_of
from autoquant.source import shapes

# group size, and of which width which share of the inputs is (exllamav2 0.3.2,
# conversion/qparams.py: qparams_headoptions)
HEAD_MIXES = {
    2: (32, ((4, 0.3), (2, 0.7))),
    3: (32, ((4, 0.15), (3, 0.85))),
    4: (32, ((6, 0.15), (4, 0.85))),
    5: (128, ((6, 0.15), (5, 0.85))),
    6: (128, ((8, 0.15), (6, 0.85))),
    8: (128, ((8, 1.0),)),
}
# Of those that exllamav2 0.3.2 knows (others it converts "as Llama", wrong): dense language models
# that transformers has too, so that the files can be read back, and which it runs as transformers
# does: a test compares them one by one.
ARCHITECTURES = (
    "CohereForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Glm4ForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
)
WRONG = {
    "Qwen3ForCausalLM": (
        "exllamav2 0.3.2 computes its head norms as layer norms, where the model has RMS norms (of"
        " a random model the predictions were off by a quarter)"
    )
}
# of exllamav2's own guide, not measured here
COSTS = (
    "measuring is done once for all bitrates; exllamav2's guide (doc/convert.md) puts it at about"
    " twelve quantizations, and says that a model of 7 billion parameters needs about 8 GB of GPU"
    " memory and 16 GB of RAM, one of 70 billion 24 GB and 64 GB (not measured here)"
)


class Exl2(Bitrates[Exl2Options]):
    """EXL2."""

    name: ClassVar[str] = "exl2"
    title: ClassVar[str] = "EXL2"
    summary: ClassVar[str] = (
        "2 to 8 bits per weight on average, mixed by measured error; for NVIDIA GPUs with"
        " exllamav2, TabbyAPI, text-generation-webui"
    )
    Options: ClassVar[type[MethodOptions]] = Exl2Options
    take_when: ClassVar[str] = (
        "you want the largest version that fits your NVIDIA GPU (any average of 2 to 8 bits)"
    )
    bits: ClassVar[str] = "2 to 8, any average"
    runtimes: ClassVar[str] = "exllamav2, TabbyAPI, text-generation-webui"
    cards: ClassVar[str] = "NVIDIA H100"
    machine: ClassVar[Environment] = EXLLAMAV2
    costs: ClassVar[str] = COSTS
    usual_bits: ClassVar[tuple[str, ...]] = ("2.5", "3.0", "4.0", "5.0", "6.0", "8.0")
    extra: ClassVar[str] = "exl2"
    heavy_imports: ClassVar[tuple[str, ...]] = ("exllamav2",)
    packages: ClassVar[tuple[str, ...]] = (
        "exllamav2",
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
    )
    library_name: ClassVar[str] = "exllamav2"
    usual_types: ClassVar[tuple[UsualType, ...]] = tuple(
        UsualType(f"{bits}bpw", bits, "exllamav2", 6.0, head=6, options={"bpw": (str(bits),)})
        for bits in (6.0, 5.0, 4.0, 3.0)
    )
    # not the other notebooks' default, which exllamav2 does not run (see WRONG)
    notebook_defaults: ClassVar[Mapping[str, Any]] = {"model": "Qwen/Qwen2.5-0.5B-Instruct"}
    demo_options: ClassVar[Mapping[str, Any]] = {
        "calibration": "builtin",
        "calibration_samples": 6,
        "calibration_length": 128,
        "measurement_samples": 3,
        "bpw": ("4.0",),
    }
    comparison_variants: ClassVar[ComparisonVariants | None] = ComparisonVariants(
        ("3.0", "6.0"), bitrate, "bitrates (2 to 8)", without=("size",)
    )

    def refuse(self, source: Source, options: Exl2Options) -> Layers:
        """What exllamav2 would spoil."""
        return refuse(source, options)

    def size(self, source: Source, layers: Layers, bpw: float, head_bits: int) -> int:
        """The blocks' matrices at ``bpw``, the head as HEAD_MIXES says, 16 bits for all else."""
        return size(source, layers, bpw, head_bits)

    def states(self, source: Source, options: Exl2Options, layers: Layers) -> int:
        """In float16, of what goes into a block and what comes out."""
        samples = OWN_ROWS if options.own_text else options.calibration_samples
        hidden = min(inputs for _, inputs in layers.values())
        return 2 * 2 * samples * min(options.calibration_length, source.context) * hidden

    def check(self, source: Source, options: Exl2Options) -> None:
        """The measurement too, if one is given."""
        super().check(source, options)
        if options.measurement:
            path, said = measurement.given(options.measurement, source)
            measurement.read(path, said)

    def without_slow_checks(self, options: Exl2Options) -> Exl2Options:
        """A measurement is another model's, and may lie on the Hub."""
        return options.model_copy(update={"measurement": ""})

    def quantize(self, snapshot: Snapshot, options: Exl2Options, run: RunFolder) -> Output:
        """Measure once, then make and verify each bitrate."""
        return work.quantize(snapshot, options, run)

    def describe_type(self, artifact: Artifact) -> str:
        """One line: when to take an artifact of its type."""
        for least, said in (
            (6, "practically lossless"),
            (5, "very close to the original"),
            (4, "the usual choice"),
            (3, "when 4 bits do not fit; clear loss on small models"),
        ):
            if artifact.facts["bpw"] >= least:
                return said
        return "large models only, as a last resort"

    def how_to_run(self, record: RunRecord) -> str:
        """The card's section on running the model."""
        types = [artifact.type for artifact in record.artifacts]
        return f"""Fetch one bitrate (a branch of its name, if this repository has branches for
them; otherwise leave out `--revision`, or name its folder with `--include`):

```bash
hf download MODEL --revision {types[0]} --local-dir model
```

**exllamav2**, on an NVIDIA GPU (`pip install exllamav2 tokenizers`):

```python
import os

# with exllamav2 0.3.2: without flash-attn its other attention path looks at later tokens
os.environ["EXLLAMA_NO_SDPA"] = "1"
from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGenerator

config = ExLlamaV2Config("model")
model = ExLlamaV2(config)
cache = ExLlamaV2Cache(model, max_seq_len={min(record.source.context, 8192)}, lazy=True)
model.load_autosplit(cache)
# paged=False: one prompt at a time, which needs no flash-attn (2.5.7 or newer)
generator = ExLlamaV2DynamicGenerator(
    model=model, cache=cache, tokenizer=ExLlamaV2Tokenizer(config), paged=False
)
print(generator.generate(prompt="Once upon a time", max_new_tokens=32))
```

[TabbyAPI](https://github.com/theroyallab/tabbyAPI): put the folder into its `models` folder and
name it as `model_name` in `config.yml`.
[text-generation-webui](https://github.com/oobabooga/text-generation-webui): put it into
`user_data/models` and choose the loader ExLlamav2_HF (releases that still have it)."""


def refuse(source: Source, options: Exl2Options) -> Layers:
    """Refuse a source or options that cannot work, but for the machine; return the blocks'
    matrices.
    """
    layers = layers_of.check(source, "EXL2")
    if source.architecture in WRONG:
        raise InputError(
            f"exl2: {source.architecture}: {WRONG[source.architecture]}. Take gguf, gptq or awq"
        )
    if source.architecture not in ARCHITECTURES:
        raise InputError(
            f"exl2: the architecture {source.architecture} is not among those tested here:"
            f" {', '.join(ARCHITECTURES)}. (exllamav2 itself would convert any model as if it were"
            " a Llama.) GGUF takes more"
        )
    config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    converter.converter_config(config)
    odd = [f"{name} ({inputs} inputs)" for name, (_, inputs) in layers.items() if inputs % 32]
    if odd:
        raise InputError(
            f"exl2: exllamav2 quantizes layers whose inputs are a multiple of 32; {len(odd)} are"
            f" not: {', '.join(odd[:3])}"
        )
    if options.own_text:
        length = min(options.calibration_length, source.context)
        if length % 128:
            raise InputError(
                f"calibration_length: {length} tokens; the text that comes with exllamav2 needs a"
                " multiple of 128. Choose one, or another calibration"
            )
    else:
        calibration.check(options)
    return layers


def size(source: Source, layers: Layers, bpw: float, head_bits: int) -> int:
    """The size to be, nearly: the blocks' matrices at ``bpw``, the head as HEAD_MIXES says, 16 bits
    for all else (with the embeddings).
    """
    blocks = sum(outputs * inputs for outputs, inputs in layers.values())
    hidden = min(inputs for _, inputs in layers.values())
    head = source.vocab_size * hidden
    tied = f"{exl2_check.HEAD}.weight" not in shapes(source)
    rest = source.parameters - blocks - (0 if tied else head)
    group, mix = HEAD_MIXES[head_bits]
    rows, stored, groups = hidden, 0, 0
    for bits, share in mix:
        here = min(math.ceil(min(hidden * share, rows) / group), math.ceil(rows / group))
        stored, groups, rows = (
            stored + bits * min(here * group, rows),
            groups + here,
            max(0, rows - here * group),
        )
    outputs = -(-source.vocab_size // 32) * 32
    return int(blocks * bpw / 8 + outputs * (stored + 4 * groups) / 8 + 4 * hidden + 2 * rest)
