"""GGUF files that are made in one pass against those that llama_model_quantize makes of a converted
file, byte for byte, of every type that llama.cpp has. usage: python -m bench.one_pass NAME|FOLDER…

NAME is one of bench.cases.architectures. The importance matrix is collected first, on four chunks.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import autoquant
from autoquant.backends.llamacpp import converter
from autoquant.backends.llamacpp.types import TYPES
from autoquant.core.errors import CheckFailed
from autoquant.core.files import sha256_of
from autoquant.runtime import preload, process
from bench.cases import architectures


def compared(model: Path, scratch: Path) -> tuple[list[str], list[str]]:
    """The types whose files are equal, and the others."""
    given: dict[str, Any] = {"pre_tokenizer": "" if "smollm2" in model.name.lower() else "gpt-2"}
    options: dict[str, Any] = {**given, "evaluate": "off"}
    first = autoquant.gguf(
        model, types="Q4_K_M", imatrix="builtin", imatrix_chunks=4, out=scratch / "first", **options
    )
    imatrix = str(first.folder / "imatrix.gguf")
    every = [name for name, row in TYPES.items() if not row.special]
    possible = autoquant.plan("gguf", model, types=every, imatrix=imatrix, **given)
    types = [item.type for item in possible.items if not item.impossible]
    while True:
        try:
            made = autoquant.gguf(
                model,
                types=types,
                imatrix=imatrix,
                keep_intermediate=True,
                out=scratch / "out",
                **options,
            )
            break
        except CheckFailed as failure:  # random weights may repeat a token in a small type
            too_small = re.search(r"-([A-Z0-9_]+)\.gguf generates nothing", str(failure))
            if too_small is None:
                raise
            types.remove(too_small[1])
    named = {one.name for one in made.artifacts}
    whole = next(
        (path for path in made.folder.glob("*.gguf") if path.name not in named), None
    ) or made.path(made.provenance["converted as"])
    same: list[str] = []
    others: list[str] = []
    for one in made.artifacts:
        if one.name == whole.name:
            continue
        target = scratch / "referee.gguf"
        process.call(
            "bench.referee:quantize",
            log=scratch / "log",
            env=converter.environment(converter.locate()),
            source=str(whole),
            target=str(target),
            type=one.type,
            threads=2,
            imatrix="" if TYPES[one.type].imatrix == "no" else imatrix,
        )
        equal = sha256_of(target) == one.files[0].sha256
        (same if equal else others).append(one.type)
    return same, others


def main() -> None:
    """Compare, and say it."""
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder, preload.kept():
            scratch = Path(folder)
            model = Path(name)
            if name in architectures.names():
                model = scratch / name
                process.call(
                    "bench.cases.architectures:make",
                    log=scratch / "log",
                    name=name,
                    folder=str(model),
                )
            same, others = compared(model, scratch)
        print(f"{name}: {len(same)} of {len(same) + len(others)} equal {' '.join(others)}")


if __name__ == "__main__":
    main()
