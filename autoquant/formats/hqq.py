"""HQQ files: read with NumPy alone, and loaded as a transformers model with hqq's own layers.

The layout is what ``HQQLinear.state_dict()`` of the library gives for safetensors (transformers 4
wrote it too). For each linear layer with ``out`` outputs and ``in`` inputs: ``W_q`` [rows',
columns]: the codes of the weight matrix reshaped to [rows, columns], packed along the rows: a byte
(of 3 bits: an int32) holds rows that lie rows' apart, the first in its highest bits; ``scale`` and
``zero`` float16, one a group; and single values: ``nbits``, ``group_size``, ``axis``, ``shape``
[out, in] and others that only hqq reads. ``axis`` 1: a group is a row of the reshaped matrix
[groups, group_size], that is neighbouring inputs of one output; 0: a column of [group_size,
groups]. The weight is ``W = scale · (code − zero)``; zero points are not whole numbers (at 4 bits
they are).
Source: https://github.com/mobiusml/hqq (hqq/core/quantize.py, bitpack.py); method:
    https://mobiusml.github.io/hqq_blog/ (Badri and Shaji 2023).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoquant.core.errors import CheckFailed
from autoquant.formats.architecture import class_of, config_of, match
from autoquant.formats.experts import Joined

Floats = npt.NDArray[np.float32]
PARTS = ("W_q", "scale", "zero", "nbits", "group_size", "axis", "shape")
# all that the library's own state has of a layer, but for its bias
ALL_PARTS = (
    *PARTS,
    "channel_wise",
    "compute_dtype",
    "encoded_state_dict",
    "offload_meta",
    "optimize",
    "packing",
    "quant_scale",
    "quant_zero",
    "round_zero",
    "stores_quant_config",
    "unpack_view_dtype",
    "view_as_float",
)
SHIFTS = {
    8: (0,),
    4: (4, 0),
    3: (27, 24, 21, 18, 15, 12, 9, 6, 3, 0),
    2: (6, 4, 2, 0),
    1: (7, 6, 5, 4, 3, 2, 1, 0),
}
# as the library calls them
PACKING = {8: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1: "1bit_u8"}


def codes(words: npt.NDArray[Any], bits: int, rows: int) -> npt.NDArray[np.int64]:
    """Unpack the first ``rows`` rows of codes (of 3 bits there may be some rows of filling after
    them).
    """
    wide = words.astype(np.int64)
    unpacked: npt.NDArray[np.int64] = np.concatenate(
        [(wide >> shift) & ((1 << bits) - 1) for shift in SHIFTS[bits]]
    )
    return unpacked[:rows]


def dequantize(parts: dict[str, Any]) -> Floats:
    """The weight [out, in] as float32 of one layer's arrays (:data:`PARTS`)."""
    shape, size = tuple(int(n) for n in parts["shape"]), int(parts["group_size"])
    rows = shape[0] * shape[1] // size if int(parts["axis"]) == 1 else size
    code = codes(np.asarray(parts["W_q"]), int(parts["nbits"]), rows).astype(np.float32)
    weight: Floats = (code - np.asarray(parts["zero"], dtype=np.float32)) * np.asarray(
        parts["scale"], dtype=np.float32
    )
    return weight.reshape(shape)


def load(folder: str | Path, *, dtype: Any = None, device: str = "cpu") -> Any:
    """A transformers model with hqq's layers (``HQQLinear``) from a folder that AutoQuant has
    written; its outputs are those of the model before it was saved.

    dtype: what it computes in, and what scales and zero points become: a torch dtype; default the
    folder's own (float16). device: "cpu" or "cuda". Needs torch, transformers and hqq.
    Nothing in the files is run: hqq's own way to read them calls ``eval`` on a text from the file.
    Raises CheckFailed for a folder that is no HQQ model, and for tensors that are missing or left
    over.
    """
    import torch
    from hqq.core.quantize import HQQLinear
    from safetensors.torch import load_file
    from transformers import GenerationConfig

    block = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    method = (block.get("quantization_config") or {}).get("quant_method")
    if method != "hqq":
        raise CheckFailed(f"{folder}: config.json names the method {method!r}, not 'hqq'")
    config = config_of(str(folder))
    dtype = dtype or config.dtype
    state: dict[str, Any] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        state |= load_file(path)
    layers = [name.removesuffix(".W_q") for name in state if name.endswith(".W_q")]
    parts = {
        layer: {name: state.pop(f"{layer}.{name}") for name in _own(state, layer)}
        for layer in layers
    }
    kind = class_of(config)
    for layer, part in parts.items():
        # transformers finds the place of a weight that takes no memory, which the layer then takes
        shape = torch.Size(part["shape"].tolist())
        state[f"{layer}.weight"] = torch.zeros((), dtype=dtype).expand(shape)
    biases = {f"{layer}.bias": part.pop("bias") for layer, part in parts.items() if "bias" in part}
    state |= biases
    modules = _modules(kind.__name__, config, {name: one.shape for name, one in state.items()})
    for layer in layers:
        if layer not in modules:  # an expert: transformers has them in one tensor
            whole = torch.from_numpy(dequantize({n: p.numpy() for n, p in parts[layer].items()}))
            state[f"{layer}.weight"] = whole.to(dtype)
    shapes = {name: one.shape for name, one in state.items()}
    joined = Joined(kind.__name__, config, shapes, state.__getitem__)
    model, info = kind.from_pretrained(
        None,
        config=config,
        state_dict={name: joined.value(name) for name in joined.shapes},
        dtype=dtype,
        output_loading_info=True,
    )
    astray = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]]))
    if astray:
        raise CheckFailed(f"{folder}: tensors missing or left over: {', '.join(astray[:3])}")
    for layer, module in ((one, modules[one]) for one in layers if one in modules):
        bias = model.get_submodule(module).bias
        model.set_submodule(module, _layer(parts[layer], bias, dtype, device, HQQLinear))
    if (Path(folder) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.to(device).eval()


def _modules(kind: str, config: Any, shapes: dict[str, Any]) -> dict[str, str]:
    """The model's linear layers by the name that files have for them."""
    import torch

    matched = match(kind, config, shapes)
    model, taken = matched.model, matched.taken
    linear = {name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    found = {}
    for tensor, parameter in taken.items():
        module = parameter.removesuffix(".weight")
        if tensor.endswith(".weight") and module in linear:
            found[tensor.removesuffix(".weight")] = module
    return found


def _layer(state: dict[str, Any], bias: Any, dtype: Any, device: str, kind: Any) -> Any:
    """hqq's layer from its tensors."""
    import torch
    from hqq.core.quantize import Quantizer

    module = kind(None, None, compute_dtype=dtype, device=device)
    bits = int(state["nbits"])
    values: dict[str, Any] = {name: state[name] for name in ("W_q", "scale", "zero")}
    values |= {} if bias is None else {"bias": bias}
    values |= {name: int(state[name]) for name in ("nbits", "group_size", "axis")}
    flags = ("view_as_float", "quant_scale", "quant_zero", "channel_wise", "optimize", "round_zero")
    values |= {name: bool(state[name]) for name in flags}
    values |= {
        "shape": torch.Size(state["shape"].tolist()),
        "packing": PACKING[bits],
        "unpack_view_dtype": Quantizer.unpack_view_dtype[PACKING[bits]],
        "offload_meta": False,
        "stores_quant_config": True,
    }
    module.load_state_dict(values)
    return module


def _own(tensors: dict[str, Any], layer: str) -> list[str]:
    return [name.removeprefix(f"{layer}.") for name in tensors if name.startswith(f"{layer}.")]


def block(bits: int, group_size: int | None, axis: int, skipped: list[str]) -> dict[str, Any]:
    """config.json's quantization block, as transformers 4 wrote it and vLLM reads it.

    ``group_size`` None: a whole row (axis 1) or column; ``skipped``: the linear layers that stay as
    they are.
    """
    weights = {
        "nbits": bits,
        "channel_wise": True,
        "group_size": group_size,
        "optimize": True,
        "round_zero": bits == 4,
        "axis": axis,
        "view_as_float": False,
    }
    return {
        "quant_method": "hqq",
        "skip_modules": skipped,
        "quant_config": {
            "weight_quant_params": weights,
            "scale_quant_params": None,
            "zero_quant_params": None,
            "offload_meta": False,
        },
    }
