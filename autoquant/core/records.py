"""The frozen values that a run hands from one step to the next. They import next to nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from autoquant.core.names import plain

TOWERS = "what sees or hears"  # in a result's provenance: where these parts are
EXPERTS = "a mixture of experts"  # begins an artifact's note
# facts of artifacts: made to be compared with, and not to be given away; the KL divergence that was
# predicted before it was made
COMPARED, PREDICTED = "compared", "predicted"
PLACES = ("given", "stored_in", "adapter")  # folders of a source that it may have


@dataclass(frozen=True)
class Stored:
    """One file of an artifact: its name in the run folder, bytes and sha256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Check:
    """One thing that was looked at on an artifact, and what was seen. A check that fails raises
    instead.
    """

    name: str
    seen: str


# engines of evaluations; the last one: of GGUF files, whose weights transformers has run
LLAMA_CPP, TRANSFORMERS = "llama.cpp", "transformers"
WEIGHTS = "transformers, from the weights"
UNQUANTIZED = "unquantized"  # what files are measured against, in tables and the journal's steps


@dataclass(frozen=True)
class Evaluation:
    """Quality of one artifact, on the same tokens as every other row of its table.

    ``perplexity_error`` is one standard error of the perplexity, ``kl_error`` of the mean KL
    divergence, ``difference_error`` of the mean log-probability of the scored tokens less that by
    the unquantized model, in nats per token (both None in runs of earlier versions). KL divergence
    is KL(unquantized ‖ quantized) in nats per token. ``agreement`` is the share of positions where
    both models' most probable token is the same. ``tokens`` counts the scored predictions. Of a
    text of several kinds ``by_kind`` has perplexity, kl_mean and agreement of each.

    ``log_probabilities`` names the file, in the run's folder, that has those of the scored tokens
    in nats: float32 .npy [chunks, predictions]; empty if none was kept. Those of two files are
    compared token by token where ``tokens_sha256``, which covers all chunks' token ids, is the same
    (see evaluate.paired).
    """

    perplexity: float
    perplexity_error: float
    kl_mean: float
    kl_median: float
    kl_99: float
    agreement: float
    tokens: int
    engine: str
    text_sha256: str
    by_kind: dict[str, dict[str, float]] = field(default_factory=dict)
    kl_error: float | None = None
    difference_error: float | None = None
    tokens_sha256: str = ""
    log_probabilities: str = ""


@dataclass(frozen=True)
class Artifact:
    """One quantized model: a GGUF file (or its shards), or a folder that transformers loads (its
    first file is config.json).

    ``bits_per_weight`` counts all tensor bytes (scales and unquantized tensors too) over all
    parameters. ``notes`` are things the user should know, such as tensors that fell back to another
    type.
    """

    type: str
    files: tuple[Stored, ...]
    bits_per_weight: float
    notes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None = None

    @property
    def bytes(self) -> int:
        """Size on disk of all its files."""
        return sum(stored.bytes for stored in self.files)

    @property
    def name(self) -> str:
        """The file to open: the only one, or the first shard."""
        return self.files[0].name

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder that transformers (or its own library) loads, and not a file."""
        return Path(self.name).name == "config.json"

    def path_in(self, folder: Path) -> Path:
        """What to open, in the run's folder: the file, or the folder that has its files."""
        return (folder / self.name).parent if self.is_folder else folder / self.name

    def paths_in(self, folder: Path) -> list[Path]:
        """The folder that has its files, or the file, or all its shards."""
        return [self.path_in(folder)] if self.is_folder else [folder / f.name for f in self.files]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form for the journal."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Artifact:
        """The inverse of :meth:`to_json`."""
        return cls(
            **{
                **data,
                "files": tuple(Stored(**f) for f in data["files"]),
                "notes": tuple(data["notes"]),
                "checks": tuple(Check(**c) for c in data["checks"]),
                "evaluation": Evaluation(**data["evaluation"]) if data["evaluation"] else None,
            }
        )


@dataclass(frozen=True)
class Receipt:
    """An upload that was compared with the server: every file's size and hash at ``commit`` is
    ours.
    """

    repo: str
    branch: str
    url: str
    commit: str
    files: tuple[Stored, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form for the journal."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Receipt:
        """The inverse of :meth:`to_json`."""
        return cls(**{**data, "files": tuple(Stored(**f) for f in data["files"])})


@dataclass(frozen=True)
class Source:
    """A model before anything heavy is read: all of this comes from config, headers and the card.

    ``revision`` is the Hub commit, or None for a folder. ``dtype`` is the type most weights have
    (F32, F16, BF16 …). ``bytes`` are the weight files' bytes. ``folder`` is what libraries read;
    ``given`` the folder that was named, where ours stands for it (see source.tidy). ``remote``
    means the weights are still on the Hub: ``folder`` then has the small files and, for each weight
    file, its header followed by a hole.

    Of a source that is quantized, ``stored_as`` says how and ``stored_in`` is the folder with its
    files, while ``folder`` is its 16-bit form: until it is made, headers and holes (see
    source.unquantized). Of a LoRA adapter ``adapter`` is its folder and ``adapted`` the model that
    it changes; ``folder`` is the merged model, headers and holes at first (see source.adapter).

    A source that is a GGUF file has its name (the first shard's) in ``gguf``, its type (Q8_0) in
    ``dtype``, and in ``tag`` what it was asked for by, where a repository has several; ``mmproj``
    is the file of what it sees or hears with.
    """

    id: str
    folder: Path
    revision: str | None
    architecture: str
    parameters: int
    largest_tensor: int
    dtype: str
    bytes: int
    weights: tuple[str, ...]
    pickle: bool
    license: str | None
    language: tuple[str, ...]
    base_model: str | None
    chat_template: bool
    vocab_size: int
    context: int
    quantized: str | None
    license_name: str | None = None
    license_link: str | None = None
    gated: bool = False
    private: bool = False
    remote: bool = False
    given: Path | None = None
    stored_as: str = ""
    stored_in: Path | None = None
    adapter: Path | None = None
    adapted: Source | None = None
    gguf: str = ""
    tag: str = ""
    mmproj: str = ""

    @property
    def at_hand(self) -> bool:
        """Whether its files lie where they lay."""
        return (self.folder / self.gguf).exists()

    @property
    def where(self) -> str:
        """What to resolve again to have this very source from the Hub."""
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.id}@{self.revision}{tag}"

    @property
    def name(self) -> str:
        """The model's own name, without its owner, in letters that every system and command takes
        in a file name: accents are dropped, other scripts left out.
        """
        named = self.id.rsplit("/", 1)[-1]
        if self.gguf:
            named = re.sub(r"[-_.]GGUF$", "", named, flags=re.IGNORECASE)
        return plain(named)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form for the journal."""
        places = {
            name: str(value) if (value := getattr(self, name)) else None
            for name in ("folder", *PLACES)
        }
        base = self.adapted.to_json() if self.adapted else None
        return {**dataclasses.asdict(self), **places, "adapted": base}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Source:
        """The inverse of :meth:`to_json`."""
        return cls(
            **{
                **data,
                "folder": Path(data["folder"]),
                **{name: Path(data[name]) if data.get(name) else None for name in PLACES},
                "adapted": cls.from_json(data["adapted"]) if data.get("adapted") else None,
                "weights": tuple(data["weights"]),
                "language": tuple(data["language"]),
            }
        )


@dataclass(frozen=True)
class Snapshot:
    """A Source with its files at hand and hashed. ``sha256`` covers the names and contents of all
    of them. ``unmade``: of one that is quantized, or an adapter's, the folder has headers and
    holes; its tensors are made as they are read.
    """

    source: Source
    folder: Path
    sha256: str
    files: dict[str, str]
    unmade: bool = False


@dataclass(frozen=True)
class RunRecord:
    """What a run made, as its journal keeps it.

    ``extras`` are files that belong to it beside the artifacts: card, plot, importance matrix,
    licence. ``receipts`` are its uploads.
    """

    folder: Path
    method: str
    source: Source
    artifacts: tuple[Artifact, ...]
    reference: Evaluation | None
    seconds: float
    provenance: dict[str, Any]
    extras: tuple[str, ...] = ()
    base_model: str = ""
    receipts: tuple[Receipt, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form for the journal; the folder and the receipts are left out: the journal
        has them.
        """
        return {
            "method": self.method,
            "source": self.source.to_json(),
            "artifacts": [a.to_json() for a in self.artifacts],
            "reference": dataclasses.asdict(self.reference) if self.reference else None,
            "seconds": self.seconds,
            "provenance": self.provenance,
            "extras": list(self.extras),
            "base_model": self.base_model,
        }

    @classmethod
    def from_json(
        cls, folder: Path, data: dict[str, Any], receipts: tuple[Receipt, ...] = ()
    ) -> Self:
        """The inverse of :meth:`to_json`."""
        return cls(
            **{
                **data,
                "source": Source.from_json(data["source"]),
                "artifacts": tuple(Artifact.from_json(a) for a in data["artifacts"]),
                "reference": Evaluation(**data["reference"]) if data["reference"] else None,
                "extras": tuple(data["extras"]),
            },
            folder=folder,
            receipts=receipts,
        )

    @property
    def offered(self) -> tuple[Artifact, ...]:
        """The artifacts that were asked for, without those that they are compared with."""
        return tuple(one for one in self.artifacts if COMPARED not in one.facts)

    @property
    def adapter_alone(self) -> bool:
        """Whether it is a LoRA adapter that is loaded beside its model."""
        return any(artifact.facts.get("adapter") for artifact in self.artifacts)

    @property
    def sees(self) -> bool:
        """Whether it has the parts of its source that see or hear."""
        return not str(self.provenance.get(TOWERS, "left out")).startswith("left out")

    @property
    def experts(self) -> bool:
        """Whether it is a folder of a mixture of experts, which transformers does not load."""
        notes = (note for artifact in self.artifacts for note in artifact.notes)
        return any(note.startswith(EXPERTS) for note in notes)

    @property
    def tokenizer(self) -> str:
        """A hash of the source's tokenizer; empty if its folder is gone. Perplexities compare only
        between models that have the same.
        """
        path = self.source.folder / "tokenizer.json"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
