"""The options of EXL2 and EXL3: averages of bits per weight, or the sizes that give them."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from pydantic import field_validator

from autoquant.calibration import CalibrationOptions
from autoquant.core.options import option
from autoquant.methods.size import BPW, Size

USUAL_HEAD = 6  # bits of the output head, which names of types leave out


def bitrate(value: Any, least: int = 2) -> str:
    """A bitrate as it is written in names: 4.0, 4.25. A ValueError for pydantic if it is none, or
    not in the range of ``least`` to 8.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{value!r} is no number of bits; allowed: {least} to 8, e.g. 4.0 or 4.25"
        ) from None
    if not least <= number <= 8:
        raise ValueError(f"{value} is not allowed; allowed: {least} to 8 bits per weight")
    return f"{number:.2f}".removesuffix("0") if round(number, 2) == number else str(number)


def bitrates(value: Any, least: int) -> Any:
    """One or several of them, each once; what is no list of values is left to pydantic."""
    given = [value] if isinstance(value, (int, float)) else value
    if not isinstance(given, (list, tuple)):
        return value
    return tuple(dict.fromkeys(bitrate(one, least) for one in given))


class BitrateOptions(CalibrationOptions):
    """What both take."""

    main: ClassVar[tuple[str, ...]] = ("bpw", "head_bits", "calibration", "evaluate", "upload")
    own: ClassVar[str]
    """The calibration text that comes with the library."""
    least: ClassVar[int]
    """The fewest bits per weight."""

    bpw: tuple[str, ...] = option(("4.0",), "average bits per weight of the blocks", min_length=1)
    head_bits: int = option(USUAL_HEAD, "bits per weight of the output head")
    size: tuple[str, ...] = option(
        (),
        "instead of bpw: sizes of the model folder's weights, which give the bits; a number"
        " with GB, GiB, MB or MiB",
        metavar="SIZE,…",
    )

    @field_validator("bpw", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return bitrates(value, cls.least)

    @field_validator("size")
    @classmethod
    def _sizes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        found = []
        for text in value:
            one = None
            with contextlib.suppress(ValueError):
                one = Size.parse(text)
            if one is None or one.type or one.unit == BPW:
                raise ValueError(f"{text!r} is no size in bytes; write 5.5GB, or bits as bpw")
            found.append(str(one))
        return tuple(dict.fromkeys(found))

    @property
    def own_text(self) -> bool:
        """Whether it calibrates on the text that comes with the library."""
        return self.calibration == self.own

    @property
    def types(self) -> tuple[str, ...]:
        """The artifacts' names."""
        return tuple(map(self.name, self.bpw))

    def name(self, bits: str, how: str = "") -> str:
        """The name of an artifact with an average of bits: 4.0bpw, with ``how`` it was made, and
        with the head's bits if they are not the usual ones.
        """
        parts = [f"{bits}bpw", how]
        parts.append("" if self.head_bits == USUAL_HEAD else f"h{self.head_bits}")
        return "-".join(filter(None, parts))
