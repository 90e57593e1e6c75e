"""Several runs in one table of text, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoquant.core.language import told
from autoquant.core.records import Evaluation, RunRecord
from autoquant.display import engines, tables


def comparison(
    results: Mapping[str, RunRecord], label: str, titles: Sequence[str], more: Sequence[str] = ()
) -> str:
    """The table of several runs. ``label`` is what their names are, ``titles`` are the methods';
    ``more`` is said below it.
    """
    head, body = compared(results, label)
    title, said = about(results, titles)
    folders = (f"{name}: {one.folder}" for name, one in results.items())
    below = map(told, (said, *run_by(results), *more, *folders))
    return "\n".join([title, "", tables.table(head, body, left=2), "", *below])


def run_by(results: Mapping[str, RunRecord]) -> list[str]:
    """What a comparison says of the engines that ran its files."""
    found = engines.said(_measured(results))
    # weights are read back by what the converter made of a checkpoint
    possible = not any(one.source.gguf or one.source.pickle for one in results.values())
    return [*found, engines.ONE] if engines.MIXED in found and possible else found


def _measured(results: Mapping[str, RunRecord]) -> list[Evaluation | None]:
    return [artifact.evaluation for one in results.values() for artifact in one.artifacts]


def compared(
    results: Mapping[str, RunRecord], label: str
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of a comparison; each unquantized model once. Where files were not run by one
    engine, the last column has it.
    """
    body: list[tuple[str, ...]] = []
    shown: set[str] = set()
    mixed = engines.mixed(_measured(results))
    for name, one in results.items():
        first = one.source.id not in shown and one.reference is not None
        shown |= {one.source.id} if first else set()
        against = tables.reference_name(one.source)
        # where all runs are of one model, the title names it
        unnamed = one.source.id if len({each.source.id for each in results.values()}) > 1 else "–"
        ordered = [artifact.evaluation for artifact in tables.largest_first(one)]
        ordered = [one.reference, *ordered] if one.reference is not None else ordered
        body += [
            (
                unnamed if row[0] == against else name,
                *row,
                *([engines.by(measured)] if mixed else []),
            )
            for row, measured in zip(tables.rows(one), ordered, strict=True)
            if row[0] != against or first
        ]
    return (label, *tables.HEAD, *([engines.HEAD] if mixed else [])), body


def about(results: Mapping[str, RunRecord], titles: Sequence[str]) -> tuple[str, str]:
    """A comparison in words: what is compared, and how far."""
    sources = list(dict.fromkeys(one.source.id for one in results.values()))
    protocols = (tables.protocol(one, alone=len(sources) == 1) for one in results.values())
    said = next(filter(None, protocols), "")
    evaluations = [a.evaluation for one in results.values() for a in one.artifacts if a.evaluation]
    texts = {(row.text_sha256, row.tokens) for row in evaluations}
    if len(sources) < len(results) and len(texts) > 1:
        said = (
            "These were not measured on the same tokens (another text, or more of it): the rows are"
            " not comparable."
        )
    if len({one.tokenizer for one in results.values() if one.tokenizer}) > 1:
        said += (
            " These models have different tokenizers: their per-token perplexities are not"
            " comparable."
        )
    return f"{', '.join(sources)}: {', '.join(titles)}", said
