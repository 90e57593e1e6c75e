"""Checkpoints that are quantized already, as sources: which tensors they stand for, from headers
alone, and each one's values.

- FP8 (``quant_method`` "fp8": DeepSeek, Qwen, Ministral): ``weight`` float8 and
  ``weight_scale_inv``, one number or one for each block of the matrix's last two dimensions. Scales
  of inputs are dropped.
- compressed-tensors of 8 bits: ``weight`` int8 or float8 and ``weight_scale`` for a tensor, its
  outputs, blocks or groups of inputs; with ``weight_zero_point`` where it is not symmetric.
- MXFP4 (GPT-OSS): ``X_blocks`` uint8 [experts, outputs, inputs/32, 16], two E2M1 codes a byte, the
  first in the low bits, and ``X_scales`` uint8 [experts, outputs, inputs/32], powers of two with
  127 added; the tensor X is [experts, inputs, outputs], as transformers has it.
- GPTQ, AWQ, HQQ and bitsandbytes: as our other readers know them.

Sources: https://github.com/huggingface/transformers (integrations/finegrained_fp8.py, mxfp4.py),
    https://github.com/vllm-project/compressed-tensors, OCP Microscaling Formats 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autoquant.formats import awq, dequantized
from autoquant.formats.tensors import Tensors

Header = tuple[str, list[int]]
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)
SCALES = ("_scale_inv", "_scale", "_zero_point", "_shape", "_g_idx")
INPUTS = (".activation_scale", ".input_scale", ".input_zero_point", ".k_scale", ".v_scale")
CODES = ("F8_E4M3", "F8_E5M2", "I8")  # dtypes that mean nothing without a scale
BY_LAYER = ("gptq", "awq", "hqq", "bitsandbytes")
READABLE = (*BY_LAYER, "fp8", "compressed-tensors", "mxfp4")


@dataclass(frozen=True)
class Made:
    """One tensor that stored ones stand for: its ``shape``, and how it is made (``way``) of those
    whose names begin with ``base``.
    """

    shape: tuple[int, ...]
    way: str
    base: str


def made_of(
    headers: Mapping[str, Header], block: Mapping[str, Any], tensors: Tensors
) -> dict[str, Made]:
    """The tensors that a quantized checkpoint stands for, by headers alone; of HQQ and bitsandbytes
    the ``tensors`` tell the shapes. Raises ValueError for a format that is not read, for codes
    without a scale, and where shapes are not at hand.
    """
    stored_by = str(block.get("quant_method"))
    if stored_by not in READABLE:
        raise ValueError(f"the method {stored_by!r} is none of {', '.join(READABLE)}")
    if stored_by in BY_LAYER:
        return _by_layer(headers, block, stored_by, tensors)
    made: dict[str, Made] = {}
    for name, (dtype, shape) in headers.items():
        if name.endswith(INPUTS):
            continue
        if stored_by == "mxfp4" and name.endswith(("_blocks", "_scales")):
            if name.endswith("_blocks"):
                experts, outputs, groups, half = shape
                base = name.removesuffix("_blocks")
                made[base] = Made((experts, groups * half * 2, outputs), "mxfp4", base)
            continue
        if any(name.endswith(end) and name.removesuffix(end) in headers for end in SCALES):
            continue
        if name.endswith((".weight_packed", ".weight_global_scale")):
            raise ValueError("compressed-tensors of fewer than 8 bits are not read")
        scaled = any(f"{name}{end}" in headers for end in ("_scale_inv", "_scale"))
        if dtype in CODES and not scaled:
            raise ValueError(f"{name} has no scale")
        made[name] = Made(tuple(shape), "scaled" if scaled else "plain", name)
    return made


def _by_layer(
    headers: Mapping[str, Header], block: Mapping[str, Any], stored_by: str, tensors: Tensors
) -> dict[str, Made]:
    """Of the formats that replace each layer's weight by several tensors."""
    format = dequantized.FORMATS[stored_by]
    layers = {
        name.removesuffix(mark) for name in headers for mark in format.marks if name.endswith(mark)
    }
    made = {}
    for layer in layers:
        shape = dequantized.shape_of(headers, layer, stored_by, block, tensors)
        made[f"{layer}.weight"] = Made(shape, stored_by, layer)
    for name, (_, stored) in headers.items():
        if name.endswith(awq.ACTIVATIONS):
            values = tensors.get(name)  # zeros are a hole: the file is not here yet
            if values.any() and (values != 1).any():
                raise ValueError(f"activations that are scaled ({name}) are not read")
        elif not dequantized.owned(name, layers):
            made[name] = Made(tuple(stored), "plain", name)
    return made


def read(tensors: Tensors, made: Made, block: dict[str, Any]) -> npt.NDArray[np.float32]:
    """The values of one tensor, as float32."""
    if made.way == "plain":
        return tensors.get(made.base).astype(np.float32)
    if made.way == "scaled":
        return _scaled(tensors, made.base)
    if made.way == "mxfp4":
        return mxfp4(tensors.get(f"{made.base}_blocks"), tensors.get(f"{made.base}_scales"))
    return dequantized.weight(tensors, made.base, block)


def _scaled(tensors: Tensors, name: str) -> npt.NDArray[np.float32]:
    codes = tensors.get(name).astype(np.float32)
    end = next(end for end in ("_scale_inv", "_scale") if f"{name}{end}" in tensors)
    scale = tensors.get(f"{name}{end}").astype(np.float32)
    if f"{name}_zero_point" in tensors:
        zero = tensors.get(f"{name}_zero_point").astype(np.float32)
        codes = codes - spread(zero, codes.shape)
    return codes * spread(scale, codes.shape)


def spread(scale: npt.NDArray[np.float32], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A scale for every value of a tensor: of one number, of rows, or of blocks of the last two
    dimensions, of which the last may be cut off. Raises ValueError for a scale of another shape.
    """
    if scale.size == 1:
        return scale.reshape((1,) * len(shape))
    if scale.ndim == len(shape) - 1:
        scale = scale[..., None]
    for axis in (len(shape) - 2, len(shape) - 1):
        have, want = scale.shape[axis], shape[axis]
        if have not in (1, want):
            # blocks are of a power of two, 128 as a rule
            block = 1 << (-(-want // have) - 1).bit_length()
            if -(-want // block) != have:
                raise ValueError(f"a scale of shape {list(scale.shape)} for {list(shape)}")
            scale = np.repeat(scale, block, axis=axis)
            scale = np.take(scale, range(want), axis=axis)
    return scale


def mxfp4(blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """[experts, inputs, outputs] of MXFP4's blocks and scales."""
    values = np.stack([FP4[blocks & 15], FP4[blocks >> 4]], axis=-1)
    values = values.reshape(*blocks.shape[:-1], 32)
    values *= np.exp2(scales.astype(np.float32) - 127)[..., None]
    whole = values.reshape(*values.shape[:2], -1)
    return np.ascontiguousarray(whole.transpose(0, 2, 1))
