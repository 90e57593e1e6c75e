"""Quantized folders as ordinary transformers models in float32, their weights read by our own
readers: for measuring and comparing. Runs in workers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from autoquant.formats import exl3 as exl3_format
from autoquant.formats import (
    gptq as gptq_format,
)
from autoquant.formats import (
    hqq as hqq_format,
)
from autoquant.formats.architecture import class_of, config_of
from autoquant.formats.checkpoint import quantization
from autoquant.formats.experts import Joined
from autoquant.formats.loaders import (
    bitsandbytes_model,
    gptqmodel_kernels,
    mixed_gptq,
    transformers_model,
)
from autoquant.formats.tensors import Floats, Tensors

READ_BACK = "transformers, from the weights as they were read back"


@dataclass(frozen=True)
class Format:
    """How the layers of one file format are read, and what loads such a folder.

    A layer is quantized if there is a tensor of its name with one of the suffixes ``marks``.
    ``weight`` gives its weight [out, in] from the tensors, its name and config.json's quantization
    block. ``known`` says whether a block is of the kind that our reader knows. ``loader`` loads a
    folder with ``engine``, the library that runs such files. ``inputs`` gives what is done to a
    layer's inputs before they meet its weights (see activations.py), None where they stay as they
    are. ``shapes`` are those of the model's parameters, from its config, where the names in the
    files are not the model's.
    """

    marks: tuple[str, ...]
    weight: Callable[..., Floats]
    known: Callable[[dict[str, Any]], bool]
    loader: Callable[[str], Any]
    engine: str = "transformers"
    inputs: Callable[[Tensors, str, dict[str, Any]], Callable[[Any], Any] | None] = (
        lambda tensors, name, block: None
    )
    shapes: Callable[[Any], dict[str, tuple[int, ...]]] | None = None

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


def _exllama_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """The names and shapes that transformers expects, for exllamav2 and exllamav3 store fused
    matrices in parts and pad them; and an output head that was tied is no more.
    """
    import torch
    import transformers

    config.tie_word_embeddings = False
    with torch.device("meta"):
        state = getattr(transformers, config.architectures[0])(config).state_dict()
    return {name: tuple(one.shape) for name, one in state.items()}


def _bitsandbytes_inputs(_: Tensors, __: str, block: dict[str, Any]) -> Callable[[Any], Any] | None:
    return (
        functools.partial(activations.llm_int8, threshold=float(block["llm_int8_threshold"]))
        if block.get("load_in_8bit")
        else None
    )


FORMATS = {  # by quant_method
    "gptq": Format(
        (".qweight",),
        lambda tensors, name, block: gptq_format.weight(tensors.get, name, block),
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
        lambda tensors, name, _, outputs=0, inputs=0: exl2_format.layer(tensors, name, outputs),
        lambda _: True,
        lambda folder: load(folder),
        READ_BACK,
        shapes=_exllama_shapes,
    ),
    "exl3": Format(
        (".trellis",),
        lambda tensors, name, _, outputs=0, inputs=0: exl3_format.layer(
            tensors, name, outputs, inputs
        ),
        lambda _: True,
        lambda folder: load(folder),
        READ_BACK,
        shapes=_exllama_shapes,
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


def loading(block: dict[str, Any]) -> tuple[Callable[[str], Any], str]:
    """What loads a folder with this quantization block, and how the library is called that does."""
    format = format_of(block)
    if block["quant_method"] == "gptq" and gptq_format.mixed(block):
        return mixed_gptq, "GPTQModel"
    return format.loader, format.engine


def weight(tensors: Tensors, name: str, block: dict[str, Any]) -> Floats:
    """The weight [out, in] of a quantized layer; ``block`` is config.json's quantization block."""
    return format_of(block).weight(tensors, name, block)


def readable(folder: str) -> bool:
    """Whether our readers know a folder's format."""
    block = quantization(folder)
    return block.get("quant_method") in FORMATS and FORMATS[block["quant_method"]].known(block)


class Values:
    """The unquantized tensors that a quantized folder stands for, by name: each is made in float32
    when it is asked for. ``shapes`` are theirs; ``config`` is the folder's, without its
    quantization block; ``scaled`` are the scales of activations (AWQ), by module.
    """

    def __init__(self, folder: str) -> None:
        self.block, self.tensors = quantization(folder), Tensors(folder)
        self.format, self.config = format_of(self.block), config_of(folder)
        self.layers = self.format.layers(self.tensors)
        self.shapes: Mapping[str, Sequence[int]] = {}
        self.scaled: dict[str, Any] = {}
        if self.format.shapes is not None:
            self.shapes = self.format.shapes(self.config)
            return
        headers, shapes = self.tensors.headers(), dict[str, Sequence[int]]()
        stored_by = str(self.block["quant_method"])
        for name, (_, shape) in headers.items():
            if name.endswith(awq_format.ACTIVATIONS):
                self.scaled[name.removesuffix(".scales")] = self.tensors.raw(name).float()
            elif not owned(name, self.layers):
                shapes[name] = tuple(shape)
        for layer in sorted(self.layers):
            shapes[f"{layer}.weight"] = shape_of(
                headers, layer, stored_by, self.block, self.tensors
            )
        self.shapes = shapes

    def value(self, name: str) -> Any:
        """One tensor, as torch has it. Raises CheckFailed for codes without a scale."""
        import torch

        layer = name.removesuffix(".weight")
        if self.format.shapes is not None and name not in self.tensors:
            value = self.format.weight(self.tensors, layer, self.block, *self.shapes[name])
        elif layer != name and layer in self.layers:
            value = self.format.weight(self.tensors, layer, self.block)
        else:
            plain = self.tensors.raw(name)
            if plain.ndim > 1 and plain.element_size() == 1:
                raise CheckFailed(f"{name} has codes, and what they stand for is not there")
            return plain.float()
        return torch.from_numpy(value)

    def inputs(self) -> dict[str, Callable[[Any], Any]]:
        """What is done to the inputs of each layer that has something done to them."""
        every = {one: self.format.inputs(self.tensors, one, self.block) for one in self.layers}
        return {layer: rounded for layer, rounded in every.items() if rounded is not None}


def shape_of(
    headers: Mapping[str, tuple[str, list[int]]],
    layer: str,
    stored_by: str,
    block: Mapping[str, Any],
    tensors: Tensors,
) -> tuple[int, ...]:
    """[outputs, inputs] of a layer by the quantization ``block``; of HQQ and bitsandbytes the
    ``tensors`` tell. Raises ValueError where these are not at hand, or a tensor is missing.
    """
    if stored_by == "gptq":
        words, outputs = headers[f"{layer}.qweight"][1]
        return (outputs, words * 32 // gptq_format.kind(block, layer).bits)
    if stored_by == "awq":
        inputs, words = headers[f"{layer}.qweight"][1]
        return (words * 8, inputs)
    if stored_by == "compressed-tensors" or f"{layer}.SCB" in headers:
        if f"{layer}.weight" not in headers:
            raise ValueError(f"{layer}.weight is missing")
        outputs, inputs = headers[f"{layer}.weight"][1]
        return (outputs, inputs)
    if stored_by == "hqq":
        shape = [int(size) for size in tensors.get(f"{layer}.shape")]
    else:
        mark = next(one for one in FORMATS[stored_by].marks if f"{layer}{one}" in headers)
        said = bytes(tensors.get(f"{layer}{mark}").tolist()).strip(b"\0")
        shape = json.loads(said)["shape"] if said else []
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            "the layers' shapes stand in the files' values: download the model and give its folder"
        )
    return (shape[0], shape[1])


def load(folder: str, *, activations: bool = True) -> Any:
    """The model. Memory: 4 bytes per parameter. Of formats that quantize activations, the inputs of
    each layer are rounded before they meet its weights, unless told not to; of experts only what
    enters them.

    Raises CheckFailed if a tensor is missing or left over.
    """
    import torch

    values = Values(folder)
    kind = class_of(values.config)
    joined = Joined(kind.__name__, values.config, values.shapes, values.value)
    # the Auto classes take no state_dict without a name
    model, info = kind.from_pretrained(
        None,
        config=values.config,
        state_dict={name: joined.value(name) for name in joined.shapes},
        dtype=torch.float32,
        output_loading_info=True,
    )
    astray = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]]))
    if astray:
        raise CheckFailed(f"{folder}: tensors missing or left over: {', '.join(astray[:3])}")
    hook(model, values, joined.match.taken, activations=activations)
    return model


def hook(model: Any, values: Values, taken: Mapping[str, str], *, activations: bool = True) -> None:
    """Let a model do with its activations what a quantized folder asks for: divide them by scales,
    and round each layer's inputs before they meet its weights; what enters a block's experts, once
    for all of them. ``taken`` are the parameters that tensors go into.
    """
    for module, scale in values.scaled.items():
        model.get_submodule(module).register_forward_hook(
            lambda _, __, outputs, scale=scale: outputs / scale.to(outputs.device)
        )
    modules: dict[str, Callable[[Any], Any]] = {}
    for layer, rounded in values.inputs().items() if activations else ():
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
