"""What files whose types were chosen for a size gain over those of llama.cpp, in words."""

from __future__ import annotations

import math
from typing import NamedTuple

from autoquant.core.records import COMPARED, PREDICTED, Artifact, RunRecord

UNLIKE = 0.15  # files whose sizes differ by more are not compared
SAME = 0.003  # sizes that differ by less are called the same
RECIPE = (
    "recipe"  # a fact of a file whose types were chosen: of each kind of tensor how many have which
)


class Gain(NamedTuple):
    """A file beside the one that it is compared with; ``less`` is the share of that one's KL
    divergence that it saves, negative where it is worse.
    """

    chosen: Artifact
    stock: Artifact
    less: float

    @property
    def is_none(self) -> bool:
        """Whether the other one is better, and no larger: what one would take instead."""
        return self.less <= 0 and self.stock.bytes <= self.chosen.bytes * (1 + SAME)

    def __str__(self) -> str:
        ours, theirs = self.chosen.evaluation, self.stock.evaluation
        assert ours is not None
        assert theirs is not None
        word = "less" if self.less > 0 else "more"
        larger = self.chosen.bytes / self.stock.bytes - 1
        sized = f"{100 * abs(larger):.1f} % {'more' if larger > 0 else 'fewer'} bytes"
        said = (
            f"{self.chosen.type}: {100 * abs(self.less):.0f} % {word} KL divergence than"
            f" {self.stock.type} ({ours.kl_mean:.4f} instead of {theirs.kl_mean:.4f})"
            + (" at the same size" if abs(larger) < SAME else f" with {sized}")
        )
        predicted = self.chosen.facts.get(PREDICTED)
        said += f" (predicted: {predicted:.4f})" if predicted is not None else ""
        return f"{said}. It is no gain: take {self.stock.type}" if self.is_none else said


def of(run: RunRecord) -> list[Gain]:
    """The gains of a run's files, each over the measured type nearest in size."""
    measured = [one for one in run.artifacts if one.evaluation is not None]
    stock = [one for one in measured if COMPARED in one.facts]
    found = []
    for one in measured:
        if RECIPE not in one.facts or not stock:
            continue
        near = min(stock, key=lambda other: abs(math.log(other.bytes / one.bytes)))
        if abs(near.bytes / one.bytes - 1) > UNLIKE:
            continue
        assert near.evaluation is not None
        assert one.evaluation is not None
        theirs, ours = near.evaluation.kl_mean, one.evaluation.kl_mean
        found.append(Gain(one, near, 1 - ours / theirs if theirs > 0 else 0.0))
    return found


def recipes(run: RunRecord) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of a table: of each kind of tensor, how many have which type in each file."""
    files = [one for one in run.artifacts if RECIPE in one.facts]
    parts = dict.fromkeys(part for one in files for part in one.facts[RECIPE])
    body = [
        (
            part,
            *(
                ", ".join(f"{n} {kind}" for kind, n in one.facts[RECIPE].get(part, {}).items())
                for one in files
            ),
        )
        for part in parts
    ]
    return ("tensors", *(one.type for one in files)), body
