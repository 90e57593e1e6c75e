"""Which of a source's tensors llama.cpp's converter takes."""

from __future__ import annotations

from typing import Any

from autoquant.core.records import Source
from autoquant.source import structure


def taking(source: Source) -> dict[str, Any]:
    """Which of a source's tensors the converter takes (see hooks.Taking): of draft blocks for
    multi-token prediction those that are there, for llama.cpp runs them.
    """
    found = structure.structure(source)
    if not found.known or source.quantized:
        return {}
    drafts = structure.drafts(source)
    taken = drafts | (structure.unread(source) if found.unused else set())
    drop = [*found.tied, *(name for name in found.unused if name not in taken)]
    return {"drop": drop, "prefix": found.prefix, "drafts": sorted(drafts)}
