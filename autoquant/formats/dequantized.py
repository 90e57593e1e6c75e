"""Quantized folders as ordinary transformers models in float32, their weights read by our own
readers: for measuring and comparing. Runs in workers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant.core.errors import CheckFailed
from autoquant.formats import (
    activations,
)
from autoquant.formats import (
    awq as awq_format,
)
from autoquant.formats import (
    bitsandbytes as bitsandbytes_format,
)
from autoquant.formats import (
    compressed_tensors as compressed_format,
)
from autoquant.formats import exl2 as exl2_format
from autoquant.formats import (
    gptq as gptq_format,
)
from autoquant.formats import (
    hqq as hqq_format,
)
from autoquant.formats.architecture import class_of, config_of, with_fused_experts
from autoquant.formats.tensors import Floats, Tensors

NAMED = 3  # tensors named in an error
READ_BACK = "transformers, from the weights as they were read back"


@dataclass(frozen=True)
class Format:
    """How the layers of one file format are read, and what loads such a folder.

    A layer is quantized if there is a tensor of its name with one of the suffixes ``marks``.
    ``weight`` gives its weight [out, in] from the tensors, its name and config.json's quantization
    block. ``known`` says whether a block is of the kind that our reader knows. ``loader`` loads a
    folder with ``engine``, the library that runs such files. ``inputs`` gives what is done to a
    layer's inputs before they meet its weights (see activations.py), None where they stay as they
    are. ``state`` makes all weights of the model, from its config, where the names in the files are
    not the model's.
    """

    marks: tuple[str, ...]
    weight: Callable[[Tensors, str, dict[str, Any]], Floats]
    known: Callable[[dict[str, Any]], bool]
    loader: Callable[[str], Any]
    engine: str = "transformers"
    inputs: Callable[[Tensors, str, dict[str, Any]], Callable[[Any], Any] | None] = (
        lambda tensors, name, block: None
    )
    state: Callable[[Any, Tensors, dict[str, Any]], dict[str, Any]] | None = None

    def layers(self, tensors: Tensors) -> set[str]:
        """The names of the quantized layers."""
        return {
            name.removesuffix(mark)
            for name in tensors.names()
            for mark in self.marks
            if name.endswith(mark)
        }


def _parts(tensors: Tensors, name: str, parts: tuple[str, ...]) -> dict[str, Any]:
    return {part: tensors.get(f"{name}.{part}") for part in parts}


def transformers_model(folder: str, **more: Any) -> Any:
    """A folder loaded by transformers, on a GPU if there is one. ``more`` goes to its
    from_pretrained. Raises CheckFailed if a tensor is missing, left over or of another shape.
    """
    import torch

    kind = class_of(config_of(folder))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, info = kind.from_pretrained(
            folder, device_map=device, output_loading_info=True, **more
        )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise CheckFailed(
            "transformers does not load the folder as it is: tensors of another shape than it"
            " expects, so it did not take all of the layers for quantized"
        ) from None
    astray = {
        kind: sorted(map(str, info.get(kind) or ()))
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if any(astray.values()):  # transformers goes on with random numbers for what it misses
        said = "; ".join(
            f"{kind.replace('_', ' ')}: {', '.join(names[:NAMED])}"
            for kind, names in astray.items()
            if names
        )
        raise CheckFailed(f"transformers does not load the folder as it is: {said}")
    return model


def gptqmodel_kernels(folder: str) -> Any:
    """A folder of GPTQ or AWQ loaded by transformers with those of GPTQModel's kernels that are
    plain torch. It would take a faster one by itself: on a GPU each of those is compiled when it is
    first used, for up to two minutes, and Machete, which it prefers on Hopper, fetches CUTLASS from
    the network before. A dozen tokens do without.
    """
    from transformers import AwqConfig, GPTQConfig

    block = quantization(folder)
    if block["quant_method"] == "gptq":
        return transformers_model(
            folder, quantization_config=GPTQConfig(bits=int(block["bits"]), backend="gptq_torch")
        )
    return transformers_model(folder, quantization_config=AwqConfig(backend="torch_awq"))


def bitsandbytes_model(folder: str) -> Any:
    """A folder loaded by transformers. On CPUs with bfloat16 instructions bitsandbytes 0.50 packs
    weights anew for a kernel that takes whole multiples of its blocks only, and fails on others
    instead of doing without; those are told to do without.
    """
    model = transformers_model(folder)
    for module in model.modules():
        outputs, inputs = getattr(module, "out_features", 0), getattr(module, "in_features", 0)
        if hasattr(module, "support_avx512bf16_for_cpu") and (outputs % 32 or inputs % 64):
            module.support_avx512bf16_for_cpu = False
    return model


def _exl2_state(config: Any, tensors: Tensors, _: dict[str, Any]) -> dict[str, Any]:
    """By the names and shapes that transformers expects, for exllamav2 stores fused matrices in
    parts and pads outputs; and an output head that was tied is no more.
    """
    import torch
    import transformers

    config.tie_word_embeddings = False
    with torch.device("meta"):
        expected = {
            name: tuple(one.shape)
            for name, one in (
                getattr(transformers, config.architectures[0])(config).state_dict().items()
            )
        }
    state = {}
    for name, shape in expected.items():
        value = (
            tensors.get(name)
            if name in tensors
            else exl2_format.layer(tensors, name.removesuffix(".weight"), shape[0])
        )
        state[name] = torch.from_numpy(value).float()
    return state


def _bitsandbytes_inputs(_: Tensors, __: str, block: dict[str, Any]) -> Callable[[Any], Any] | None:
    return (
        functools.partial(activations.llm_int8, threshold=float(block["llm_int8_threshold"]))
        if block.get("load_in_8bit")
        else None
    )


FORMATS = {  # by quant_method
    "gptq": Format(
        (".qweight",),
        lambda tensors, name, block: gptq_format.dequantize(
            _parts(tensors, name, gptq_format.PARTS), int(block["bits"])
        ),
        lambda block: block.get("checkpoint_format") == "gptq",
        gptqmodel_kernels,
    ),
    "awq": Format(
        (".qweight",),
        lambda tensors, name, block: awq_format.dequantize(_parts(tensors, name, awq_format.PARTS)),
        lambda block: str(block.get("version", "")).lower() == "gemm",
        gptqmodel_kernels,
    ),
    "hqq": Format(
        (".W_q",),
        lambda tensors, name, _: hqq_format.dequantize(_parts(tensors, name, hqq_format.PARTS)),
        lambda _: True,
        hqq_format.load,
        "hqq",
    ),
    "bitsandbytes": Format(
        bitsandbytes_format.MARKS,
        lambda tensors, name, _: bitsandbytes_format.dequantize(
            lambda part: tensors.get(name + part), lambda part: name + part in tensors
        ),
        lambda _: True,
        bitsandbytes_model,
        inputs=_bitsandbytes_inputs,
    ),
    "exl2": Format(
        (".q_weight",),
        lambda tensors, name, _: exl2_format.layer(tensors, name),
        lambda _: True,
        lambda folder: load(folder),
        READ_BACK,
        state=_exl2_state,
    ),
    "compressed-tensors": Format(
        (".weight_scale",),
        lambda tensors, name, _: compressed_format.dequantize(
            _parts(tensors, name, compressed_format.PARTS)
        ),
        compressed_format.known,
        transformers_model,
        inputs=lambda tensors, name, block: compressed_format.inputs(
            lambda part: tensors.get(f"{name}.{part}"), block
        ),
    ),
}


def format_of(block: dict[str, Any]) -> Format:
    """The format that a quantization block names. Raises CheckFailed where there is no reader."""
    if block.get("quant_method") not in FORMATS:
        raise CheckFailed(
            f"config.json: quantization_config names the method {block.get('quant_method')!r};"
            f" there are readers for: {', '.join(FORMATS)}"
        )
    return FORMATS[block["quant_method"]]


def weight(tensors: Tensors, name: str, block: dict[str, Any]) -> Floats:
    """The weight [out, in] of a quantized layer; ``block`` is config.json's quantization block."""
    return format_of(block).weight(tensors, name, block)


def quantization(folder: str) -> dict[str, Any]:
    """The quantization block of a folder's config.json; empty if it has none."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return dict(config.get("quantization_config") or {})


def readable(folder: str) -> bool:
    """Whether our readers know a folder's format."""
    block = quantization(folder)
    return block.get("quant_method") in FORMATS and FORMATS[block["quant_method"]].known(block)


def load(folder: str, *, activations: bool = True) -> Any:
    """The model. Memory: 4 bytes per parameter. Of formats that quantize activations, the inputs of
    each layer are rounded before they meet its weights, unless told not to; of experts only what
    enters them.

    Raises CheckFailed if a tensor is missing or left over.
    """
    import torch

    block, tensors = quantization(folder), Tensors(folder)
    format = format_of(block)
    layers = format.layers(tensors)
    config = config_of(folder)
    if format.state is not None:
        state = format.state(config, tensors, block)
    else:
        state = {
            name: torch.from_numpy(tensors.get(name)).float()
            for name in tensors.names()
            if not owned(name, layers)
        }
        state |= {
            f"{layer}.weight": torch.from_numpy(format.weight(tensors, layer, block))
            for layer in layers
        }
    scaled = {
        name: state.pop(name) for name in list(state) if name.endswith(awq_format.ACTIVATIONS)
    }
    kind = class_of(config)
    state, taken = with_fused_experts(kind.__name__, config, state)
    # the Auto classes take no state_dict without a name
    model, info = kind.from_pretrained(
        None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
    )
    astray = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]]))
    if astray:
        raise CheckFailed(f"{folder}: tensors missing or left over: {', '.join(astray[:3])}")
    for name, scale in scaled.items():
        model.get_submodule(name.removesuffix(".scales")).register_forward_hook(
            lambda _, __, outputs, scale=scale: outputs / scale
        )
    if activations:
        _round_inputs(
            model, {layer: format.inputs(tensors, layer, block) for layer in layers}, taken
        )
    return model


def _round_inputs(
    model: Any, layers: dict[str, Callable[[Any], Any] | None], taken: dict[str, str]
) -> None:
    """Let each layer's inputs be rounded before they meet its weights; what enters a block's
    experts, once for all of them.
    """
    modules: dict[str, Callable[[Any], Any]] = {}
    for layer, rounded in layers.items():
        if rounded is None:
            continue
        parameter = taken.get(f"{layer}.weight")
        if parameter is None:  # an expert's, joined with the others
            base = layer.rpartition(".")[0].rpartition(".")[0]
            parameter = taken[f"{base}.gate_up_proj"]
        modules[parameter.rpartition(".")[0]] = rounded
    for module, rounded in modules.items():
        model.get_submodule(module).register_forward_pre_hook(
            lambda _, inputs, rounded=rounded: (rounded(inputs[0]), *inputs[1:])
        )


def owned(name: str, layers: set[str]) -> bool:
    """Whether a tensor belongs to a quantized layer; biases stay as they are."""
    parts = name.split(".")
    return parts[-1] != "bias" and any(".".join(parts[:i]) in layers for i in range(1, len(parts)))
