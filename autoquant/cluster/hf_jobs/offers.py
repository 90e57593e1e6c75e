"""What a batch would start at Hugging Face, and what that would cost at most: shown and asked about
before anything is.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from autoquant.cluster import keeping
from autoquant.cluster.board import Board, saved
from autoquant.cluster.hf_jobs import duration, flavors, hardware, lines, shipping
from autoquant.cluster.hf_jobs.submit import (
    ALIVE,
    Account,
    Note,
    account,
    alive,
    look,
    noted,
    stage_of,
)
from autoquant.cluster.jobs import Batch, Job
from autoquant.cluster.planning import BatchPlan, Planned, plan
from autoquant.cluster.work import DONE
from autoquant.core import bundled
from autoquant.core.errors import InputError
from autoquant.display import html, tables

HEAD = ("job", "machine", "CPUs", "memory", "disk", "GPU", "$/hour", "about", "timeout", "at most")
NAMES = ("upload", "base_model")  # options that are names, even where a folder is called the same


@dataclass(frozen=True)
class Settings:
    """How jobs are started: on which ``flavor`` ("": chosen), with which ``timeout`` ("": by the
    plan) and ``image`` ("": the usual one). ``again`` is what to type to go on.
    """

    flavor: str = ""
    timeout: str | int | float = ""
    image: str = ""
    again: str = "call autoquant.batch again, with the same jobs"


@dataclass(frozen=True)
class Offer:
    """A job that would be started: on what, and with which timeout in seconds."""

    planned: Planned
    choice: flavors.Choice
    timeout: int

    @property
    def most(self) -> float:
        """Dollars that it costs if it takes all of its time; whole minutes are billed."""
        return -(-self.timeout // 60) * self.choice.flavor.minute


@dataclass(frozen=True, repr=False)
class Offers:
    """All of a batch: its plans, what would be started, and what runs already. Prints as tables."""

    plan: BatchPlan
    offered: tuple[Offer, ...]
    attached: dict[str, Note]
    source: str
    settings: Settings
    account: Account = field(compare=False)

    @property
    def most(self) -> float:
        """Dollars that all of what would be started costs at most."""
        return sum(one.most for one in self.offered)

    def __str__(self) -> str:
        said = "\n".join(
            textwrap.fill(line, 110, subsequent_indent="    ") for line in self._below()
        )
        attached = [one for one in self.plan.planned if one.job.name in self.attached]
        planned = f"{self.plan}\n\n" if len(attached) < len(self.plan.planned) else ""
        table = tables.table(HEAD, self._body(), left=2) + "\n\n" if self.offered else ""
        return planned + table + said

    __repr__ = __str__

    def _repr_html_(self) -> str:
        below = "".join(f"<div>{escape(line)}</div>" for line in self._below())
        table = html.table(HEAD, self._body(), left=2) if self.offered else ""
        return f"<div>{self.plan._repr_html_()}{table}{below}</div>"

    def _body(self) -> list[tuple[str, ...]]:
        rows = list[tuple[str, ...]]()
        for one in self.offered:
            machine = one.choice.flavor
            cards = f"{machine.gpus} × {machine.gpu}" if machine.gpus > 1 else machine.gpu
            rows.append(
                (
                    one.planned.job.name,
                    machine.name,
                    str(machine.cpus),
                    f"{machine.memory // hardware.GB} GB",
                    f"{machine.disk // hardware.GB} GB",
                    cards or "–",
                    f"{machine.hour:.2f}",
                    tables.minutes(one.choice.seconds),
                    tables.minutes(one.timeout),
                    f"${one.most:.2f}",
                )
            )
        return rows

    def _below(self) -> Iterator[str]:
        for name, note in self.attached.items():
            yield f"{name} runs already: job {note.id} on {note.flavor}; it is followed from here"
        if not self.offered:
            yield "nothing is to be started at Hugging Face"
            return
        for one in self.offered:
            if one.choice.why and not self.settings.flavor:
                yield f"{one.planned.job.name}: {one.choice.flavor.name}, {one.choice.why}"
        yield (
            f"${self.most:.2f} at most for {len(self.offered)} jobs, if each takes all of its"
            f" timeout; only minutes that a job runs are billed. Prices and machines: {self.source}"
        )
        if not self.settings.timeout:
            yield (
                f"timeout: {duration.MARGIN:g} times the planned time, which has"
                f" {duration.INSTALL // 60} minutes for starting and installing, and at least"
                f" {duration.LEAST // 60} minutes. A job that reaches it keeps its finished steps"
            )
        if any(one.choice.flavor.gpus for one in self.offered):
            yield (
                f"times on a GPU are not measured: it is taken to be {duration.GPU_SPEED:g} times"
                " as fast as two cores"
            )


def offers(batch: Batch, settings: Settings) -> Offers:
    """Plan a batch for Hugging Face Jobs. What has ended there is fetched first, what runs is found
    again; nothing is started. Raises InputError (no token, an unknown machine or timeout).
    """
    timeout = duration.given(settings.timeout) if settings.timeout != "" else 0
    who = account()
    machines, source = hardware.listed(who.client)
    if settings.flavor and hardware.named(settings.flavor, machines) is None:
        raise InputError(
            f"flavor: there is no {settings.flavor!r}; there are:"
            f" {', '.join(one.name for one in machines)}"
        )
    attached = caught_up(batch, who)
    rest = tuple(job for job in batch.jobs if job.name not in attached)
    planned = {one.job.name: one for one in plan(Batch(batch.folder, rest), here=False).planned}
    found = []
    for one in tuple(planned.values()):
        if one.plan is None or one.wrong or one.done:
            continue
        try:
            refuse_what_stays_here(one)
            out = batch.folder_of(one.job)
            choice = flavors.choose(one.plan, one.job.options, out, machines, settings.flavor)
        except InputError as error:
            planned[one.job.name] = dataclasses.replace(one, wrong=str(error))
            continue
        found.append(Offer(one, choice, timeout or duration.timeout(choice.seconds)))
    all_of_it = tuple(planned.get(job.name, Planned(job)) for job in batch.jobs)
    return Offers(
        BatchPlan(batch, all_of_it, here=False), tuple(found), attached, source, settings, who
    )


def refuse_what_stays_here(one: Planned) -> None:
    """Refuse a job that another machine could not do: its result would be gone with that machine,
    or it needs a file of this one. Raises InputError.
    """
    job, source = one.job, one.plan.source if one.plan else None
    if not job.options.upload:
        raise InputError(
            "upload: a Hugging Face Job's machine is gone when it ends, so its files must be"
            f" uploaded; name a repository, e.g. --upload you/{job.name} (in a batch file: upload ="
            ' "you/{model}-{METHOD}")'
        )
    if source is not None and source.revision is None and job.model not in bundled.MODELS:
        raise InputError(
            f"{job.model} is on this machine, and a Hugging Face Job cannot see it: upload it"
            " first (hf upload-large-folder you/NAME FOLDER), and name that repository"
        )
    for name, value in job.values.items():
        if name not in NAMES and isinstance(value, str) and _is_here(value):
            raise InputError(
                f"{name}: {value} is a file or folder of this machine, and a Hugging Face Job"
                " cannot see it; take what the Hub or the package has"
            )


def _is_here(value: str) -> bool:
    try:
        return bool(value) and Path(value).expanduser().exists()
    except (OSError, RuntimeError):  # too long for a name, or no home folder
        return False


def caught_up(batch: Batch, who: Account) -> dict[str, Note]:
    """Those jobs of a batch that run now. Of those that have ended since, what they left is
    fetched: of a finished one journal and card, of another one the journal, so that a plan knows
    what has been uploaded.
    """
    before, notes = saved(batch.folder), noted(batch)
    running = {one.key: one for one in alive(who)}
    attached: dict[str, Note] = {}
    for job in batch.jobs:
        known = notes.get(job.name)
        if job.key in running:
            attached[job.name] = known or running[job.key]
        elif known and not _known_as_done(before.get(job.name, {}), job):
            info = look(who, known.id, known.user)
            if info is None or stage_of(info) not in ALIVE:
                _fetch(batch, job, known, who)
    return attached


def _known_as_done(before: dict[str, object], job: Job) -> bool:
    return before.get("key") == job.key and before.get("state") == DONE


def _fetch(batch: Batch, job: Job, known: Note, who: Account) -> None:
    folder, repo = batch.folder_of(job), f"{known.user}/{shipping.REPOSITORY}"
    ended = keeping.collect(who.client, repo, job.key, folder, known.attempt)
    if ended is not None and ended["state"] == DONE:
        Board(batch).end(job.name, lines.of(ended))
        return
    if not (folder / keeping.JOURNAL).is_file():
        kept_in = keeping.unfinished(known.user, job.key)
        keeping.restore(who.client, kept_in, folder, journal_only=True)


def confirm(found: Offers, yes: bool, ask: Callable[[str], str] | None = None) -> None:
    """Ask before money is spent. Raises InputError where it is not agreed to, or nobody can be
    asked.
    """
    if yes or not found.offered:
        return
    cost = f"{len(found.offered)} jobs, ${found.most:.2f} at most"
    if ask is None:
        raise InputError(
            f"on: this starts {cost}, at Hugging Face; nothing was started. Agree with yes=True"
            " (--yes)"
        )
    if ask(f"Start {cost}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise InputError("nothing was started")
