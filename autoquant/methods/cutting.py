"""Texts in chunks of token ids, in a worker that has the model's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoquant.core.journal import RunFolder
from autoquant.core.records import Snapshot
from autoquant.core.texts import Document, enough
from autoquant.runtime import process


def tokens(
    by_kind: Mapping[str, Sequence[Document]],
    snapshot: Snapshot,
    chunks: int,
    context: int,
    run: RunFolder,
    env: Mapping[str, str],
) -> list[list[int]]:
    """A text in chunks, of each kind as many, that begin as those that are measured on."""
    found: list[list[int]] = process.call(
        "autoquant.evaluate.scoring:tokenize",
        log=run.logs,
        env=env,
        folder=str(snapshot.folder),
        parts=enough(by_kind, chunks * context),
        chunks=chunks,
        context=context,
    )["chunks"]
    return found
