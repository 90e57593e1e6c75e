"""Reading bitsandbytes files with NumPy alone, as transformers writes them.

4 bits, for each linear layer with ``out`` outputs and ``in`` inputs, whose weights are taken as one
row in blocks: ``weight`` uint8 [out·in/2, 1]: two codes a byte, the first in the high bits;
``weight.quant_map`` float32 [16]: what a code stands for; ``weight.absmax``: the largest weight of
each block, float32, or with double quantization uint8 codes of it, with ``weight.nested_quant_map``
float32 [256] and ``weight.nested_absmax`` float32 for blocks of these;
``weight.quant_state.bitsandbytes__nf4`` (or ``fp4``): block sizes, shape and the offset of the
nested codes, as JSON in bytes. The weight is ``quant_map[code] · absmax``, absmax being
``nested_quant_map[code] · nested_absmax + nested_offset``. 8 bits: ``weight`` int8 [out, in] and
``SCB`` float32 [out], the largest weight of each output: the weight is ``weight · SCB / 127``.
Source: https://github.com/bitsandbytes-foundation/bitsandbytes (functional.py, QuantState;
    backends/default/ops.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
STATE = ".weight.quant_state.bitsandbytes__"
MARKS = (f"{STATE}nf4", f"{STATE}fp4", ".SCB")


def dequantize(get: Callable[[str], Any], has: Callable[[str], bool]) -> Floats:
    """The weight [out, in] as float32 of one layer; ``get`` gives a tensor of the layer by its name
    after the layer's own (".weight"), ``has`` says whether it is there.
    """
    codes = np.asarray(get(".weight"))
    if has(".SCB"):
        return (
            codes.astype(np.float32)
            * np.asarray(get(".SCB"), dtype=np.float32)[:, None]
            / np.float32(127)
        )
    state = json.loads(bytes(np.asarray(get(next(mark for mark in MARKS if has(mark)))).tolist()))
    absmax = np.asarray(get(".weight.absmax"))
    if has(".weight.nested_absmax"):
        nested = np.repeat(
            np.asarray(get(".weight.nested_absmax")), int(state["nested_blocksize"])
        )[: len(absmax)]
        absmax = np.asarray(get(".weight.nested_quant_map"))[absmax] * nested + np.float32(
            state["nested_offset"]
        )
    flat = codes.reshape(-1)
    values: Floats = np.asarray(get(".weight.quant_map"), dtype=np.float32)[
        np.stack([flat >> 4, flat & 15], axis=1).reshape(-1)
    ]
    values = values[: int(np.prod(state["shape"]))]
    values *= np.repeat(absmax.astype(np.float32), int(state["blocksize"]))[: len(values)]
    return values.reshape(state["shape"])
