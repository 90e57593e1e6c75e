"""The files of a run that are asked for by size: sensitivities measured or given, types chosen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoquant.core import gguf_head
from autoquant.core.files import key_of, sha256_of
from autoquant.core.journal import RunFolder
from autoquant.core.records import COMPARED, PREDICTED, Artifact, Snapshot
from autoquant.display.gains import RECIPE
from autoquant.display.tables import size as in_words
from autoquant.fisher.table import FILE, Sensitivities, read
from autoquant.methods.gguf import choosing, imatrix, sensitivity
from autoquant.methods.gguf.choosing import Model
from autoquant.methods.gguf.convert import convert
from autoquant.methods.gguf.imatrix import Imatrix
from autoquant.methods.gguf.options import FISHER, MEASURE, GgufOptions
from autoquant.methods.gguf.sizes import CHOICE
from autoquant.methods.size import Size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """The ``plans`` of the files by type, and the types that they are compared ``against``, each
    with its predicted damage.
    """

    plans: dict[str, dict[str, Any]]
    against: dict[str, float | None]

    @property
    def types(self) -> tuple[str, ...]:
        """All that are made."""
        return tuple(dict.fromkeys((*self.plans, *self.against)))

    def facts(self, name: str) -> dict[str, Any]:
        """What is noted of an artifact of a type."""
        if (plan := self.plans.get(name)) is not None:
            recipe = choosing.recipe(plan)
            return {PREDICTED: plan["nats"], RECIPE: recipe}
        if name not in self.against:
            return {}
        predicted = self.against[name]
        return {COMPARED: True, **({PREDICTED: predicted} if predicted is not None else {})}

    def told(self, artifact: Artifact) -> Artifact:
        """An artifact of the journal, with what it is in this run: in another one of the same
        folder a type may have been asked for that is only compared with in this.
        """
        own = {
            n: one for n, one in artifact.facts.items() if n not in (COMPARED, PREDICTED, RECIPE)
        }
        return replace(artifact, facts={**own, **self.facts(artifact.type)})


@dataclass
class Sized:
    """What the choice of a run depends on: ``key`` is that of the unquantized file, whose type is
    ``whole`` and whose header is left at ``header``.
    """

    snapshot: Snapshot
    options: GgufOptions
    run: RunFolder
    env: Mapping[str, str]
    header: Path
    key: str
    whole: str
    imatrix: Imatrix | None
    _model: Model | None = None

    def known(self) -> Chosen | None:
        """What the journal knows was chosen."""
        facts = self.run.done(CHOICE, self._key())
        return None if facts is None else Chosen(**facts)

    def refuse(self) -> None:
        """Refuse sizes that cannot be reached, before anything is measured. Raises InputError."""
        model = self.model()
        for one in map(Size.parse, self.options.size):
            model.refuse(one, model.bytes(one), model.smallest(self.options))

    def choose(self) -> Chosen:
        """Choose, once there is an importance matrix, and note it. Raises InputError for a size
        that cannot be reached.
        """
        model, sizes = self.model(), [Size.parse(one) for one in self.options.size]
        table = self.table(model)
        plans = [model.chosen(self.options, table, one) for one in sizes]
        made = [plan["bytes"] for plan in plans]
        files: dict[str, dict[str, Any]] = {}
        for plan in plans:
            files.setdefault(plan["type"], plan)
        chosen = Chosen(
            files,
            {
                name: table.predicted(model.stock[name]["tensors"]) if name in model.stock else 0.0
                for name in model.compared(self.options, made)
            },
        )
        for size, plan in zip(sizes, plans, strict=True):
            if plan is not chosen.plans[plan["type"]]:
                log.warning("size %s: nearly the file of another size, %s", size, plan["type"])
            log.info(
                "size %s: %s, %s, predicted KL divergence %.4f",
                size, plan["type"], in_words(plan["bytes"]), plan["nats"],
            )  # fmt: skip
        if any("_exps." in name for name in table.tensors):
            log.warning(
                "a mixture of experts: what is predicted is a lower bound, for that other experts"
                " are asked no gradient tells"
            )
        facts = {"plans": chosen.plans, "against": chosen.against}
        self.run.record(CHOICE, self._key(), [], facts)
        return chosen

    def model(self) -> Model:
        """What sizes are chosen for, by its header alone."""
        if self._model is None:
            plans = convert(
                self.snapshot.source,
                self.options,
                header=self.header,
                logs=self.run.logs,
                types=list(choosing.STOCK),
                outtype=self.whole.lower(),
                room=None,
                need={},
            )["plans"]
            self._model = Model.of(gguf_head.read(self.header), plans, self.whole)
        return self._model

    def gradients(self) -> None:
        """Measure the sensitivities, with the importance matrix that is made of gradients if that
        is asked for.
        """
        facts = self.run.done(sensitivity.STEP, self._measured())
        if facts is None:
            model = self.model()
            kinds = choosing.measured(self.options, model.head, next(iter(model.stock.values())))
            if not self.options.size:  # the importance matrix alone
                kinds = {name: [] for name in kinds}
            facts = sensitivity.measure(
                self.snapshot,
                self.options,
                self.run,
                self._measured(),
                kinds,
                {name: model.head.tensors[name].shape for name in kinds},
                None if self._own() or self.imatrix is None else self.imatrix.path,
                self.env,
            )
        if self._own() and self.imatrix is not None:
            self.imatrix.facts = imatrix.of_gradients(facts)

    def files(self) -> tuple[str, ...]:
        """The table, if it was measured here."""
        measured = self.options.sensitivity == MEASURE
        return (FILE,) if self.options.size and measured else ()

    def in_words(self) -> str:
        """How sensitivities were had, for the card; empty if there are none."""
        if not self.options.size:
            return ""
        if self.options.sensitivity != MEASURE:
            given = self.options.sensitivity
            return f"given: {Path(given).name if Path(given).exists() else given}"
        facts = self.run.steps[sensitivity.STEP]["facts"]
        return (
            f"squared gradients on {facts['chunks']} chunks of {facts['length']} tokens"
            f" ({facts['text']}), with labels drawn from the model"
        )

    def table(self, model: Model) -> Sensitivities:
        """The table that is given, or is measured once there is an importance matrix. Raises
        InputError for one of another model.
        """
        if self.options.sensitivity == MEASURE:
            self.gradients()
            return read(self.run.folder / FILE)
        shapes = {name: one.shape for name, one in model.head.tensors.items()}
        return sensitivity.given(self.options, self.snapshot, shapes)

    def _own(self) -> bool:
        """Whether the importance matrix is of the gradients."""
        return self.options.imatrix == FISHER

    def _measured(self) -> str:
        """What measured sensitivities depend on."""
        other = "" if self._own() or self.imatrix is None else self.imatrix.key
        return sensitivity.key(self.snapshot.source, self.options, self.key, other)

    def _key(self) -> str:
        """What a choice depends on."""
        measured = self.options.sensitivity == MEASURE
        table = self._measured() if measured else sha256_of(sensitivity.given_path(self.options))
        used = self.imatrix.key if self.imatrix is not None else ""
        return key_of(table, used, choosing.asked(self.options), self.key, self.whole)
