"""The calibration samples of a run that writes a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoquant import calibration
from autoquant.calibration import CalibrationOptions
from autoquant.core.options import MethodOptions
from autoquant.core.records import Source
from autoquant.core.texts import Document


@dataclass(frozen=True)
class Samples:
    """The calibration text of a run, and how it is packed."""

    texts: Sequence[Document]
    name: str
    asked: int
    length: int
    seed: int

    @classmethod
    def of(cls, source: Source, options: MethodOptions) -> Samples | None:
        """Those of the options, if they have any."""
        if not isinstance(options, CalibrationOptions):
            return None
        text = calibration.documents(options, source.folder)
        length = min(options.calibration_length, source.context)
        seed = options.calibration_seed
        return cls(text.texts, text.name, options.calibration_samples, length, seed)

    def depends(self, arguments: Mapping[str, Any]) -> list[Any]:
        """What the journal's key takes of them, and of the arguments that belong to them."""
        return [self.texts, self.asked, self.length, self.seed, *arguments.values()]

    def packing(self) -> dict[str, Any]:
        """The arguments of calibration.pack, without the folder."""
        return {
            "texts": self.texts,
            "samples": self.asked,
            "length": self.length,
            "seed": self.seed,
        }

    def fewer(self, taken: int) -> tuple[str, ...]:
        """A note if the text gave fewer samples than were asked for."""
        if taken >= self.asked:
            return ()
        return (calibration.fewer(taken, self.asked, self.length),)
