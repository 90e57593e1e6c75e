"""Reading GPTQ files with NumPy alone: the layout that AutoGPTQ defined and GPTQModel, transformers
and vLLM load.

For each linear layer with ``in`` inputs and ``out`` outputs and G groups: ``qweight`` int32
[in·bits/32, out]: down a column, a little-endian stream of ``bits``-wide codes, one an input;
``qzeros`` int32 [G, out·bits/32]: along a row, such a stream of zero points, each stored less one
in the format "gptq" (not in "gptq_v2"); ``scales`` float16 [G, out]; ``g_idx`` int32 [in]: the
group of each input (act-order mixes them). The weight is ``W[in, out] = scales[g] · (code − zero)``
with g = g_idx[in].
Source: https://github.com/AutoGPTQ/AutoGPTQ (qlinear_cuda_old.py),
    https://github.com/ModelCloud/GPTQModel (nn_modules/qlinear).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def codes(words: npt.NDArray[np.int32], bits: int, n: int) -> Ints:
    """Unpack ``n`` codes of ``bits`` bits from each column of ``words`` [words, columns] -> [n,
    columns]. Codes may straddle two words.
    """
    wide = words.astype(np.uint32).astype(np.uint64)
    wide = np.concatenate([wide, np.zeros((1, wide.shape[1]), dtype=np.uint64)])
    at = np.arange(n, dtype=np.int64) * bits
    word, shift = at // 32, (at % 32).astype(np.uint64)[:, None]
    both = wide[word] | (wide[word + 1] << np.uint64(32))
    return ((both >> shift) & np.uint64((1 << bits) - 1)).astype(np.int64)


def dequantize(parts: dict[str, Any], bits: int, *, stored_less_one: bool = True) -> Floats:
    """The weight [out, in] as float32 of one layer's arrays (:data:`PARTS`)."""
    group = np.asarray(parts["g_idx"], dtype=np.int64)
    scales = np.asarray(parts["scales"], dtype=np.float32)
    code = codes(np.asarray(parts["qweight"]), bits, len(group))
    words = np.asarray(parts["qzeros"]).view(np.uint32)
    if stored_less_one and bits != 3:
        # on whole words: what was subtracted may have borrowed from the next code
        words = words + np.uint32(sum(1 << at for at in range(0, 32, bits)))
    zero = codes(words.view(np.int32).T, bits, scales.shape[1]).T
    if stored_less_one and bits == 3:
        zero = (zero + 1) & 7
    weight: Floats = scales[group] * (code - zero[group]).astype(np.float32)
    return np.ascontiguousarray(weight.T)
