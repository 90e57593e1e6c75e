"""Quantizing without looking at data, tensor by tensor: read, quantized, written. No model is
built, so experts and parts that see or hear pass through, and memory is that of one tensor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoquant.backends.folder import tidy
from autoquant.core.errors import InputError
from autoquant.formats.checkpoint import weight_files
from autoquant.formats.tensors import Part, stored_width
from autoquant.formats.writer import ShardWriter
from autoquant.runtime.worker import Report
from autoquant.source import skeleton
from autoquant.source.headers import Header, headers_of, read_json
from autoquant.source.parts import kept, main_dtype, parts_of
from autoquant.source.structure import Structure

Quantizer = Callable[[Any, str], Mapping[str, Any]]
"""A matrix [outputs, inputs] on the device, and its name -> tensors by the part of their names that
follows the layer's."""


class Division:
    """A source's tensors in a worker: ``parts`` are quantized, ``kept`` stay, ``plain`` are the
    linear layers among those.
    """

    def __init__(self, model: str) -> None:
        self.folder = Path(model)
        self.files = weight_files(self.folder)
        names = [path.name for path in self.files]
        self.found = Structure.from_json(skeleton.build(model, names))
        self.headers: dict[str, Header] = headers_of(self.folder, names)
        self.parts: dict[str, Part] = parts_of(self.found, self.headers)
        self.kept = kept(self.found, self.headers)
        self.plain = sorted({*self.found.plain, "lm_head"})
        self.dtype = main_dtype(self.headers)

    def half(self) -> Any:
        """The 16-bit dtype of what is not quantized: the source's own, bfloat16 for one in float32
        or float64.
        """
        import torch

        return torch.float16 if self.dtype == "F16" else torch.bfloat16

    def in_half(self, tensor: Any, dtype: Any, name: str) -> Any:
        """A tensor as it is kept: floats become ``dtype``, but for a few (see stored_width)."""
        import torch

        if not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        if stored_width(self.headers[name][0], tensor.ndim, self.dtype) == 4:
            return tensor
        converted = tensor.to(dtype)
        if not torch.isfinite(converted).all():
            raise InputError(
                f"{name} has values beyond what {str(dtype).removeprefix('torch.')} can hold (up to"
                f" {float(tensor.abs().max()):.3g})"
            )
        return converted


def device() -> str:
    """Where to compute."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def rewrite(
    division: Division,
    target: str,
    quantize: Quantizer,
    *,
    suffixes: tuple[str, ...],
    dtype: Any,
    block: dict[str, Any],
    report: Report,
    config: dict[str, Any] | None = None,
) -> None:
    """Write a model folder with every part quantized.

    ``suffixes`` are the endings of the names that ``quantize`` may give, ``dtype`` what the rest
    becomes, ``block`` config.json's quantization block, ``config`` fields that change. Raises
    InputError for values that are not finite, and leaves nothing of the weights then.
    """
    from safetensors import safe_open

    opened: Any = safe_open  # untyped
    folder, on = Path(target), device()
    by_tensor: dict[str, list[Part]] = {}
    for part in division.parts.values():
        by_tensor.setdefault(part.tensor, []).append(part)
    names = [*division.kept.values()]
    names += [f"{name}.{suffix}" for name in division.parts for suffix in suffixes]
    done, total = 0, len(division.parts) + 1
    with ShardWriter(folder, names) as out:
        for path in division.files:
            with opened(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    for part in by_tensor.get(name, ()):
                        matrix = _computable(part.read(file.get_slice)).to(on)
                        _refuse_damaged(matrix, name, path)
                        for suffix, tensor in quantize(matrix, part.name).items():
                            out.add(f"{part.name}.{suffix}", tensor)
                        done += 1
                        report(done, total)
                    if name in division.kept:
                        tensor = _computable(file.get_tensor(name))
                        _refuse_damaged(tensor, name, path)
                        out.add(division.kept[name], division.in_half(tensor, dtype, name))
    own = read_json(division.folder / "config.json")
    (folder / "config.json").write_text(
        json.dumps({**own, **(config or {}), "quantization_config": block}, indent=2) + "\n",
        encoding="utf-8",
    )
    tidy(folder, str(division.folder))
    report(total, total)


def _computable(tensor: Any) -> Any:
    """A tensor, in 16 bits if it is FP8 without scales, of which torch can ask nothing."""
    import torch

    return tensor.to(torch.bfloat16) if "float8" in str(tensor.dtype) else tensor


def _refuse_damaged(tensor: Any, name: str, path: Path) -> None:
    import torch

    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        row = ""
        if tensor.ndim > 1:
            where = (~torch.isfinite(tensor)).nonzero()[0].tolist()
            row = f" (first in row {where[0]})"
        raise InputError(f"{path.name}: {name} has NaN or Inf values{row}; the model is damaged")


def begin(scratch: str) -> None:
    """Move to the scratch folder: some libraries leave files wherever they are started."""
    os.makedirs(scratch, exist_ok=True)
    os.chdir(scratch)
