"""Rewrite the generated parts of docs and README.md. usage: python tools/sync_docs.py
[--check]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import sync_notebooks

from autoquant.backends.llamacpp.types import TYPES
from autoquant.core.rendering import markdown_table
from autoquant.display import tables
from autoquant.methods import METHODS, overview
from autoquant.sizing import devices

ROOT = Path(__file__).resolve().parent.parent
DOCS, DEVICES, README = ROOT / "docs/methods.md", ROOT / "docs/devices.md", ROOT / "README.md"


def generated() -> dict[str, str]:
    """The text of each generated part of docs/methods.md by its name."""
    parts = {
        f"options of {method.name}": markdown_table(method.Options) for method in METHODS.values()
    }
    parts["methods"] = tables.markdown(*overview.table(), left=7) + f"\n\n{overview.NOTE}"
    parts["gguf types"] = tables.markdown(
        ("type", "when", "imatrix", "bits/weight"),
        [(f"`{t.name}`", t.when, t.imatrix, f"{t.bits_per_weight:.2f}") for t in TYPES.values()],
        left=3,
    )
    return parts


def render(text: str, parts: dict[str, str]) -> str:
    """The document with every part between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``
    replaced.
    """
    for name, part in parts.items():
        pattern = re.compile(
            rf"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL
        )
        text, n = pattern.subn(lambda match, part=part: f"{match[1]}{part}\n{match[2]}", text)  # type: ignore[misc]
        if n != 1:
            sys.exit(f"the part {name!r} must be there once, it is there {n} times")
    return text


if __name__ == "__main__":
    choosing = tables.markdown(*overview.choosing(), left=5)
    front = {"which method": choosing, "notebooks": sync_notebooks.table()}
    known = {
        "devices": tables.markdown(*devices.overview(), left=3),
        "kinds of devices": tables.markdown(*devices.rules(), left=3),
    }
    for path, parts in ((DOCS, generated()), (DEVICES, known), (README, front)):
        before = path.read_text(encoding="utf-8")
        after = render(before, parts)
        if before != after and "--check" in sys.argv[1:]:
            sys.exit(f"{path.relative_to(ROOT)} is stale: run `make sync`")
        if before != after:
            path.write_text(after, encoding="utf-8")
