"""Answers of workers that are asked once, and kept in the cache folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoquant.core.cache import cache_folder
from autoquant.core.files import write_atomically
from autoquant.runtime import process


def kept(
    kind: str, key: str, target: str, *, env: Mapping[str, str] | None = None, **kwargs: Any
) -> str:
    """What a worker answers (see :func:`process.call`), as JSON: asked at the first time, then from
    ``<kind>/<key>.json``. The key says all that the answer depends on.
    """
    path = cache_folder() / kind / f"{key}.json"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        said = process.call(target, log=Path(scratch) / "log", env=env, **kwargs)
    text = json.dumps(said)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text, shared=True)
    return text
