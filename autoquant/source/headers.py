"""The headers of weight files, and JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

from autoquant.core.errors import InputError
from autoquant.core.records import Source

Header: TypeAlias = tuple[str, list[int]]
"""A tensor's dtype, as safetensors names it, and shape."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError for anything else."""
    try:
        # some editors put a byte order mark at the beginning
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} does not hold a JSON object; download it again")
    return data


def headers_of(folder: Path, names: list[str]) -> dict[str, Header]:
    """The tensors of several weight files."""
    return {
        tensor: header
        for name in names
        for tensor, header in safetensors_header(folder / name).items()
    }


def safetensors_header(path: Path) -> dict[str, Header]:
    """Tensor -> (dtype, shape). Opening checks that header and file size agree, so a cut file is
    found without reading it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {
                name: (part.get_dtype(), list(part.get_shape())) for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is damaged or cut short ({error}; it has {path.stat().st_size:,} bytes)."
            " Download it again"
        ) from None


def pickle_header(path: str) -> dict[str, tuple[str, list[int]]]:
    """Tensor -> (dtype, shape) of a pickle checkpoint, through torch's weights_only loader. Runs in
    a worker process.
    """
    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    try:
        state = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # noqa: BLE001
        # torch raises RuntimeError, UnpicklingError, EOFError …: all mean the same
        raise InputError(
            f"{path} cannot be read as a plain state dict ({type(error).__name__}:"
            f" {str(error).splitlines()[0]})"
        ) from None
    return {name: (names.get(t.dtype, str(t.dtype)), list(t.shape)) for name, t in state.items()}


def shapes(source: Source) -> dict[str, list[int]]:
    """The shape of every tensor, from the weight files' headers."""
    return {
        name: shape
        for file in source.weights
        for name, (_, shape) in safetensors_header(source.folder / file).items()
    }


def pickle_header_in_worker(path: Path) -> dict[str, tuple[str, list[int]]]:
    """:func:`pickle_header` in a process of its own."""
    import tempfile

    from autoquant.runtime import process

    with tempfile.TemporaryDirectory() as scratch:
        return dict(
            process.call(
                "autoquant.source:pickle_header", log=Path(scratch) / "log", path=str(path)
            )
        )
