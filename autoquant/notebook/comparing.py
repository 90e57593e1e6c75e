"""The notebook that compares two models: what its form asks for, and its answer."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from autoquant.backends.llamacpp.types import parse
from autoquant.core.errors import InputError
from autoquant.core.language import say
from autoquant.core.options import MethodOptions, UploadOptions, option
from autoquant.display import html, tables
from autoquant.notebook.page import LARGER, SMALLER

if TYPE_CHECKING:
    from autoquant.core.records import Artifact
    from autoquant.result import Result

OUT = option(
    "",
    "folder to write to; empty: named after model and method; drive: the folder AutoQuant in your"
    " Google Drive (in Colab), so that a run can be resumed after Colab has disconnected",
    metavar="FOLDER|drive",
)


class CompareOptions(UploadOptions):
    """What the notebook of comparisons asks for."""

    main: ClassVar[tuple[str, ...]] = ("small", "large", "small_types", "large_types", "gptq_bits")

    small: str = option(
        SMALLER,
        "the smaller model: on the Hugging Face Hub as owner/name, or a folder",
        metavar="OWNER/NAME|FOLDER|demo-small",
    )
    large: str = option(
        LARGER, "the larger model, of the same family", metavar="OWNER/NAME|FOLDER|demo"
    )
    small_types: tuple[str, ...] = option(
        ("F16", "Q8_0", "Q6_K", "Q4_K_M"),
        "GGUF types of the smaller model",
        metavar="TYPE,…",
        min_length=1,
    )
    large_types: tuple[str, ...] = option(
        ("Q3_K_M", "IQ3_XXS", "Q2_K"),
        "GGUF types of the larger model, to set against those of the smaller",
        metavar="TYPE,…",
        min_length=1,
    )
    gptq_bits: tuple[str, ...] = option(
        ("8", "4", "3"),
        "bit widths of the larger model by GPTQ: 2, 3, 4, 8; may be empty",
        metavar="BITS,…",
    )
    calibration_samples: int = option(
        32,
        "samples that GPTQ calibrates on; more are a little better, and take longer",
        unit="samples",
        ge=1,
        le=100_000,
    )
    eval_chunks: int = MethodOptions.model_fields["eval_chunks"]  # type: ignore[assignment]
    out: str = OUT

    def subject(self) -> str:
        """What is made, in words."""
        return say("{one} and {other}", one=self.small, other=self.large)

    def runs(self) -> list[tuple[str, str, dict[str, Any]]]:
        """What the notebook of comparisons makes, as method, model and options: of the larger model
        the smaller one's types too, and GPTQ.
        """
        both = tuple(dict.fromkeys((*self.small_types, *self.large_types)))
        samples = self.calibration_samples
        return [
            ("gguf", self.small, {"types": self.small_types, "imatrix": "builtin"}),
            ("gguf", self.large, {"types": both, "imatrix": "builtin"}),
            *(
                ("gptq", self.large, {"bits": int(width), "calibration_samples": samples})
                for width in self.gptq_bits
            ),
        ]

    @field_validator("small_types", "large_types")
    @classmethod
    def _types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(parse(name) for name in value))

    @field_validator("gptq_bits")
    @classmethod
    def _bits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for bits in value:
            if bits not in ("2", "3", "4", "8"):
                raise ValueError(f"{bits} is not allowed; allowed: 2, 3, 4, 8")
        return value


class SameMemory:
    """Each file of a smaller model against the best file of a larger one that is no larger than it,
    token by token; files that are smaller than all of the larger model's are named below. Prints as
    a table, in a notebook too.
    """

    HEAD = ("memory", "smaller model", "larger model", "nats per token", "z", "verdict")

    def __init__(self, smaller: Result, larger: Result) -> None:
        self.smaller, self.larger = smaller, larger

    def _fitting(self, one: Artifact) -> list[Artifact]:
        """The larger model's files that are no larger than one of the smaller model's."""
        return [other for other in self.larger.artifacts if other.bytes <= one.bytes]

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The table's rows, the largest first."""
        for one in sorted(self.smaller.artifacts, key=lambda a: -a.bytes):
            size = tables.size(one.bytes)
            if not (fitting := self._fitting(one)):
                continue
            best = min(fitting, key=attrgetter("evaluation.perplexity"))
            try:
                found = self.smaller.difference(one.type, best.type, self.larger)
            except InputError as reason:  # such as different tokenizers
                yield (size, one.type, best.type, "", "", str(reason))
                continue
            better = {
                found.name: say("the smaller model is better"),
                found.other: say("the larger model is better"),
            }
            yield (
                size,
                one.type,
                best.type,
                f"{found.mean:+.4f} ± {found.error:.4f}",
                f"{found.z:+.1f}",
                better.get(found.better, found.verdict),
            )

    def _said(self) -> tuple[str, list[str]]:
        names = say(
            "{smaller} against {larger}, in the same memory",
            smaller=self.smaller.source.name,
            larger=self.larger.source.name,
        )
        # without a z there was nothing to compare, such as of different tokenizers
        verdicts = [verdict for *_, z, verdict in self.rows() if z]
        larger = verdicts.count(say("the larger model is better"))
        smaller = verdicts.count(say("the smaller model is better"))
        answer = say(
            "Of {count} comparisons in the same memory the larger model is better in {larger}, the"
            " smaller one in {smaller}; undecided: {rest}.",
            count=len(verdicts),
            larger=larger,
            smaller=smaller,
            rest=len(verdicts) - larger - smaller,
        )
        answers = [answer] if verdicts else []
        alone = [one.type for one in self.smaller.artifacts if not self._fitting(one)]
        if not alone:
            return names, answers
        smallest = min(self.larger.artifacts, key=attrgetter("bytes"))
        without = say(
            "No file of {larger} is as small as {types} of {smaller} (its smallest, {type}, has"
            " {size}), so these are not compared: ask for a smaller type.",
            smaller=self.smaller.source.name,
            larger=self.larger.source.name,
            type=smallest.type,
            size=tables.size(smallest.bytes),
            types=", ".join(alone),
        )
        return names, [*answers, without]

    def __str__(self) -> str:
        above, below = self._said()
        table = tables.table(self.HEAD, list(self.rows()), left=3)
        return "\n\n".join([above, table, *below])

    __repr__ = __str__  # what a Python prompt shows

    def _repr_html_(self) -> str:
        above, below = self._said()
        shown = html.table(self.HEAD, list(self.rows()), left=3, words=1)
        said = "".join(f"<p>{escape(one)}</p>" for one in below)
        return f"<div><p><b>{escape(above)}</b></p>{shown}{said}</div>"
