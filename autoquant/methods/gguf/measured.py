"""A model's sensitivities without a file: what they depend on, and what files of any size would
lose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from autoquant.calibration import CalibrationOptions
from autoquant.core.errors import InputError
from autoquant.core.options import MethodOptions, build
from autoquant.core.records import Source
from autoquant.display.sensitivities import Point
from autoquant.fisher.table import FILE, Sensitivities
from autoquant.methods.gguf.choosing import Model
from autoquant.methods.gguf.options import NONE, GgufOptions
from autoquant.methods.size import Size

# the options of GGUF that a table depends on, or how its model is had
OPTIONS = (
    "sensitivity_samples",
    "candidates",
    "imatrix",
    "imatrix_chunks",
    "precision",
    "pre_tokenizer",
    "threads",
    "download",
    "allow_pickle",
    "converter",
    *(one for one in CalibrationOptions.model_fields if one not in MethodOptions.model_fields),
    "base",
)
LARGEST = "Q8_0"  # the end of a ladder: more bits gain next to nothing
STEPS = 24


def options(values: Mapping[str, Any]) -> GgufOptions:
    """The options of GGUF for a table alone. Raises InputError for those that have nothing to do
    with it.
    """
    for name in values:
        if name in GgufOptions.model_fields and name not in OPTIONS:
            raise InputError(
                f"{name}: sensitivities do not depend on it; leave {name} out (there are:"
                f" {', '.join(OPTIONS)})"
            )
    # a table serves any size; some size makes it the step of a run that will be asked for one
    unmade = {"size": "Q4_K_M", "against": NONE, "evaluate": "off"}
    return build(GgufOptions, {**values, **unmade})


@dataclass(frozen=True)
class Measured:
    """A ``table`` in a run's ``folder``, with what files of its model may have (``model``)."""

    folder: Path
    source: Source
    options: GgufOptions
    table: Sensitivities
    model: Model

    @property
    def path(self) -> Path:
        """The table's file, which ``sensitivity=`` takes for other runs."""
        return self.folder / FILE

    def points(self, sizes: Sequence[str | int] | None = None) -> list[Point]:
        """The best files of these sizes, predicted; of numbers, which are bytes; or of a ladder
        from the smallest size to that of Q8_0. Raises InputError.
        """
        if sizes is None:
            return self._ladder
        return [self._point(_size(one)) for one in sizes]

    @cached_property
    def stock(self) -> dict[str, Point]:
        """llama.cpp's own types, predicted; without those that have types of tensors which are not
        in the table.
        """
        found = {}
        for name, plan in self.model.stock.items():
            nats = self.table.predicted(plan["tensors"])
            if nats is not None:
                found[name] = Point(name, plan["bytes"], plan["bits_per_weight"], nats)
        return found

    @cached_property
    def _ladder(self) -> list[Point]:
        low = 1.01 * self.model.least(self.options, self.table)
        top = self.model.stock.get(LARGEST) or max(
            self.model.stock.values(), key=lambda plan: int(plan["bytes"])
        )
        ratio = max(1.0, int(top["bytes"]) / low)
        sizes = [int(low * ratio ** (i / (STEPS - 1))) for i in range(STEPS)]
        found = {point.bytes: point for point in map(self._point, map(_size, sizes))}
        return sorted(found.values(), key=lambda point: point.bytes)

    def _near(self, size: int) -> str:
        """The type of llama.cpp that is nearest in size, of those that are predicted."""
        away = {name: abs(math.log(one.bytes / size)) for name, one in self.stock.items()}
        return min(away, key=away.__getitem__, default="")

    def _point(self, size: Size) -> Point:
        plan = self.model.chosen(self.options, self.table, size)
        return Point(
            plan["type"],
            plan["bytes"],
            plan["bits_per_weight"],
            plan["nats"],
            str(size),
            plan["tensors"],
            self._near(plan["bytes"]),
        )


def _size(given: str | int) -> Size:
    try:
        return Size(given, "B") if isinstance(given, int) else Size.parse(str(given))
    except ValueError as error:
        raise InputError(f"sizes: {error}") from None
