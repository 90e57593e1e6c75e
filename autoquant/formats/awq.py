"""Reading AWQ files with NumPy alone: the layout "gemm" that AutoAWQ defined and transformers, vLLM
and GPTQModel load.

For each linear layer with ``in`` inputs and ``out`` outputs and G groups of inputs: ``qweight``
int32 [in, out/8]: each word holds the 4-bit codes of eight outputs, in the order :data:`ORDER` from
its least significant bits; ``qzeros`` int32 [G, out/8]: the zero points in the same order;
``scales`` float16 or bfloat16 [G, out]. The weight is ``W[in, out] = scales[g] · (code − zero)``
with g = in // (in / G).
Source: https://github.com/casper-hansen/AutoAWQ (awq/utils/packing_utils.py,
    awq/modules/linear/gemm.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# what an activation's outputs are divided by, beside the layers' own parts (AutoAWQ)
ACTIVATIONS = (".act.scales", ".gelu_impl.scales")
PARTS = ("qweight", "qzeros", "scales")
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of its eight outputs a word's nibbles belong to


def codes(words: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Unpack words [rows, n] into codes [rows, 8 n]."""
    wide = words.view(np.uint32)
    out = np.empty((*words.shape, 8), dtype=np.int64)
    for place, output in enumerate(ORDER):
        out[..., output] = (wide >> np.uint32(4 * place)) & np.uint32(15)
    return out.reshape(words.shape[0], -1)


def dequantize(parts: dict[str, Any]) -> npt.NDArray[np.float32]:
    """The weight [out, in] as float32 of one layer's arrays (:data:`PARTS`)."""
    code, zero = codes(np.asarray(parts["qweight"])), codes(np.asarray(parts["qzeros"]))
    scales = np.asarray(parts["scales"], dtype=np.float32)
    group = np.arange(len(code)) // (len(code) // len(scales))
    weight: npt.NDArray[np.float32] = scales[group] * (code - zero[group]).astype(np.float32)
    return np.ascontiguousarray(weight.T)
