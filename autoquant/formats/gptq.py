"""Reading GPTQ files with NumPy alone: the layout that AutoGPTQ defined and GPTQModel, transformers
and vLLM load.

For each linear layer with ``in`` inputs and ``out`` outputs and G groups: ``qweight`` int32
[in·bits/32, out]: down a column, a little-endian stream of ``bits``-wide codes, one an input;
``qzeros`` int32 [G, out·bits/32]: along a row, such a stream of zero points, each stored less one
in the format "gptq" (not in "gptq_v2"); ``scales`` float16 [G, out]; ``g_idx`` int32 [in]: the
group of each input (act-order mixes them). The weight is ``W[in, out] = scales[g] · (code − zero)``
with g = g_idx[in]. Bits and group size are those of config.json's quantization block, or of the
first pattern in its ``dynamic`` that matches the layer's name from its beginning ("+:" before it or
nothing; "-:" leaves layers unquantized).
Source: https://github.com/AutoGPTQ/AutoGPTQ (qlinear_cuda_old.py),
    https://github.com/ModelCloud/GPTQModel (nn_modules/qlinear).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autoquant.core.errors import CheckFailed

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
PARTS = ("qweight", "qzeros", "scales", "g_idx")
WITHOUT = "-:"  # begins a pattern of layers that are not quantized


class Kind(NamedTuple):
    """How one layer is quantized; ``group_size`` -1 is a whole row."""

    bits: int
    group_size: int

    def __str__(self) -> str:
        return f"{self.bits}bit-{'row' if self.group_size == -1 else f'{self.group_size}g'}"


def mixed(block: Mapping[str, Any]) -> bool:
    """Whether a quantization block gives some layers bits or group sizes of their own."""
    return any(not one.startswith(WITHOUT) for one in block.get("dynamic") or ())


def kind(block: Mapping[str, Any], layer: str) -> Kind:
    """How a layer is quantized, by its name and config.json's quantization block."""
    own: Mapping[str, Any] = {}
    for pattern, values in (block.get("dynamic") or {}).items():
        if re.match(pattern.removeprefix(WITHOUT).removeprefix("+:"), layer):
            own = values or {}
            break
    bits, size = (own.get(name, block.get(name)) for name in ("bits", "group_size"))
    return Kind(int(bits or 4), int(size or -1))


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


def weight(get: Callable[[str], Any], layer: str, block: Mapping[str, Any]) -> Floats:
    """The weight [out, in] of a layer; ``get`` gives a tensor by its name. Raises CheckFailed for
    one whose codes or groups are not as many as the quantization ``block`` says.
    """
    parts, said = {part: get(f"{layer}.{part}") for part in PARTS}, kind(block, layer)
    inputs, words, groups = (len(parts[part]) for part in ("g_idx", "qweight", "scales"))
    wanted = 1 if said.group_size == -1 else -(-inputs // said.group_size)
    if words * 32 != inputs * said.bits or groups != wanted:
        raise CheckFailed(
            f"{layer} has codes of {words * 32 / inputs:g} bits in {groups} groups; by config.json"
            f" it is {said}, which makes {wanted}"
        )
    return dequantize(parts, said.bits)


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
