"""How to make and start a model: command lines with the right context and offload."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from autoquant.core.records import Source
from autoquant.methods import METHODS
from autoquant.sizing.choices import LLAMA, SERVER, Choice
from autoquant.sizing.devices import Device
from autoquant.source.from_gguf import FREELY


def commands(
    source: Source,
    choices: Sequence[Choice],
    device: Device,
    context: int,
    kv_type: str,
    pre_tokenizer: str = "",
    mmproj: str = "",
) -> list[str]:
    """To make and start the best of ``choices`` with llama.cpp and Ollama, and the best that vLLM
    serves. Nothing for what does not fit. ``mmproj`` is the file of what the model sees or hears
    with, by its name in the folder that is made.
    """
    out = []
    fitting = [one for one in choices if one.fits != "no"]
    if best := next((one for one in fitting if one.runs == LLAMA), None):
        out += _gguf(source, best, device, context, kv_type, pre_tokenizer, mmproj)
    served = (one for one in fitting if one.runs == SERVER)
    if best := next(served, None):
        method = METHODS[best.method]
        asked = method.Options()
        folder = f"{source.name}-{method.folder_suffix(asked)}"
        out += [
            "# for many requests at once, with vLLM",
            f"autoquant quantize {best.method} {named(source)}",
            f"vllm serve ./{folder} --max-model-len {context}",
        ]
    return out


def _gguf(
    source: Source,
    best: Choice,
    device: Device,
    context: int,
    kv_type: str,
    pre_tokenizer: str,
    mmproj: str,
) -> list[str]:
    name, folder = f"{source.name}-{best.type}", f"./{source.name}-GGUF"
    path = f"{folder}/{name}.gguf"
    more = " --imatrix builtin" * best.needs_imatrix + " --modelfile" * ("Ollama" in device.runs)
    if source.gguf and source.dtype not in FREELY:
        more += " --allow-requantize"
    if pre_tokenizer and not source.gguf:
        more += f" --pre-tokenizer {shlex.quote(pre_tokenizer)}"
    moved = f" -ngl {best.layers}" if device.kind in ("gpu", "unified") else ""
    quantized = f" -fa on -ctk {kv_type} -ctv {kv_type}" if kv_type != "f16" else ""
    start = f"-c {context} -np 1{moved}{quantized}"
    if source.gguf and best.type == source.dtype:  # it is there already
        from_hub = f"-hf {source.id}:{source.dtype}"
        given = f"-m {named(source)}" if source.revision is None else from_hub
        sees = f" --mmproj {shlex.quote(str(source.folder / mmproj))}" if mmproj else ""
        return [f"llama-server {given}{sees if source.revision is None else ''} {start}"]
    own = "" if source.gguf else mmproj  # of a GGUF file it may be named anew, or stay where it is
    lines = [
        f"autoquant quantize gguf {named(source)} --types {best.type}{more}",
        f"llama-server -m {path}{f' --mmproj {folder}/{own}' if own else ''} {start}",
    ]
    if "Ollama" in device.runs:
        cache = f"OLLAMA_FLASH_ATTENTION=1 OLLAMA_KV_CACHE_TYPE={kv_type} " if quantized else ""
        lines += [
            "# or with Ollama, whose server takes the same context",
            f"{cache}OLLAMA_NUM_PARALLEL=1 OLLAMA_CONTEXT_LENGTH={context} ollama serve",
            f"ollama create {name.lower()} -f {path.removesuffix('.gguf')}.Modelfile",
        ]
    return lines


def named(source: Source) -> str:
    """How a command names the model."""
    if source.revision is not None:
        return source.id + (f":{source.tag}" if source.tag else "")
    folder = source.adapter or source.given or source.folder
    return shlex.quote(str(folder / source.gguf if source.gguf else folder))
