"""Rewrite the generated parts of docs/methods.md from the options' declarations. usage: python tools/sync_docs.py [--check]"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from autoquant import report
from autoquant.llama.types import TYPES
from autoquant.methods import METHODS
from autoquant.options import markdown_table

DOCS = Path(__file__).resolve().parent.parent / "docs" / "methods.md"


def generated() -> dict[str, str]:
    """The text of each generated part by its name."""
    parts = {f"options of {method.name}": markdown_table(method.options) for method in METHODS.values()}
    parts["gguf types"] = report.markdown(("type", "when", "imatrix", "bits/weight"),
                                          [(f"`{t.name}`", t.when, t.imatrix, f"{t.bits_per_weight:.2f}") for t in TYPES.values()], left=3)
    return parts


def render(text: str) -> str:
    """The document with every part between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` replaced."""
    for name, part in generated().items():
        pattern = re.compile(rf"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
        text, n = pattern.subn(lambda match, part=part: f"{match[1]}{part}\n{match[2]}", text)  # type: ignore[misc]
        if n != 1:
            sys.exit(f"{DOCS.name} must have the part {name!r} once, it has it {n} times")
    return text


if __name__ == "__main__":
    before = DOCS.read_text(encoding="utf-8")
    after = render(before)
    if "--check" in sys.argv[1:]:
        sys.exit("docs/methods.md is stale: run `make sync`" if before != after else 0)
    DOCS.write_text(after, encoding="utf-8")
