"""A GPTQ, AWQ or EXL2 folder as an ordinary transformers model in float32, its weights read by our own readers: for measuring and comparing. Runs in workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoquant import awq_format, gptq_format
from autoquant.errors import CheckFailed
from autoquant.exllama import format as exl2_format

Floats = npt.NDArray[np.float32]
PACKED = (".qweight", ".qzeros", ".scales", ".g_idx")


class Tensors:
    """The tensors of a folder's safetensors files by name, read when asked for."""

    def __init__(self, folder: str) -> None:
        from safetensors import safe_open

        opened: Any = safe_open  # untyped
        self._files = [opened(path, framework="pt") for path in sorted(Path(folder).glob("*.safetensors"))]
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 (not a dict)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> list[str]:
        """All names."""
        return list(self._where)

    def get(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor; floats of 16 bits as float32, which NumPy has."""
        import torch

        tensor = self._where[name].get_tensor(name)
        return tensor.float().numpy() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.numpy()  # type: ignore[no-any-return]

    def plain(self) -> list[str]:
        """The names of the tensors that are floating-point numbers."""
        return [name for name, file in self._where.items() if file.get_slice(name).get_dtype() in ("F16", "BF16", "F32")]

    def bytes(self) -> int:
        """Bytes of all tensors."""
        total = 0
        for name, file in self._where.items():
            part = file.get_slice(name)
            total += int(np.prod(part.get_shape(), dtype=np.int64)) * {"I8": 1, "U8": 1, "I16": 2, "I64": 8, "F32": 4, "I32": 4}.get(part.get_dtype(), 2)
        return total


def weight(tensors: Tensors, name: str, block: dict[str, Any]) -> Floats:
    """The weight [out, in] of one quantized layer; ``block`` is config.json's quantization block."""
    if block["quant_method"] == "exl2":
        return exl2_format.layer(tensors, name)
    if block["quant_method"] == "awq":
        return awq_format.dequantize({part: tensors.get(f"{name}.{part}") for part in awq_format.PARTS})
    return gptq_format.dequantize({part: tensors.get(f"{name}.{part}") for part in gptq_format.PARTS}, int(block["bits"]))


def quantization(folder: str) -> dict[str, Any]:
    """The quantization block of a folder's config.json; empty if it has none."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return dict(config.get("quantization_config") or {})


def readable(folder: str) -> bool:
    """Whether our readers know a folder's format: EXL2, GPTQ of version 1, and AWQ's "gemm"."""
    block = quantization(folder)
    if block.get("quant_method") == "exl2":
        return True
    gptq = block.get("quant_method") == "gptq" and block.get("checkpoint_format") == "gptq"
    return gptq or (block.get("quant_method") == "awq" and str(block.get("version", "")).lower() == "gemm")


def load(folder: str) -> Any:
    """The model. Memory: 4 bytes a parameter. Raises CheckFailed if a tensor is missing or left over."""
    import torch
    from transformers import AutoConfig

    block, tensors = quantization(folder), Tensors(folder)
    if block["quant_method"] == "exl2":
        return _load_exl2(folder, tensors)
    state = {name: torch.from_numpy(tensors.get(name)).float() for name in tensors.names() if not name.endswith(PACKED)}
    for name in tensors.names():
        if name.endswith(".qweight"):
            layer = name.removesuffix(".qweight")
            state[f"{layer}.weight"] = torch.from_numpy(weight(tensors, layer, block))
    config: Any = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    return _model(folder, config, state)


def _load_exl2(folder: str, tensors: Tensors) -> Any:
    """Of EXL2: by the names and shapes that transformers expects, for exllamav2 stores fused matrices in parts and pads outputs; and an output head that was tied is no more."""
    import torch
    import transformers
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    config.tie_word_embeddings = False
    with torch.device("meta"):
        expected = {name: tuple(one.shape) for name, one in getattr(transformers, config.architectures[0])(config).state_dict().items()}
    state = {}
    for name, shape in expected.items():
        value = tensors.get(name) if name in tensors else exl2_format.layer(tensors, name.removesuffix(".weight"), shape[0])
        state[name] = torch.from_numpy(value).float()
    return _model(folder, config, state)


def _model(folder: str, config: Any, state: dict[str, Any]) -> Any:
    import torch
    import transformers

    kind: Any = getattr(transformers, config.architectures[0])  # the Auto classes take no state_dict without a name
    model, info = kind.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True)
    astray = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]]))
    if astray:
        raise CheckFailed(f"{folder}: tensors missing or left over: {', '.join(astray[:3])}")
    return model
