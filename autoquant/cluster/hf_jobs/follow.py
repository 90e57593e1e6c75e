"""Running a batch at Hugging Face: starting what is to be started, following all of it on the
board, and fetching what it leaves. The jobs need none of this: they go on without it.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from autoquant.cluster import keeping
from autoquant.cluster.board import Board, log_of
from autoquant.cluster.hf_jobs import lines, shipping
from autoquant.cluster.hf_jobs.offers import Offer, Offers, Settings
from autoquant.cluster.hf_jobs.submit import (
    ALIVE,
    Account,
    Note,
    look,
    note,
    specification,
    stage_of,
    start,
)
from autoquant.cluster.jobs import Job
from autoquant.cluster.planning import Planned
from autoquant.cluster.work import DONE, FAILED, Outcome
from autoquant.core.errors import AutoQuantError, HubFailed, InputError
from autoquant.core.files import write_atomically
from autoquant.core.redact import redact
from autoquant.hub.client import transport_error

log = logging.getLogger(__name__)
AT_ONCE = 16  # jobs whose logs are streamed at a time; all of them run
AGAIN = 5.0  # seconds before a stream that broke is asked for again
LATEST = (
    60  # seconds before the end of its timeout, from which on a job is taken to have reached it
)


def runner(
    found: Offers, say: Callable[[str], object] = log.warning
) -> Callable[[Sequence[Planned], Board], None]:
    """What runs a batch whose offers were agreed to (a Runner of cluster.run). ``say`` takes what
    somebody should know who ends this while jobs run.
    """
    return functools.partial(_run, found, say)


def _run(
    found: Offers, say: Callable[[str], object], ready: Sequence[Planned], board: Board
) -> None:
    offers = {one.planned.job.name: one for one in found.offered}
    running: dict[str, Note] = dict(found.attached)
    jobs = {one.job.name: one.job for one in ready}
    due: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name, started in found.attached.items():
        note(board.batch.folder, name, started)
        due.put(name)
    try:
        threads = [
            threading.Thread(
                target=_follow_all,
                args=(found, board, jobs, running, due),
                daemon=True,  # an interrupt does not wait for streams
                name=f"autoquant-follow-{i}",
            )
            for i in range(min(AT_ONCE, len(jobs)))
        ]
        for thread in threads[: len(running)]:
            thread.start()
        _start_all(found, offers, board, running, due)
        for thread in threads:
            if thread.ident is None:
                thread.start()
            due.put("")
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(0.2)
    except BaseException:
        _leave(found.settings, board, running, say)
        raise


def _start_all(
    found: Offers,
    offers: dict[str, Offer],
    board: Board,
    running: dict[str, Note],
    due: queue.SimpleQueue[str],
) -> None:
    """Start what was agreed to, one after the other. Where the first is refused, so is the batch;
    where a later one is, those before go on.
    """
    if not offers:
        return
    who = found.account
    try:
        repo = shipping.repository(who.client, who.user)
        wheel = shipping.wheel()
        shipping.send(who.client, repo, wheel)
        for name, offer in offers.items():
            job, plan = offer.planned.job, offer.planned.plan
            assert plan is not None
            model = plan.source.where if plan.source.revision else job.model
            machine = offer.choice.flavor
            spec = specification(job, model, machine, who.user, repo, wheel, who.client.endpoint)
            started = start(who, job, spec, machine, offer.timeout, found.settings.image)
            running[name] = started
            note(board.batch.folder, name, started)
            board.wait(name, f"started at Hugging Face: job {started.id} on {started.flavor}")
            due.put(name)
    except (InputError, HubFailed) as error:
        if not running:
            raise
        for name in offers:
            if name not in running:
                board.end(name, Outcome(FAILED, str(error)))


def _leave(
    settings: Settings, board: Board, running: dict[str, Note], say: Callable[[str], object]
) -> None:
    """Say of jobs that are not followed any more that they go on."""
    left = {
        name: one for name, one in running.items() if board.row(name).state not in (DONE, FAILED)
    }
    for name, one in left.items():
        board.wait(name, f"goes on at Hugging Face: job {one.id}")
    if left:
        ids = " ".join(one.id for one in left.values())
        say(
            f"{len(left)} jobs go on at Hugging Face, and are billed: {ids}. To follow them again:"
            f" {settings.again}. To end one: autoquant jobs cancel ID"
        )


def _follow_all(
    found: Offers,
    board: Board,
    jobs: dict[str, Job],
    running: dict[str, Note],
    due: queue.SimpleQueue[str],
) -> None:
    """Follow one job after the other, until there is none. (A thread.)"""
    while name := due.get():
        try:
            outcome = follow(found.account, found.settings, jobs[name], running[name], board)
        except (AutoQuantError, OSError) as error:
            line = f"not followed any more, but it may run: {redact(str(error))}"
            board.wait(name, f"job {running[name].id}: {line}")
        else:
            board.end(name, outcome)


def follow(who: Account, settings: Settings, job: Job, started: Note, board: Board) -> Outcome:
    """Show a job's progress until it ends, and keep its log; then fetch what it leaves. How it
    ended, and where it did not end by itself, why and how to go on.
    """
    board.begin(job.name, place=started.flavor)
    board.progress(job.name, f"job {started.id}: waits for a machine", 0.0)
    path = log_of(board.batch.folder, job.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    ended: Outcome | None = None
    begun = False

    def heard(line: str) -> None:
        nonlocal ended, begun
        values = lines.read(line)
        if values is None:
            said.append(redact(line))
            if len(said) == 1:
                board.progress(job.name, "installing", 0.0)
        elif "title" in values:
            begun = True
            board.progress(job.name, str(values["title"]), float(values.get("share", 0.0)))
        else:
            ended = lines.outcome(values)

    try:
        info = _streamed(who, started, heard)
    finally:
        write_atomically(path, "".join(f"{line}\n" for line in said))
    repo = f"{started.user}/{shipping.REPOSITORY}"
    folder = board.batch.folder_of(job)
    left = keeping.collect(who.client, repo, job.key, folder, started.attempt)
    if left is not None:  # the log may lack its last lines
        ended = lines.of(left)
    elif ended is not None and ended.state == DONE:
        ended = replace(ended, line=f"{ended.line}; it handed over neither journal nor card")
    last = "" if begun else _worst(said)
    why = _unfinished(info, started, settings, last)
    return ended or Outcome(FAILED, why, _seconds(info))


def _streamed(who: Account, started: Note, heard: Callable[[str], None]) -> Any:
    """Hand over what a job prints, until it has ended; what the Hub says of it then (None: that
    there is none).
    """
    heard_of = 0
    while True:
        try:
            stream = who.client.api.fetch_job_logs(
                job_id=started.id, namespace=started.user, follow=True
            )
            # from the beginning each time
            for number, line in enumerate(stream):
                if number >= heard_of:
                    heard(str(line).rstrip("\n"))
                    heard_of += 1
        except (transport_error(), OSError, ValueError) as error:
            log.debug("the log of job %s broke off: %s", started.id, redact(str(error)))
        info = look(who, started.id, started.user)
        if info is None or stage_of(info) not in ALIVE:
            return info
        time.sleep(AGAIN)


def _worst(said: Sequence[str]) -> str:
    """The line that says most of why a job did not even begin: pip's first error, or the last."""
    return next((line for line in said if line.startswith("ERROR:")), said[-1] if said else "")


def _seconds(info: Any) -> float:
    spent = getattr(getattr(info, "durations", None), "running_secs", None)
    return float(spent or 0)


def _unfinished(info: Any, started: Note, settings: Settings, last: str) -> str:
    """Why a job ended without a word of its own, and what to do. ``last``: what it said last, if it
    had not begun its work.
    """
    go_on = f"What it had finished is kept. To go on: {settings.again}"
    if info is None:
        return f"the Hub does not know job {started.id} any more. {go_on}"
    stage, message = stage_of(info), str(info.status.message or "").strip()
    told = f" (the Hub says: {redact(message)})" if message else ""
    if stage == "CANCELED":
        return f"job {started.id} was cancelled. {go_on}"
    reached = started.timeout and _seconds(info) >= started.timeout - LATEST
    if reached or "timeout" in message.lower() or "timed out" in message.lower():
        minutes = started.timeout // 60
        limit = f" of {minutes} minutes" if minutes else ""
        by_command = settings.again.startswith("autoquant ")
        longer = f" --timeout {2 * minutes or 120}m" if by_command else ", with a longer timeout"
        return f"job {started.id} reached its timeout{limit}{told}. {go_on}{longer}"
    if last:
        return f"job {started.id} could not be prepared{told}: {last.rstrip('.')}. {go_on}"
    return (
        f"job {started.id} was stopped{told}: its machine was taken, or its memory was too little."
        f" {go_on}, with a larger --flavor if it happens again"
    )


def log_text(who: Account, id: str, *, whole: bool, say: Callable[[str], object]) -> None:
    """Hand over what a job has printed, and with ``whole`` all until it ends; without the lines
    that are meant for a board. Raises InputError if there is no such job.
    """
    info = look(who, id)
    if info is None:
        raise InputError(f"{who.user} has no job {id!r}; `autoquant jobs` lists them")
    for line in who.client.api.fetch_job_logs(job_id=id, namespace=who.user, follow=whole):
        values = lines.read(str(line))
        if values is None:
            say(redact(str(line).rstrip("\n")))
        elif "ended" in values:
            say(redact(f"{values['ended']}: {values.get('line', '')}"))
