"""Which engine ran the files of a table, and what it means where there are two."""

from __future__ import annotations

from collections.abc import Iterable

from autoquant.core.records import LLAMA_CPP, TRANSFORMERS, WEIGHTS, Evaluation

HEAD = "run by"
# what llama.cpp adds, on SmolLM2-135M, seven types from Q8_0 to Q2_K (bench/RESULTS.md, Measuring,
# block by block): at most so many nats, of the KL divergence and of the mean log-probability
APART = 0.005
SIZE = (
    "llama.cpp rounds activations too, so expect a higher KL divergence there: by 0.0003 nats with"
    " the bundled model, by 0.003 to 0.005 with SmolLM2-135M (and 0.2 to 0.5 % more perplexity)"
)
BY_WEIGHTS = f"GGUF files were measured by their weights, run by transformers in float32; {SIZE}."
MIXED = (
    "These rows are not by one engine, as the last column says: transformers runs weights"
    f" in float32; {SIZE}."
)
ONE = "For one engine, measure the runs by llama.cpp once more: .evaluate(by_weights=True)."


def by(row: Evaluation | None) -> str:
    """What ran a file, in a word or two; a dash if it was not measured."""
    if row is None:
        return "–"
    return LLAMA_CPP if row.engine == LLAMA_CPP else TRANSFORMERS


def mixed(rows: Iterable[Evaluation | None]) -> bool:
    """Whether files were run by llama.cpp and by transformers, which a table of them has to say.
    The unquantized model's row does not belong to ``rows``: it is the same for both.
    """
    return len({by(row) for row in rows if row is not None}) > 1


def said(rows: Iterable[Evaluation | None]) -> list[str]:
    """What a table of files says of who ran them; nothing where it goes without saying."""
    measured = [row for row in rows if row is not None]
    if mixed(measured):
        return [MIXED]
    return [BY_WEIGHTS] if any(row.engine == WEIGHTS for row in measured) else []
