"""A model that is still to be made, as headers and holes: what plans look at."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autoquant.core.files import move_into_place
from autoquant.formats.checkpoint import carry
from autoquant.formats.tensors import WIDTHS
from autoquant.source.headers import Header


def write(
    place: Path, tensors: Mapping[str, Header], config: dict[str, Any], folders: Iterable[Path]
) -> None:
    """Write the folder ``place``: the tensors' header and a hole of their size (no bytes on the
    disk), the config, and tokenizer files of ``folders``, of which a later one goes first.
    """
    at, entries = 0, {}
    for name, (dtype, shape) in tensors.items():
        size = WIDTHS.get(dtype, 2) * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        model = Path(scratch) / "model"
        model.mkdir()
        with open(model / "model.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
        (model / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        beside(folders, model)
        move_into_place(model, place)


def beside(folders: Iterable[Path], target: Path) -> None:
    """Copy what lies beside the weights, the card too; of a later folder over that of an earlier
    one.
    """
    for folder in folders:
        carry(folder, target)
        if (folder / "README.md").is_file():
            shutil.copyfile(folder / "README.md", target / "README.md")
