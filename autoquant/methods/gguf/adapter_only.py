"""A LoRA adapter alone as a GGUF file, which llama.cpp and Ollama load beside the model's."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import converter as llama
from autoquant.backends.llamacpp.taking import taking
from autoquant.core.errors import InputError
from autoquant.core.files import key_of, sha256_of
from autoquant.core.journal import RunFolder
from autoquant.core.plans import PlanItem
from autoquant.core.progress import Bar
from autoquant.core.records import Artifact, Check, Snapshot, Source, Stored
from autoquant.methods.base import Output
from autoquant.methods.gguf.convert import convert, precision
from autoquant.methods.gguf.options import GgufOptions
from autoquant.runtime import process
from autoquant.source.adapter import of_pattern, split
from autoquant.source.headers import read_json, safetensors_header
from autoquant.source.weights import ADAPTER, ADAPTER_CONFIG

TYPE = "LoRA"
WHEN = "beside any GGUF file of the model that it was trained on"
# options of the model's own files, which have no effect here
OTHERS = (
    "types", "imatrix", "keep_intermediate", "output_type", "embedding_type", "tensor_types",
    "pure", "split_size", "mmproj", "mmproj_type", "download", "modelfile", "allow_requantize",
    "threads", "eval_by_weights",
)  # fmt: skip
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}


def check(source: Source, options: GgufOptions) -> None:
    """Refuse what is no adapter, what llama.cpp's adapter files cannot hold, and options that have
    no effect. Raises InputError.
    """
    if source.adapter is None or source.adapted is None:
        raise InputError(
            f"adapter_only: {source.id} is no LoRA adapter (a folder or repository with"
            f" {ADAPTER_CONFIG} and no other weights); leave adapter_only out"
        )
    for name in OTHERS:
        if getattr(options, name) != GgufOptions.model_fields[name].default:
            raise InputError(f"{name}: an adapter alone has none; leave {name} out")
    if options.evaluate == "on":
        raise InputError(
            "evaluate: an adapter alone cannot be run; to measure what it makes of the model, leave"
            " adapter_only out"
        )
    for name in safetensors_header(source.adapter / ADAPTER):
        module, part = split(name)
        if part not in (".lora_A.weight", ".lora_B.weight"):
            what = {"": "the whole weight", ".lora_magnitude_vector": "DoRA's magnitudes"}
            raise InputError(
                f"adapter_only: {source.id} has {what.get(part, 'changes')} of {module}, which is"
                " not written into adapter files. Merge it: leave adapter_only out"
            )


def outtype(source: Source, options: GgufOptions) -> str:
    """The type of the adapter's matrices: as asked, or as they are."""
    assert source.adapter is not None
    dtypes = {dtype for dtype, _ in safetensors_header(source.adapter / ADAPTER).values()}
    own = next(iter(dtypes)) if len(dtypes) == 1 else "F32"
    return (
        options.precision
        if options.precision != "auto"
        else {"F16": "f16", "BF16": "bf16"}.get(own, "f32")
    )


def plan(source: Source, options: GgufOptions) -> PlanItem:
    """Its size, without the few hundred bytes of names."""
    assert source.adapter is not None
    weights = sum(
        math.prod(shape) for _, shape in safetensors_header(source.adapter / ADAPTER).values()
    )
    width = WIDTHS[outtype(source, options).upper()]
    return PlanItem(TYPE, width * weights, 8.0 * width, False, "")


def scales(folder: Path) -> dict[str, float]:
    """What each second matrix is multiplied by, so that alpha / rank, as llama.cpp has it with one
    alpha for all, comes to peft's: alpha / √rank of rsLoRA, and alphas by pattern. Without those
    that stay as they are.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    alpha = float(config.get("lora_alpha") or 8)
    found = {}
    for name, (_, shape) in safetensors_header(folder / ADAPTER).items():
        module, part = split(name)
        if part != ".lora_B.weight":
            continue
        own = of_pattern(config, "alpha_pattern", "lora_alpha", module)
        factor = own / alpha * (math.sqrt(shape[-1]) if config.get("use_rslora") else 1.0)
        if factor != 1.0:
            found[name] = factor
    return found


def make(snapshot: Snapshot, options: GgufOptions, run: RunFolder) -> Output:
    """Write and check the file, unless the journal knows it as done."""
    source, tools = snapshot.source, llama.locate(options.converter)
    kind = outtype(source, options)
    name = f"{source.name}-{TYPE}-{kind.upper()}.gguf"
    base = source.adapted.where if source.adapted else ""
    model = sha256_of(source.folder / "config.json")  # of the base, with its shapes
    key = key_of(snapshot.sha256, llama.installed_version(), kind, source.name, base, model)
    facts = run.done("adapter", key)
    if facts is None:
        part = run.work / name
        with Bar("convert the adapter"), tempfile.TemporaryDirectory() as scratch:
            header = Path(scratch) / "header.gguf"
            convert(
                source, options, header=header, logs=run.logs, types=[],
                outtype=precision(source, options), room=None, need={},
            )  # fmt: skip
            seen = process.call(
                "autoquant.backends.llamacpp.lora:convert",
                log=run.logs,
                env=llama.environment(tools),
                adapter=str(snapshot.folder),
                base=str(source.folder),
                converter=str(tools),
                target=str(part),
                header=str(header),
                outtype=kind,
                scales=scales(snapshot.folder),
                taking=taking(source),
            )
        artifact = Artifact(
            TYPE,
            tuple(Stored(*one) for one in seen["files"]),
            seen["bits_per_weight"],
            checks=tuple(Check(*one) for one in seen["checks"]),
            facts={"imatrix": False, "adapter": True},
        )
        facts = artifact.to_json()
        hashes = {one.name: one.sha256 for one in artifact.files}
        run.record("adapter", key, [run.finish(part)], facts, hashes)
    artifact = Artifact.from_json(facts)
    run.passed(artifact)
    about: dict[str, Any] = {
        "llama.cpp": f"of llama-cpp-python {llama.installed_version()}",
        "converted as": kind.upper(),
    }
    return Output((artifact,), None, about, ())


def how_to_run(name: str, base: str) -> str:
    """The card's section on running it."""
    return f"""Give a GGUF file of {base} for `BASE.gguf`, of any type.

```bash
# llama.cpp
llama-cli -m BASE.gguf --lora {name} -p "Once upon a time"

# Ollama
printf 'FROM ./BASE.gguf\\nADAPTER ./{name}\\n' > Modelfile
ollama create adapted -f Modelfile && ollama run adapted
```

```python
# llama-cpp-python
from llama_cpp import Llama

llm = Llama("BASE.gguf", lora_path="{name}")
print(llm("Once upon a time", max_tokens=32)["choices"][0]["text"])
```"""
