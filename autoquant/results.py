"""The frozen values that a run hands from one step to the next, and the Result it ends with."""

from __future__ import annotations

import base64
import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoquant.look import Look
    from autoquant.source import Source


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


@dataclass(frozen=True)
class Evaluation:
    """Quality of one artifact, on the same tokens as every other row of its table.

    ``perplexity_error`` is one standard error of the perplexity. KL divergence is KL(unquantized ‖
    quantized) in nats a token. ``agreement`` is the share of positions where both models' most
    probable token is the same. ``tokens`` counts the scored predictions.
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

    def path_in(self, folder: Path) -> Path:
        """What to open, in the run's folder: the file, or the folder that has its files."""
        first = folder / self.name
        return first.parent if first.name == "config.json" else first

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


@dataclass(frozen=True, repr=False)
class Result:
    """What a run made. Prints as a table; in a notebook it shows the table with the plot.

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
        from autoquant import source

        return {
            "method": self.method,
            "source": source.to_json(self.source),
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
    ) -> Result:
        """The inverse of :meth:`to_json`."""
        from autoquant import source

        return cls(
            **{
                **data,
                "source": source.from_json(data["source"]),
                "artifacts": tuple(Artifact.from_json(a) for a in data["artifacts"]),
                "reference": Evaluation(**data["reference"]) if data["reference"] else None,
                "extras": tuple(data["extras"]),
            },
            folder=folder,
            receipts=receipts,
        )

    def __str__(self) -> str:
        from autoquant import report

        return report.terminal(self)

    __repr__ = __str__  # what a Python prompt shows

    def _repr_html_(self) -> str:
        from autoquant import report

        return report.html(self)

    def path(self, type: str) -> Path:
        """The file of one type (its first shard if it is split), or its folder."""
        for artifact in self.artifacts:
            if artifact.type == type:
                return artifact.path_in(self.folder)
        from autoquant.core.errors import InputError

        raise InputError(
            f"this run has no {type!r}; it has: {', '.join(a.type for a in self.artifacts)}"
        )

    def evaluate(self, *, text: str = "builtin", chunks: int = 20) -> Result:
        """Measure every artifact again, on another text or more of it; rewrites card and plot and
        returns a new Result.
        """
        from autoquant import run

        return run.evaluate_result(self, text=text, chunks=chunks)

    def upload(
        self,
        repo: str,
        *,
        private: bool | str | None = None,
        layout: str = "",
        overwrite: bool = False,
        base_model: str = "",
        dry_run: bool = False,
    ) -> Any:
        """Upload the artifacts with card, plot and licence, and compare the server's sizes and
        hashes with ours.

        repo: owner/name; it is created if there is none. private: of a repository that is created,
            True or "yes", False or "no"; default: if the source is private or gated.
        layout: "one-repo", "repo-per-type" (owner/name-TYPE) or "branch-per-type"; default: what is
            usual for the method.
        overwrite: replace files of the same name that this folder has not put there.
        base_model: owner/name of the unquantized model, of a folder. dry_run: send nothing, return
            an UploadPlan that prints exactly what would be sent.

        Returns the Receipts, which are also kept in the journal. Repeated after an interrupt it
        sends only what has not arrived. Raises InputError (no token, no right, something else is
        there), HubFailed (the Hub cannot be reached), CheckFailed (a file is not what was checked).
        """
        from autoquant import run

        visible = (
            {None: "auto", True: "yes", False: "no"}.get(private, private)
            if private is None or isinstance(private, bool)
            else private
        )
        given = {
            "upload": repo,
            "private": visible,
            "overwrite": overwrite,
            "base_model": base_model or self.base_model,
            **({"layout": layout} if layout else {}),
        }
        return run.upload_folder(self.folder, given, dry_run=dry_run)

    def card(self) -> Card:
        """The model card's text (README.md of the run folder); in a notebook it shows itself
        rendered.
        """
        return Card((self.folder / "README.md").read_text(encoding="utf-8")).beside(self.folder)

    def checks(self) -> Checks:
        """What was looked at on each file, and what was seen; prints as a table."""
        return Checks(self)

    def look(self, type: str = "", layer: str = "") -> Look:
        """Look inside one quantized layer: its weights before and after, the error, one group of
        weights code by code. In a notebook it shows itself as pictures.

        type: one of the run's types; default the first. layer: a layer's name in the unquantized
        model, e.g. model.layers.3.mlp.up_proj; default one in the middle. Raises InputError for a
        layer that there is not, or that the format stores in another order.
        """
        from autoquant import look

        return look.look(self, type, layer)

    @property
    def tokenizer(self) -> str:
        """A hash of the source's tokenizer; empty if its folder is gone. Perplexities compare only
        between models that have the same.
        """
        import hashlib

        path = self.source.folder / "tokenizer.json"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


class Card(str):
    """A model card's text."""

    folder: Path | None = None

    def beside(self, folder: Path) -> Card:
        """The same card, which knows the folder where its picture lies."""
        self.folder = folder
        return self

    def _repr_markdown_(self) -> str:
        # the metadata is for the Hub
        shown = str(self).split("\n---\n", 1)[-1] if self.startswith("---\n") else str(self)

        def inside(found: re.Match[str]) -> str:  # a notebook looks for pictures beside itself
            picture = self.folder / found[1] if self.folder is not None else None
            return (
                f"](data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()})"
                if picture is not None and picture.is_file()
                else found[0]
            )

        return re.sub(r"\]\((?:\./)?([\w-]+\.png)\)", inside, shown)


@dataclass(frozen=True, repr=False)
class Checks:
    """A result's checks, to be shown."""

    result: Result

    def __str__(self) -> str:
        from autoquant import report

        return report.checks(self.result)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from autoquant import report

        return report.checks_html(self.result)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Several results by name: of calibration sets, methods, bit widths or models. Prints as one
    table; in a notebook it shows itself with one plot.

    ``label`` is what the names are.
    """

    results: dict[str, Result]
    label: str = "run"

    def __getitem__(self, name: str) -> Result:
        return self.results[name]

    def __str__(self) -> str:
        from autoquant import report

        return report.comparison(self)

    __repr__ = __str__  # what a Python prompt shows

    def _repr_html_(self) -> str:
        from autoquant import report

        return report.comparison_html(self)
