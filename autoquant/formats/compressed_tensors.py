"""Reading compressed-tensors files of 8 bits with NumPy alone: what llm-compressor writes, and
vLLM, SGLang and transformers load.

For each linear layer with ``out`` outputs and ``in`` inputs: ``weight`` int8 or float8 (E4M3) [out,
in] and ``weight_scale`` [out, 1]: the weight is ``weight · weight_scale``. ``input_scale`` [1], of
static schemes: the scale of all inputs. config.json's block says in ``config_groups`` how weights
and inputs are quantized; without ``input_scale`` each token gets its own scale while the model
runs.
Source: https://github.com/vllm-project/compressed-tensors (compressors/naive_quantized,
    quantization/quant_scheme.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from autoquant.formats import activations

PARTS = ("weight", "weight_scale")
FORMATS = {"int": "int-quantized", "float": "float-quantized"}  # by the type of the numbers


def block(settings: dict[str, Any]) -> dict[str, Any]:
    """config.json's quantization block of compressed-tensors' own settings, as its compressor
    writes it; what is empty in a group is left out.
    """
    import importlib.metadata

    def used(part: dict[str, Any] | None) -> dict[str, Any] | None:
        names = ("dynamic", "group_size", "num_bits", "strategy", "symmetric", "type")
        return None if part is None else {name: part.get(name) for name in names}

    groups = {
        name: {
            "format": settings["format"],
            "input_activations": used(group["input_activations"]),
            "output_activations": used(group["output_activations"]),
            "targets": group["targets"],
            "weights": used(group["weights"]),
        }
        for name, group in settings["config_groups"].items()
    }
    empty: dict[str, Any] = {
        "sparsity_config": {},
        "transform_config": {},
        "global_compression_ratio": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "config_groups": groups,
        "format": settings["format"],
        "ignore": settings["ignore"],
        "kv_cache_scheme": None,
        "moe_sparsity_config": None,
        "quantization_status": "compressed",
        "version": importlib.metadata.version("compressed-tensors"),
        **empty,
    }


def schemes(block: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """How weights and inputs are quantized, for each group of layers of a block."""
    return [
        (group.get("weights") or {}, group.get("input_activations") or {})
        for group in (block.get("config_groups") or {}).values()
    ]


def known(block: dict[str, Any]) -> bool:
    """Whether a block is of the kind that is read here: one group; 8 bits, symmetric, weights with
    a scale per output, inputs with one per token (or, as integers, one in all).
    """
    if len(schemes(block)) != 1:
        return False
    weights, inputs = schemes(block)[0]
    kind = weights.get("type")
    ways = [("token", True), *([("tensor", False)] if kind == "int" else [])]
    return (
        block.get("format") == FORMATS.get(str(kind))
        and all(
            part.get("num_bits") == 8 and part.get("symmetric") and part.get("type") == kind
            for part in (weights, inputs)
        )
        and weights.get("strategy") == "channel"
        and (inputs.get("strategy"), inputs.get("dynamic")) in ways
    )


def dequantize(parts: dict[str, Any]) -> npt.NDArray[np.float32]:
    """The weight [out, in] as float32 of one layer's arrays (:data:`PARTS`)."""
    weight: npt.NDArray[np.float32] = np.asarray(parts["weight"], dtype=np.float32) * np.asarray(
        parts["weight_scale"], dtype=np.float32
    )
    return weight


def inputs(get: Callable[[str], Any], block: dict[str, Any]) -> Callable[[Any], Any]:
    """What a layer's inputs become before they meet its weights; ``get`` gives a tensor of the
    layer by its name after the layer's own.
    """
    weights, how = schemes(block)[0]
    if not how["dynamic"]:
        return partial(activations.int8_static, scale=float(get("input_scale")[0]))
    return activations.int8_dynamic if weights["type"] == "int" else activations.fp8_dynamic
