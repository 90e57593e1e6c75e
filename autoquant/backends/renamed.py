"""What a library has quantized, as the source has it: its names, its values where they were not
changed, and all that the library left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoquant.backends.tensorwise import Division
from autoquant.formats import awq, gptq
from autoquant.formats.architecture import config_of, match
from autoquant.formats.checkpoint import weight_files
from autoquant.formats.tensors import Part
from autoquant.formats.writer import ShardWriter
from autoquant.source.parts import by_module, place

PARTS = {"gptq": gptq.PARTS, "awq": awq.PARTS}


def write(saved: str, target: str, model: str, format: str) -> tuple[Division, set[str], bool]:
    """Write the weights of the folder ``saved`` into ``target``, as the checkpoint ``model`` names
    them: transformers 5 renames modules when it loads a model, takes experts apart, and loads no
    draft blocks, while runtimes look for the names that were published.

    ``format`` is that of a quantized layer's tensors: "gptq" or "awq". What is not quantized is the
    source's own, in 16 bits, unless the algorithm has changed it (AWQ scales norms). Returns how
    the source is divided, the names of the layers that are quantized, and whether those are other
    names than the library gave them.
    """
    from safetensors import safe_open

    opened: Any = safe_open  # untyped
    division = Division(model)
    files = [opened(path, framework="pt") for path in weight_files(Path(saved))]
    held = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dict)
    modules = by_module(division.found, division.headers)
    parts = {place(module): part for module, part in modules.items()}
    quantized: dict[str, str] = {}
    for name in held:
        base, _, suffix = name.rpartition(".")
        if suffix in PARTS[format] and place(base) in parts:
            quantized[name] = f"{parts[place(base)].name}.{suffix}"
    layers = {name.rpartition(".")[0] for name in quantized.values()}
    left = [part for part in parts.values() if part.name not in layers]
    kept = {**division.kept, **_whole(left, layers, division.parts)}
    now = _parameters(division)
    half = division.half()
    scaled = _activations(division, layers) if format == "awq" else {}
    with ShardWriter(Path(target), [*quantized.values(), *kept.values(), *scaled]) as out:
        for name, written in sorted(quantized.items(), key=lambda one: one[1]):
            out.add(written, held[name].get_tensor(name))
        for name, ones in scaled.items():
            out.add(name, held[name].get_tensor(name) if name in held else ones)
        for path in division.files:
            with opened(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    if name in kept:
                        own, changed = file.get_tensor(name), now.get(name, "")
                        value = _newer(
                            own, held[changed].get_tensor(changed) if changed in held else None
                        )
                        out.add(kept[name], division.in_half(value, half, name))
    return division, layers, any(name != written for name, written in quantized.items())


def exceptions(division: Division, taken: set[str], algorithm: str) -> dict[str, Any]:
    """What the quantization block must say where some matrices are not quantized: AWQ's loaders
    take every linear layer for quantized that is not named; of GPTQ's, transformers wants the names
    of those that are, and vLLM, SGLang and GPTQModel patterns of those that are not.
    """
    left = [part for name, part in division.parts.items() if name not in taken]
    if algorithm == "awq":
        named = {*(part.name for part in left), *division.plain}
        return {"modules_to_not_convert": sorted(named)} if left or division.found.towers else {}
    if not left:
        return {}
    return {
        "modules_in_block_to_quantize": [sorted({place(name)[1] for name in taken})],
        "dynamic": {
            rf"-:.*\.{re.escape(name)}$": {} for name in sorted({place(p.name)[1] for p in left})
        },
    }


def _whole(left: list[Part], layers: set[str], parts: Mapping[str, Part]) -> dict[str, str]:
    """The tensors of layers that were left as they are; a tensor of all experts stays if none of
    them is quantized.
    """
    taken = {part.tensor for name, part in parts.items() if name in layers}
    return {
        part.tensor: part.tensor if part.expert is not None else f"{part.name}.weight"
        for part in left
        if part.tensor not in taken
    }


def _activations(division: Division, layers: set[str]) -> dict[str, Any]:
    """The scales that an AWQ file has for the activation between two layers, of the architectures
    where AutoAWQ scaled it: loaders expect them, also if nothing was scaled. Name -> ones.
    """
    import torch
    from transformers.integrations.awq import AWQ_SCALES_MAPPINGS

    kind = config_of(str(division.folder)).model_type
    names = AWQ_SCALES_MAPPINGS.get(kind, {"act": "", "layer_before_act": " "})
    return {
        f"{layer.rpartition('.')[0]}.{names['act']}.scales": torch.ones(
            division.parts[layer].shape[0], dtype=torch.float16
        )
        for layer in sorted(layers)
        if layer.rpartition(".")[2] == names["layer_before_act"]
    }


def _parameters(division: Division) -> dict[str, str]:
    """Tensor -> the parameter that it alone makes."""
    kind, config = division.found.kind, config_of(str(division.folder))
    shapes = {name: shape for name, (_, shape) in division.headers.items()}
    taken = match(kind, config, shapes).taken
    makers: dict[str, list[str]] = {}
    for tensor, parameter in taken.items():
        makers.setdefault(parameter, []).append(tensor)
    return {tensors[0]: name for name, tensors in makers.items() if len(tensors) == 1}


def _newer(own: Any, saved: Any) -> Any:
    """The value that an algorithm has given to a weight; the source's own, if it was only converted
    to another type.
    """
    import torch

    if saved is None or saved.shape != own.shape or not own.is_floating_point():
        return own
    return own if torch.equal(own.to(saved.dtype), saved) else saved
