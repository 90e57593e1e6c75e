"""Two files compared token by token: the difference of their log-probabilities, and its error.

On the same tokens the losses of two files rise and fall together. The error of their difference is
therefore far smaller than those of the two perplexities, and whether these overlap says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from autoquant.core.errors import InputError
from autoquant.core.language import told
from autoquant.core.records import Evaluation
from autoquant.display import engines, html, tables
from autoquant.display.engines import APART
from autoquant.evaluate.scoring import standard_error

CERTAIN = 2.0  # |z| from which one file is called better: about 95 % of a normal distribution
HEAD = ("model", "against", "nats per token", "z", "verdict")
ABOUT = (
    "Difference of the mean log-probabilities of the same tokens ± its standard error, positive"
    " where the first predicts them better; z is the difference by its error, and from"
    f" |z| = {CERTAIN:g} (about 95 %) one is called better."
)
ENGINES = (
    "llama.cpp ran one of the two and transformers the other; llama.cpp rounds activations too,"
    f" which alone made up to {APART:g} nats per token (SmolLM2-135M), so only more than that"
    " counts"
)


@dataclass(frozen=True)
class Scored:
    """One file to compare: its name, its figures, the folder of its run, and whether it is the
    ``unquantized`` model.
    """

    name: str
    row: Evaluation | None
    folder: Path
    unquantized: bool = False

    @property
    def perplexity(self) -> float:
        """Of a file that was not measured, infinite."""
        return self.row.perplexity if self.row is not None else math.inf

    def log_probabilities(self) -> Any:
        """Those of the scored tokens, in nats: float64 [chunks, predictions]. Raises InputError if
        none are there.
        """
        named = self.row.log_probabilities if self.row is not None else ""
        path = self.folder / named
        if not named or not path.is_file():
            raise InputError(
                f"{self.name}: no log-probabilities of its tokens are kept (it was measured by an"
                " earlier version, or its .autoquant folder did not come along); measure it again,"
                " with the text and chunks of the other one: autoquant.load(folder).evaluate()"
            )
        return np.load(path).astype(np.float64)


@dataclass(frozen=True, repr=False)
class Difference:
    """One file against another, on the same tokens. Prints as a sentence.

    ``mean`` is the mean log-probability of the scored tokens by ``name`` less that by ``other``, in
    nats per token: positive where ``name`` is better; exp(-mean) is the ratio of their
    perplexities. ``error`` is its standard error (see scoring.standard_error), over ``tokens``
    predictions. ``mixed``: llama.cpp ran one file and transformers the other, so that up to
    engines.APART nats are not the files'.
    """

    name: str
    other: str
    mean: float
    error: float
    tokens: int
    mixed: bool = False

    @property
    def z(self) -> float:
        """The difference in standard errors; 0 where the files predict the same."""
        if self.error:
            return self.mean / self.error
        return math.copysign(math.inf, self.mean) if self.mean else 0.0

    @property
    def better(self) -> str:
        """The name of the better one; empty where the difference is within the error."""
        if not abs(self.z) >= CERTAIN:  # which is so of NaN too
            return ""
        if self.mixed and abs(self.mean) <= APART:
            return ""
        return self.name if self.mean > 0 else self.other

    @property
    def verdict(self) -> str:
        """Which one is better, in words."""
        if self.better:
            return f"{self.better} is better"
        certain = abs(self.z) >= CERTAIN
        return "within the engines' difference" if certain else "no difference beyond chance"

    def __str__(self) -> str:
        said = (
            f"{self.name} against {self.other}: {self.mean:+.4f} ± {self.error:.4f} nats per token,"
            f" z = {self.z:+.1f}: {self.verdict}"
        )
        return f"{said}; {ENGINES}" if self.mixed else said

    __repr__ = __str__  # what a Python prompt shows


@dataclass(frozen=True, repr=False)
class Differences:
    """Several of them. Prints as a table, in a notebook too."""

    rows: tuple[Difference, ...]

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def _body(self) -> list[tuple[str, ...]]:
        return [
            (
                one.name,
                one.other,
                f"{one.mean:+.4f} ± {one.error:.4f}",
                f"{one.z:+.1f}",
                one.verdict,
            )
            for one in self.rows
        ]

    def _below(self) -> list[str]:
        mixed = ", ".join(one.name for one in self.rows if one.mixed)
        return [ABOUT, *([f"{mixed}: {ENGINES}"] if mixed else [])]

    def __str__(self) -> str:
        below = "\n".join(map(told, self._below()))
        return f"{tables.table(HEAD, self._body(), left=2)}\n\n{below}"

    __repr__ = __str__  # what a Python prompt shows

    def _repr_html_(self) -> str:
        below = "<br>".join(escape(told(line)) for line in self._below())
        return f"<div>{html.table(HEAD, self._body(), left=2)}<p>{below}</p></div>"


def difference(one: Scored, other: Scored) -> Difference:
    """The first against the second. Raises InputError if they were not measured on the same tokens,
    or if the log-probabilities of one are gone; it says what to do.
    """
    refuse_other_tokens(one, other)
    found = one.log_probabilities() - other.log_probabilities()
    if not np.isfinite(found).all():
        raise InputError(
            f"{one.name} and {other.name}: one of them predicts NaN or Inf on this text, which no"
            " difference can be made of; its checks say whether the file is broken"
        )
    # the unquantized model is the same to both engines
    mixed = not (one.unquantized or other.unquantized) and engines.mixed([one.row, other.row])
    mean, error = float(found.mean()), standard_error(found)
    return Difference(one.name, other.name, mean, error, int(found.size), mixed)


def refuse_other_tokens(one: Scored, other: Scored) -> None:
    """Refuse two files that were not measured on the same tokens. Raises InputError."""
    for each in (one, other):
        if each.row is None:
            raise InputError(
                f"{each.name} was not measured; autoquant.load(folder).evaluate() measures a run"
            )
    assert one.row is not None
    assert other.row is not None
    both, again = f"{one.name} and {other.name}", "Measure both alike: .evaluate(text=…, chunks=…)"
    if one.row.text_sha256 != other.row.text_sha256:
        raise InputError(f"{both} were measured on different texts. {again}")
    if one.row.tokens != other.row.tokens:
        raise InputError(
            f"{both} were measured on {one.row.tokens:,} and {other.row.tokens:,} predictions"
            f" (another number of chunks, or a model with a shorter context). {again}"
        )
    # rows of earlier versions have none: what is missing then is said of the log-probabilities
    hashes = {one.row.tokens_sha256, other.row.tokens_sha256} - {""}
    if len(hashes) > 1:
        raise InputError(
            f"{both} have different tokenizers, and so different tokens of the same text: what they"
            " predict per token is not comparable"
        )


def against_best(files: Sequence[Scored]) -> Differences:
    """Each file against the one with the lowest perplexity, the nearest first. Which of many is the
    best is partly chance: where several are within the error, take the smallest of them. Raises
    InputError for fewer than two files, and as :func:`difference` does.
    """
    if len(files) < 2:
        raise InputError(f"{len(files)} file{'' if len(files) else 's'}: two are compared, or more")
    best, *others = sorted(files, key=lambda one: one.perplexity)
    return Differences(tuple(difference(one, best) for one in others))
