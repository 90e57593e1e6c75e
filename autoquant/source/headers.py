"""The weight files of a folder and their headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autoquant.core.errors import InputError
from autoquant.core.records import Source


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} does not hold a JSON object; download it again")
    return data


def weight_files(folder: Path, allow_pickle: bool) -> tuple[list[str], bool, dict[str, str]]:
    """The weight files' names, whether they are pickles, and the index's tensor -> file map (empty
    without an index).
    """
    for pickled, single, pattern in (
        (False, "model.safetensors", "*.safetensors"),
        (True, "pytorch_model.bin", "pytorch_model*.bin"),
    ):
        index = folder / f"{single}.index.json"
        if not index.is_file() and not any(folder.glob(pattern)):
            continue
        if pickled and not allow_pickle:
            raise InputError(
                f"{folder} has only pickle weights (.bin), and loading a pickle can run code hidden"
                " in it. Convert it to safetensors, or, if you trust its origin, use method gguf"
                " with allow_pickle=True (--allow-pickle)"
            )
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise InputError(f"{index} has no weight_map; download it again")
            names = sorted(set(weight_map.values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise InputError(
                    f"{folder} lacks {len(missing)} of its {len(names)} shards:"
                    f" {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}; download the"
                    " missing files"
                )
            if not pickled and single not in names and (folder / single).is_file():
                raise InputError(
                    f"{folder} has two checkpoints: {single}, and {len(names)} shards that"
                    f" {index.name} names; loaders disagree about which to use. Remove one"
                )
            return names, pickled, weight_map
        if (folder / single).is_file():
            return [single], pickled, {}
        raise InputError(
            f"{folder} has weight files but neither {single} nor {single}.index.json: "
            f"{', '.join(sorted(p.name for p in folder.glob(pattern))[:3])}. Download the index too"
        )
    raise InputError(f"{folder} is not a model folder: it has no weights (model.safetensors)")


def safetensors_header(path: Path) -> dict[str, tuple[str, list[int]]]:
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
