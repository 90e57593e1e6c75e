"""What a run would make, and need: a value that a run hands on, like those in ``records``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoquant.core.records import Source


@dataclass(frozen=True)
class PlanItem:
    """One artifact to be: exact bytes on disk, bits per weight, and what to know about it.
    ``impossible`` says why it cannot be made.
    """

    type: str
    bytes: int
    bits_per_weight: float
    needs_imatrix: bool
    note: str
    impossible: str = ""


@dataclass(frozen=True)
class Plan:
    """Sizes are bytes. ``disk_needed`` is for all items together, with what is downloaded, and what
    is written in between and removed again.

    ``seconds`` says how long it takes here, as far as that is known: to ``download``, to
    ``quantize``. ``refused`` says why a run with these options would be refused, if it would.
    """

    method: str
    source: Source
    items: tuple[PlanItem, ...]
    intermediate: int
    disk_needed: int
    disk_free: int
    memory_needed: int
    memory_available: int
    notes: tuple[str, ...] = ()
    download: int = 0
    refused: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether disk and memory suffice for all items together."""
        return self.disk_needed <= self.disk_free and self.memory_needed <= self.memory_available

    @property
    def verdict(self) -> tuple[bool, str]:
        """Whether it can be done here, and that in words. Types that lack an importance matrix are
        marked in the table: a list of all types is no request for them.
        """
        if not self.fits:
            return False, "it does NOT fit" + (
                ": ask for fewer or smaller types" if self.disk_needed > self.disk_free else ""
            )
        if self.refused and not any(item.needs_imatrix for item in self.items):
            return False, f"it cannot be made here: {self.refused}"
        return True, "it fits"
