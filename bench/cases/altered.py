"""Changing a copy of a model: its configs, tensors and files."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

Case = Callable[[Path], None]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Note a case by its name."""
    CASES[function.__name__] = function
    return function


def config(folder: Path, file: str = "config.json", drop: tuple[str, ...] = (), **new: Any) -> None:
    """Change fields of a JSON file."""
    path = folder / file
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    data = {name: value for name, value in {**data, **new}.items() if name not in drop}
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def tensors(folder: Path) -> dict[str, Any]:
    """All tensors of the copy."""
    return dict(load_file(folder / WEIGHTS))


def save(folder: Path, weights: dict[str, Any], name: str = WEIGHTS) -> None:
    """Write a weight file."""
    (folder / name).parent.mkdir(exist_ok=True)
    save_file(weights, folder / name, metadata={"format": "pt"})


def without(folder: Path, *names: str) -> None:
    """Take tensors away."""
    save(folder, {name: value for name, value in tensors(folder).items() if name not in names})


def mark(path: Path) -> None:
    """Put a byte order mark at the beginning of a file."""
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())


def shard(
    folder: Path, index: dict[str, Any] | None, pattern: str = "model-{:05d}-of-00002"
) -> None:
    """Two files in place of one; ``index`` is what an index has beside its map, None for none."""
    weights = tensors(folder)
    names = sorted(weights)
    listed: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{pattern.format(number)}.safetensors"
        save(folder, {name: weights[name] for name in part}, file)
        listed |= dict.fromkeys(part, file)
    (folder / WEIGHTS).unlink()
    if index is not None:
        (folder / INDEX).write_text(json.dumps({**index, "weight_map": listed}))
