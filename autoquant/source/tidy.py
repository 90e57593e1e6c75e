"""A source as every library reads it: where a folder has something that libraries stumble over, a
folder of links in the cache stands for it.
"""

from __future__ import annotations

import codecs
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autoquant.core.cache import cache_folder
from autoquant.core.files import key_of, move_into_place
from autoquant.source.headers import read_json
from autoquant.source.weights import ADAPTER_CONFIG, SINGLE, Weights

# configs that may name code of the model, which is not run
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json")
CODE = "auto_map"


def tidied(folder: Path, weights: Weights, side: Iterable[Path]) -> Path:
    """The folder itself, or one in the cache that has links to its files, where

    - weights have names under which loaders do not look for them, or an index that they do not
      read;
    - an adapter lies beside a whole model: transformers merges it where peft is installed;
    - a JSON file begins with a byte order mark, or a config names code of the model's own, or the
      dtype "auto", which transformers looks for in torch.

    ``side`` are the files beside the weights. Nothing is copied but the small files that change;
    the folder is made once for each state of the files.
    """
    files = [path for path in side if path.name != ADAPTER_CONFIG]
    changed = {
        path.name: data
        for path in files
        if path.suffix == ".json" and (data := _changed(path)) is not None
    }
    beside = (folder / ADAPTER_CONFIG).exists()
    if weights.usual and not changed and not beside:
        return folder
    seen = [
        (str(path), stat.st_size, stat.st_mtime_ns)
        for path in (*files, *weights.files.values())
        if (stat := path.stat())
    ]
    place = cache_folder() / "sources" / key_of(str(folder), seen, sorted(weights.files))
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            made = Path(scratch) / "source"
            made.mkdir()
            _fill(made, folder, weights, files, changed)
            move_into_place(made, place)
    return place


def _changed(path: Path) -> dict[str, Any] | None:
    """A JSON file's content without what libraries stumble over; None if it has nothing of it."""
    if path.name not in CONFIGS:
        head = path.read_bytes()[:3]
        return read_json(path) if head == codecs.BOM_UTF8 else None
    data = read_json(path)
    kept = {
        name: value
        for name, value in data.items()
        if name != CODE and not (name in ("dtype", "torch_dtype") and value == "auto")
    }
    marked = path.read_bytes()[:3] == codecs.BOM_UTF8
    return kept if marked or kept != data else None


def _fill(
    made: Path, folder: Path, weights: Weights, files: list[Path], changed: dict[str, Any]
) -> None:
    indexes = (f"{SINGLE}.index.json", "pytorch_model.bin.index.json")
    for path in files:
        target = made / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name in changed:
            text = json.dumps(changed[path.name], ensure_ascii=False, indent=2)
            target.write_text(text + "\n", encoding="utf-8")
        elif path.name not in indexes:
            _link(path, target)
    for name, path in weights.files.items():
        _link(path, made / name)
    if weights.index:
        index = indexes[weights.pickled]
        total = sum(path.stat().st_size for path in weights.files.values())
        content = {"metadata": {"total_size": total}, "weight_map": weights.index}
        (made / index).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _link(path: Path, target: Path) -> None:
    """A link; where the system has none, a copy."""
    try:
        target.symlink_to(path.resolve())
    except OSError:
        shutil.copyfile(path, target)
