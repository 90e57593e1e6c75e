"""What every job of a batch would make and need, before one is run."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path

from autoquant import result
from autoquant.cluster import board
from autoquant.cluster.jobs import Batch, Job
from autoquant.cluster.work import DONE, described
from autoquant.core import journal
from autoquant.core.errors import AutoQuantError, InputError
from autoquant.core.files import free_bytes
from autoquant.core.machine import cores
from autoquant.core.redact import redact
from autoquant.display import html, tables
from autoquant.methods import METHODS
from autoquant.runtime import preload

HEAD = ("job", "method", "types", "size", "download", "disk", "memory", "time", "fits")


@dataclass(frozen=True)
class Planned:
    """A job's plan, or why it cannot be run; ``done`` says what it made before, if nothing is left
    to do.
    """

    job: Job
    plan: result.Plan | None = None
    wrong: str = ""
    done: str = ""

    @property
    def seconds(self) -> float:
        """How long it would take here, as far as that is known."""
        return sum(self.plan.seconds.values()) if self.plan else 0.0


@dataclass(frozen=True, repr=False)
class BatchPlan:
    """All plans of a batch. Prints as a table, in a notebook too."""

    batch: Batch
    planned: tuple[Planned, ...]
    here: bool = True

    @property
    def ready(self) -> list[Planned]:
        """The jobs that can be run and are not done."""
        return [one for one in self.planned if not one.wrong and not one.done]

    def __str__(self) -> str:
        said = "\n".join(
            textwrap.fill(line, 110, subsequent_indent="    ") for line in self._below()
        )
        return f"{tables.table(*self._table(), left=3)}\n\n{said}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        below = "".join(f"<div>{escape(line)}</div>" for line in self._below())
        return f"<div>{html.table(*self._table(), left=3)}{below}</div>"

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Head and rows, without columns that say nothing."""
        body = [self._row(one) for one in self.planned]
        kept = [i for i in range(len(HEAD)) if i < 3 or any(row[i] != "–" for row in body)]
        return tuple(HEAD[i] for i in kept), [tuple(row[i] for i in kept) for row in body]

    def _row(self, one: Planned) -> tuple[str, ...]:
        plan, marks = one.plan, [wrong.job.name for wrong in self.planned if wrong.wrong]
        state = "done" if one.done else f"no [{marks.index(one.job.name) + 1}]" if one.wrong else ""
        if plan is None:
            return (one.job.name, one.job.method, *("–",) * 6, state)
        items = [item for item in plan.items if not item.impossible]
        return (
            one.job.name,
            one.job.method,
            ", ".join(item.type for item in items[:3]) + (" …" if len(items) > 3 else ""),
            tables.size(sum(item.bytes for item in items)),
            tables.size(plan.download) if plan.download else "–",
            tables.size(plan.disk_needed),
            tables.size(plan.memory_needed),
            tables.minutes(one.seconds) if one.seconds else "–",
            state or ("yes" if self.here or not plan.refused else "not here"),
        )

    def _below(self) -> Iterator[str]:
        for number, one in enumerate((one for one in self.planned if one.wrong), 1):
            yield f"[{number}] {one.job.name}: {one.wrong}"
        plans = [one.plan for one in self.ready if one.plan]
        if not plans:
            done = sum(bool(one.done) for one in self.planned)
            yield f"nothing is left to do: {done} of {len(self.planned)} jobs are done"
            return
        seconds = sum(one.seconds for one in self.ready)
        kept, free = self.kept, free_bytes(self.batch.folder)
        time = f", about {tables.minutes(seconds)} one after the other"
        time += ", and some seconds each to start"
        yield (
            f"{len(plans)} of {len(self.planned)} jobs to run{time if seconds else ''}; what they"
            f" make: {tables.size(kept)} (free: {tables.size(free)})"
        )
        if self.here and kept > free:
            yield (
                "NOT all of it fits on the disk: the last jobs will be refused. Let them upload and"
                " delete (upload, delete_uploaded), ask for fewer or smaller types, or name an out"
                " on a larger disk"
            )

    @property
    def kept(self) -> int:
        """Bytes that the jobs leave on the disk: their files, and each model that is downloaded
        once.
        """
        plans = [one.plan for one in self.ready if one.plan]
        downloads = {plan.source.id: plan.download for plan in plans}
        made = sum(i.bytes for plan in plans for i in plan.items if not i.impossible)
        return made + sum(downloads.values())


@preload.kept()
def plan(batch: Batch, *, here: bool = True) -> BatchPlan:
    """Plan all jobs, some at a time. ``here``: they run on this machine, so what does not fit here
    is wrong with them. Downloads and writes nothing. What is wrong with a job stands in its plan;
    raises InputError for a folder that no batch can be written into.
    """
    _check_folder(batch.folder)
    before = board.saved(batch.folder)

    def one(job: Job) -> Planned:
        if (done := _done(batch, job, before.get(job.name, {}).get("key", ""))) is not None:
            return Planned(job, done=done)
        try:
            planned = result.plan(
                METHODS[job.method], job.model, out=batch.folder_of(job), values=job.options
            )
            journal.check_place(batch.folder_of(job), job.method, planned.source.id)
            _check_upload(batch, job, planned)
        except AutoQuantError as error:
            return Planned(job, wrong=str(error))
        except OSError as error:
            return Planned(job, wrong=redact(str(error)))
        good, said = planned.verdict
        return Planned(job, planned, wrong="" if good or not here else said)

    with ThreadPoolExecutor(cores()) as threads:
        return BatchPlan(batch, tuple(threads.map(one, batch.jobs)), here)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; name a folder")
    if (folder / journal.OURS).is_dir():
        raise InputError(
            f"out: {folder} is the folder of a run; name a folder of its own for a batch"
        )


def _check_upload(batch: Batch, job: Job, planned: result.Plan) -> None:
    """Test that an upload will be allowed."""
    if job.options.upload:
        from autoquant.publish import allowed

        method, steps = METHODS[job.method], journal.read(batch.folder_of(job))[1]
        options = method.resolve_defaults(planned.source, job.options)
        types = method.uploaded(options)
        allowed.check(options, planned.source, types, list(steps), quiet=True)


def _done(batch: Batch, job: Job, key: str) -> str | None:
    """What a job made, if it is done, its files are as they were left, and they are where they are
    to be; else None.
    """
    folder = batch.folder_of(job)
    if key != job.key or not folder.is_dir():
        return None
    with contextlib.suppress(InputError):
        made = result.load(folder)
        deleted = {one.type for one in made.artifacts if one.facts.get("deleted")}
        sizes = all(
            (path := folder / stored.name).is_file() and path.stat().st_size == stored.bytes
            for one in made.artifacts
            if one.type not in deleted
            for stored in one.files
        )
        if sizes and (made.receipts or not job.options.upload):
            return described(made) or DONE
    return None
