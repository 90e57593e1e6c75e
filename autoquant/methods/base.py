"""What a method is: one class, of which the registry has one instance each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from autoquant.core.journal import RunFolder
from autoquant.core.options import MethodOptions
from autoquant.core.plans import Plan
from autoquant.core.records import Artifact, RunRecord, Snapshot, Source
from autoquant.formats.tensors import Part
from autoquant.source import fetch, structure
from autoquant.source.layers import parts_by_module

O = TypeVar("O", bound=MethodOptions)


@dataclass(frozen=True)
class Output:
    """What a method hands back: its artifacts, how to have the unquantized GGUF file until the run
    ends (which may convert it), what the card says of how they were made, and files to go with the
    artifacts. ``stand_in`` is that unquantized file, where it is here and the source's files are
    not; ``made_with`` is the key of all that its bytes depend on.
    """

    artifacts: tuple[Artifact, ...]
    unquantized: Callable[[], Path] | None
    provenance: dict[str, Any]
    extras: tuple[str, ...] = ()
    stand_in: Path | None = None
    made_with: str = ""


@dataclass(frozen=True)
class ComparisonVariants:
    """What a method's notebook makes beside a run, to compare size and quality: names by
    ``default``; ``parse`` gives a name as it is written, or raises ValueError or InputError;
    ``kind`` is what they are. ``again``: the run's own is made once more, with other options.
    ``without`` are options of the run that would contradict such a name.
    """

    default: tuple[str, ...]
    parse: Callable[[str], str]
    kind: str
    again: bool = False
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class UsualType:
    """A type that a method usually makes, for who asks what fits. ``bits`` are those of a quantized
    weight with its share of scales and zero points; embeddings, norms and what else is not
    quantized have 16, the output head ``head``. ``least`` is the CUDA compute capability that
    ``runs``, what loads it, needs for it. ``options`` make it, where several types of a
    method, or several widths, are chosen among.
    """

    type: str
    bits: float
    runs: str
    least: float
    head: int = 16
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_choice(*allowed: str) -> Callable[[str], str]:
    """For :class:`ComparisonVariants`: a name that is one of a few."""

    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"{value!r} is not allowed; allowed: {', '.join(allowed)}")
        return value

    return parse


def choice(value: int, allowed: Sequence[int], more: str = "") -> int:
    """A whole number that must be one of a few; a ValueError for pydantic if it is not."""
    if value not in allowed:
        raise ValueError(f"{value} is not allowed; allowed: {', '.join(map(str, allowed))}{more}")
    return value


class Method(ABC, Generic[O]):
    """One way to quantize. The class attributes say what it is and needs; the rest of the package
    reads them here and never tests a method's name.
    """

    name: ClassVar[str]
    """Of the public function and the command."""
    title: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[MethodOptions]]

    # what somebody asks who chooses a method
    take_when: ClassVar[str]
    """When to take it: the rest of a sentence that begins with "take it when"."""
    bits: ClassVar[str]
    """Bits per weight that are offered, in words."""
    requires_calibration: ClassVar[str]
    """Whether it looks at text, in words: yes, no, or when."""
    runs_on: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    """Where it quantizes; the usual place last."""
    gpu_to_run: ClassVar[str]
    """Whether its files need a GPU to run, in words."""
    runtimes: ClassVar[str]
    """What loads its files."""
    start: ClassVar[str] = ""
    start_needs: ClassVar[str] = ""
    """The command that runs what lies at ``{path}`` ({name} in {folder}); empty if a script does
    (:meth:`how_to_run`).
    """
    many_types: ClassVar[bool] = False
    """Whether a device decides which of its many types to take, so that its notebook asks for it.
    """
    reads_gguf: ClassVar[bool] = False
    """Whether it takes a GGUF file for a model."""
    tested_on: ClassVar[str] = "CPU"
    """What the tests make its files on."""
    cards: ClassVar[str] = ""
    """The GPUs that have made the bundled model with it (bench/GPU.md)."""

    pace: ClassVar[Mapping[str, float]] = {}
    """Seconds for a billion weights on two cores, checks included, by algorithm ("" where there is
    one): for who plans for another machine. Of a method that needs a GPU, on one, for each type.
    None where a plan says itself how long it takes.
    """

    # what its processes need
    extra: ClassVar[str]
    """The extra of this package with its libraries; laid over the environment where missing."""
    heavy_imports: ClassVar[tuple[str, ...]] = ()
    """The modules that its workers import beside torch and transformers."""
    packages: ClassVar[tuple[str, ...]]
    """Those whose versions the card names."""
    library_name: ClassVar[str]
    """The Hub's name for what loads the files (``library_name`` of a card)."""

    nearly_lossless: ClassVar[tuple[str, ...]] = ()
    """Types that cannot change a model much: if one does, something else is wrong."""

    chosen: ClassVar[str] = ""
    """The card's sentence on files whose types were chosen for a size, above the table of them."""

    # what notebooks and tests make with it
    usual_types: ClassVar[tuple[UsualType, ...]] = ()
    """What :mod:`autoquant.sizing` offers of it; GGUF's types are there by themselves."""
    demo_options: ClassVar[Mapping[str, Any]] = {}
    """Options that suit the bundled model."""
    notebook_defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults of its notebook: where its own would keep a CPU busy for long (Run All is a try), or
    where a better file is worth some minutes."""
    comparison_variants: ClassVar[ComparisonVariants | None] = None

    def seconds(self, source: Source, options: O) -> float:
        """What :attr:`pace` says of a source: seconds on two cores, or on a GPU for each type; 0
        where it says nothing.
        """
        pace = self.pace.get(str(getattr(options, "algorithm", ""))) or self.pace.get("", 0.0)
        return pace * source.parameters / 1e9

    @abstractmethod
    def variants(self, options: O) -> Sequence[str]:
        """The artifact types that options will make."""

    def made_before(self, options: O, steps: Mapping[str, Any]) -> Sequence[str]:
        """The artifact types that a run with these options has made, by its journal's steps."""
        return self.variants(options)

    def uploaded(self, options: O) -> Sequence[str]:
        """The artifact types that will be uploaded, as far as they are known before a run."""
        return self.variants(options)

    def resolve_defaults(self, source: Source, options: O) -> O:
        """The options with what they leave to the source."""
        return options

    @abstractmethod
    def check(self, source: Source, options: O) -> None:
        """Refuse within a second what cannot be done. Raises InputError."""

    def without_slow_checks(self, options: O) -> O:
        """The options without what :meth:`check` would look up on the Hub or in another process,
        for a form that is checked while somebody types.
        """
        return options

    def check_hardware(self, options: O, folder: Path) -> None:
        """Refuse a machine that cannot do it, unless the run's folder has all that is asked for,
        and a folder that holds something else. Raises InputError.
        """

    @abstractmethod
    def plan(self, source: Source, options: O, out: Path) -> Plan:
        """What a run would make and need. Takes some seconds; downloads and writes nothing."""

    def plan_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options that make a plan show everything, beside those that are given."""
        return {}

    def about(self, source: Source, options: O) -> list[str]:
        """What somebody should know of a source beforehand."""
        return structure.notes_on(source)

    def fetch(self, source: Source, options: O, out: Path) -> Snapshot:
        """Have the files at hand that :meth:`quantize` needs; ``out`` is where results go."""
        return fetch(source)

    def unmeasured(self, source: Source, options: O, out: Path) -> str:
        """Why a run's files cannot be measured; empty if they can be. It knows the disk; memory is
        others' concern.
        """
        return ""

    def to_measure(self, source: Source, options: O, out: Path) -> int:
        """Bytes that measuring a run's files reads from the Hub, which the run itself has read
        before and not kept.
        """
        return 0

    @abstractmethod
    def quantize(self, snapshot: Snapshot, options: O, run: RunFolder) -> Output:
        """Quantize and verify; what the journal knows is not done again."""

    @abstractmethod
    def environment(self, options: O) -> dict[str, str]:
        """Variables of its worker processes."""

    def prepare(self, logs: Path) -> str:
        """Fetch beforehand what it needs beside this package, for work without a network. Returns
        why that would be in vain on this machine, and has then fetched nothing.
        """
        return ""

    @abstractmethod
    def folder_suffix(self, options: O) -> str:
        """How the default output folder's name ends, after the model's."""

    def parts(self, source: Source) -> dict[str, Part]:
        """The matrices that are quantized, by the names that users see, as parts of the source's
        files.
        """
        return parts_by_module(source)

    @abstractmethod
    def describe_type(self, artifact: Artifact) -> str:
        """One line: when to take an artifact of its type."""

    @abstractmethod
    def how_to_run(self, record: RunRecord) -> str:
        """The card's section on running the model."""


AnyMethod: TypeAlias = Method[Any]
"""A method whose options are not known to the reader."""
