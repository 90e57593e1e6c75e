"""What users hold: a Result, a Plan, which show themselves, and the functions that return them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant import answering, pipeline
from autoquant import look as looking
from autoquant.core import plans
from autoquant.core.errors import InputError
from autoquant.core.options import MethodOptions
from autoquant.core.records import UNQUANTIZED, Artifact, RunRecord
from autoquant.display import gains, html, tables
from autoquant.display.shown import Card, Checks
from autoquant.evaluate import paired
from autoquant.methods import METHODS
from autoquant.methods.base import AnyMethod
from autoquant.publish import finished
from autoquant.runtime import preload
from autoquant.sizing import advice, devices
from autoquant.sizing.sensitivities import Sensitivities
from autoquant.source import resolve


@dataclass(frozen=True, repr=False)
class Result(RunRecord):
    """What a run made. Prints as a table; in a notebook it shows the table with the plot.

    ``extras`` are files that belong to it beside the artifacts: card, plot, importance matrix,
    licence. ``receipts`` are its uploads.
    """

    def __str__(self) -> str:
        return tables.result(self, METHODS[self.method].title)

    __repr__ = __str__  # what a Python prompt shows

    def _repr_html_(self) -> str:
        return html.result(self, METHODS[self.method].title)

    @classmethod
    def of(cls, record: RunRecord) -> Result:
        """A run's record as a Result."""
        return cls(**{one.name: getattr(record, one.name) for one in dataclasses.fields(record)})

    def artifact(self, type: str = "") -> Artifact:
        """The artifact of one type; the first if none is named. Raises InputError."""
        for artifact in self.artifacts:
            if type in ("", artifact.type):
                return artifact
        raise InputError(
            f"this run has no {type!r}; it has: {', '.join(a.type for a in self.artifacts)}"
        )

    def path(self, type: str) -> Path:
        """The file of one type (its first shard if it is split), or its folder. Raises InputError
        for one that was deleted when it was uploaded.
        """
        artifact = self.artifact(type)
        if repo := artifact.facts.get("deleted"):
            raise InputError(
                f"{type} was deleted here as it was uploaded (delete_uploaded): download it from"
                f" {repo}"
            )
        return artifact.path_in(self.folder)

    def evaluate(
        self, *, text: str = "builtin", chunks: int = 20, by_weights: bool | None = None
    ) -> Result:
        """Measure every artifact again, on another text or more of it; rewrites card and plot and
        returns a new Result.

        by_weights: of GGUF files: True has transformers run their weights, as it does those of
            folders, so that both can be compared; False leaves small models to llama.cpp (see
            eval_by_weights); default: as they were measured before.
        """
        return Result.of(
            pipeline.evaluate_run(self, text=text, chunks=chunks, by_weights=by_weights)
        )

    def difference(
        self, type: str, other: str = UNQUANTIZED, of: Result | None = None
    ) -> paired.Difference:
        """How much better one file predicts the tokens that both were measured on than another,
        with the error of that difference: perplexities whose errors overlap may differ all the
        same.

        type, other: types of this run; "unquantized" is the model that its files are made of. of:
        the run that has ``other``, if it is another one. Raises InputError for files that were not
        measured on the same tokens, and for those whose log-probabilities are gone.
        """
        theirs = of if of is not None else self
        names = [type, other]
        if of is not None:
            runs = (self, of)
            names = [f"{run.source.name} {what}" for run, what in zip(runs, names, strict=True)]
            if names[0] == names[1]:
                names = [f"{run.folder.name} {type}" for run in runs]
        return paired.difference(self._scored(type, names[0]), theirs._scored(other, names[1]))

    def _scored(self, type: str, name: str) -> paired.Scored:
        unquantized = type == UNQUANTIZED
        own = self.reference if unquantized else self.artifact(type).evaluation
        return paired.Scored(name, own, self.folder, unquantized)

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
        overwrite: replace files of the same name that were not uploaded from this folder.
        base_model: owner/name of the unquantized model, of a folder. dry_run: send nothing, return
            an UploadPlan that prints exactly what would be sent.

        Returns the Receipts, which are also kept in the journal. Repeated after an interrupt it
        sends only what has not arrived. Raises InputError (no token, no permission, files from
        elsewhere), HubFailed (the Hub cannot be reached), CheckFailed (a file is not what was
        checked).
        """
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
        return finished.upload_folder(self.folder, given, dry_run=dry_run)

    def card(self) -> Card:
        """The model card's text (README.md of the run folder); in a notebook it shows itself
        rendered.
        """
        return Card((self.folder / "README.md").read_text(encoding="utf-8")).beside(self.folder)

    def checks(self) -> Checks:
        """What was looked at on each file, and what was seen; prints as a table."""
        return Checks({self.source.id: self})

    def by_kind(self) -> str:
        """A table of what each file loses on each kind of text (prose, other languages, code,
        conversations); empty if it was measured on one.
        """
        head, body = tables.by_kind(self)
        return tables.table(head, body) if body else ""

    def recipe(self) -> str:
        """A table of how many tensors of each kind have which type, in files of a size (``size=``,
        ``bpw=``); empty if types were asked for.
        """
        head, body = gains.recipes(self)
        return tables.table(head, body, left=len(head)) if body else ""

    def look(self, type: str = "", layer: str = "") -> looking.Look:
        """Look inside one quantized layer: its weights before and after, the error, one group of
        weights code by code. In a notebook it shows itself as pictures.

        type: one of the run's types; default the first. layer: a layer's name in the unquantized
        model, e.g. model.layers.3.mlp.up_proj; default one in the middle. Raises InputError for a
        layer that does not exist, or that the format stores in another order.
        """
        return looking.look(self, self.artifact(type), layer)

    def answer(
        self, prompt: str = answering.PROMPT, *, type: str = "", tokens: int = answering.TOKENS
    ) -> answering.Answers:
        """What the unquantized model and each file say to a prompt, token by token the likeliest,
        so that they can be compared. In a notebook the words appear as they come.

        prompt: put through the model's chat template, if it has one. type: one of the run's types;
        default all. tokens: at most so many each. GGUF files are run by llama.cpp, folders by the
        library that loads them where it is here, else from what AutoQuant's reader reads. What does
        not fit into memory, or was deleted, says so. Raises InputError.
        """
        chosen = [self.artifact(type)] if type else self.artifacts
        return answering.answer([(one.type, self, one) for one in chosen], prompt, tokens)


@dataclass(frozen=True, repr=False)
class Plan(plans.Plan):
    """What a run will need and whether it fits. Prints as a table, in a notebook too."""

    @classmethod
    def of(cls, plan: plans.Plan) -> Plan:
        """A method's plan as one that shows itself."""
        return cls(**{one.name: getattr(plan, one.name) for one in dataclasses.fields(plan)})

    def __str__(self) -> str:
        return tables.plan(self)

    __repr__ = __str__  # what a Python prompt shows

    def _repr_html_(self) -> str:
        return html.plan(self, METHODS[self.method].title)


def quantize(
    method: AnyMethod,
    model: str | Path,
    *,
    out: str | Path | None = None,
    values: Mapping[str, Any] | MethodOptions,
) -> Result:
    """Run a method on a model; see :func:`autoquant.pipeline.quantize`."""
    return Result.of(pipeline.quantize(method, model, out=out, values=values))


def plan(
    method: AnyMethod,
    model: str | Path,
    *,
    out: str | Path | None = None,
    values: Mapping[str, Any] | MethodOptions,
) -> Plan:
    """What a run would make and need; nothing is written."""
    return Plan.of(pipeline.plan(method, model, out=out, values=values))


def sensitivity(
    model: str | Path, *, out: str | Path | None = None, values: Mapping[str, Any]
) -> Sensitivities:
    """How sensitive a model's tensors are; see :func:`autoquant.sensitivity`."""
    return Sensitivities.of(pipeline.sensitivities(model, out=out, values=values))


@preload.kept()
def advise(
    model: str | Path,
    fits: str | None = None,
    context: int | str | None = None,
    kv_type: str = "f16",
    pre_tokenizer: str = "",
) -> advice.Advice:
    """What of a model fits on a device, by its name, or on this machine; see
    :func:`autoquant.advise`.
    """
    device = devices.here() if fits is None else devices.device(fits)
    kind = advice.kv_type_of(kv_type)
    source = resolve(model)
    return advice.advise(source, device, context, kind, pre_tokenizer=pre_tokenizer)


def load(folder: str | Path) -> Result:
    """The result of an earlier run, from its folder's journal. Raises InputError if the folder
    holds no finished run.
    """
    return Result.of(finished.load(folder))
