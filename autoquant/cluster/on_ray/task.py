"""What a node of a Ray cluster does: one job, in a process of Ray's."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from autoquant.cluster import jobs, keeping
from autoquant.cluster.board import log_of
from autoquant.cluster.work import do
from autoquant.core import journal, redact
from autoquant.core.cache import cache_folder
from autoquant.core.errors import AutoQuantError
from autoquant.core.files import free_bytes, key_of
from autoquant.core.version import __version__
from autoquant.hub.client import connect, with_retries
from autoquant.runtime import preload

log = logging.getLogger(__name__)
OFTEN = 0.5  # seconds between two reports
LOG = 1 << 20  # bytes of a log that come back
SMALL = ("README.md", "size-against-quality.png", f"{journal.OURS}/journal.json")
LOCKED = 120  # seconds to wait for a run's folder: its former node may be dying still
_entered = contextlib.ExitStack()


class Reporter:
    """An actor that carries reports from tasks to the driver."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.cancelled = False

    def say(self, event: dict[str, Any]) -> None:
        """A task has something to report."""
        self.events.append(event)

    def cancel(self) -> None:
        """Somebody wants the batch to end."""
        self.cancelled = True

    def take(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the batch is to end, and what has been reported since the last time."""
        taken, self.events = self.events, []
        return self.cancelled, taken


def look(mark: str) -> dict[str, Any]:
    """What a node is: its version of this package, whether it sees a file, free bytes of the disk
    that it would write to.
    """
    shared = Path(mark).exists()
    place = Path(mark).parent if shared else cache_folder()
    return {"version": __version__, "shared": shared, "free": free_bytes(place)}


def run(
    data: Mapping[str, Any], folder: str, reporter: Any, token: str, shared: bool, cpus: int
) -> dict[str, Any]:
    """Run one job. ``shared``: all nodes see the batch's folder; else it is run in this node's
    cache, and its small files come back. Nothing of Ray's is waited for: a task that waits gives
    its processors away, and another one begins beside it.
    """
    import ray

    job, host = jobs.from_json(data), socket.gethostname()
    if token:
        redact.remember(token)
    reporter.say.remote({"name": job.name, "began": host})
    place = Path(folder) if shared else cache_folder() / "batches" / key_of(folder)
    log, own = log_of(place, job.name), place / job.name
    said = _Saying(job.name, reporter)
    with _token(token), _processors(cpus), _kept_elsewhere(job, own, shared):
        _keep_preloaded()
        _wait_for(own)
        outcome = do(job, own, log, said)
    files = {} if shared else {name: own / name for name in SMALL}
    return {
        "outcome": asdict(outcome),
        "host": host,
        "node": ray.get_runtime_context().get_node_id(),
        "log": "" if shared else log.read_text(encoding="utf-8")[-LOG:],
        "files": {
            name: base64.b64encode(path.read_bytes()).decode()
            for name, path in files.items()
            if path.is_file()
        },
    }


class _Saying:
    """Reports a job's progress, now and then."""

    def __init__(self, name: str, reporter: Any) -> None:
        self.name, self.reporter, self.last, self.mutex = name, reporter, 0.0, threading.Lock()

    def __call__(self, title: str, share: float) -> None:
        with self.mutex:
            if time.monotonic() - self.last < OFTEN:
                return
            self.last = time.monotonic()
        self.reporter.say.remote({"name": self.name, "title": title, "share": share})


@contextlib.contextmanager
def _token(token: str) -> Iterator[None]:
    """The client's token, where this node has none of its own."""
    name = redact.TOKEN_VARIABLES[0]
    ours = bool(token) and name not in os.environ
    if ours:
        os.environ[name] = token
    try:
        yield
    finally:
        if ours:
            del os.environ[name]


@contextlib.contextmanager
def _kept_elsewhere(job: jobs.Job, folder: Path, shared: bool) -> Iterator[None]:
    """Where nodes share no folder: keep what is finished on the Hub, and begin with what another
    node has kept there before it was lost.
    """
    if shared:
        yield
        return
    keeper = None
    try:
        client = connect()
        asked = "asking the Hub whose token this is"
        repo = keeping.unfinished(with_retries(client.api.whoami, asked, client)["name"], job.key)
        if not (folder / keeping.JOURNAL).is_file():
            keeping.restore(client, repo, folder)
        keeper = keeping.Keeper(client, repo, folder)
    except (AutoQuantError, OSError) as error:  # without it, another node would begin anew
        log.warning("finished steps are not kept: %s", error)
    if keeper is None:
        yield
        return
    with keeper:
        yield
    try:
        if sent(folder):
            keeper.forget()
        else:
            keeper.keep()
    except (AutoQuantError, OSError) as error:
        log.warning("finished steps are not kept: %s", error)


def sent(folder: Path) -> bool:
    """Whether a run has ended and was uploaded."""
    steps = journal.read(folder)[1]
    return "result" in steps and any("receipt" in one["facts"] for one in steps.values())


@contextlib.contextmanager
def _processors(count: int) -> Iterator[None]:
    """Run on so many processor cores that no other task of ours has taken: whatever a job starts
    has these, and counts them.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    every = os.sched_getaffinity(0)
    place = Path(tempfile.gettempdir()) / f"autoquant-processors-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as held:
        taken = set[int]()
        for number in sorted(every):
            if len(taken) < count and _locked(held.enter_context(open(place / str(number), "a"))):
                taken.add(number)
        preload.pin(taken or every)
        try:
            yield
        finally:
            preload.pin(every)


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _keep_preloaded() -> None:
    """Keep the process that has imported the heavy modules for the next task of this process."""
    if not getattr(_entered, "ours", False):
        _entered.enter_context(preload.kept())
        _entered.ours = True  # type: ignore[attr-defined]


def _wait_for(folder: Path) -> None:
    """Wait until nobody holds a run's folder any longer."""
    path, until = folder / journal.OURS / "lock", time.monotonic() + LOCKED
    while path.is_file() and time.monotonic() < until:
        with open(path, "a", encoding="utf-8") as file:
            if _locked(file):
                return
        time.sleep(1)
