"""How far each job of a batch is: kept in a file, so that the next run knows, and shown."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoquant.cluster.jobs import Batch, Job
from autoquant.cluster.work import DONE, FAILED, STOPPED, Outcome
from autoquant.core.errors import InputError
from autoquant.core.files import write_atomically

OURS = ".autoquant-batch"
WAITING, RUNNING = "waiting", "running"
STATES = (RUNNING, FAILED, STOPPED, WAITING, DONE)


@dataclass(frozen=True)
class Row:
    """One job as it stands: its state, what is to be said of it in one line, how much of what it is
    at is done (0 to 1), and the seconds that it took. ``place``: where it runs, if not here;
    ``tries``: how often it was begun.
    """

    job: Job
    state: str = WAITING
    line: str = ""
    share: float = 0.0
    seconds: float = 0.0
    began: float = 0.0
    place: str = ""
    tries: int = 0


class Board:
    """The jobs of a batch by name. Methods may be called from any thread."""

    def __init__(self, batch: Batch, changed: Callable[[Row], None] | None = None) -> None:
        self.batch, self.changed = batch, changed or (lambda row: None)
        self._rows = {job.name: Row(job) for job in batch.jobs}
        self._mutex = threading.RLock()

    @property
    def rows(self) -> list[Row]:
        """All jobs, in the batch's order."""
        with self._mutex:
            return list(self._rows.values())

    def row(self, name: str) -> Row:
        """One job."""
        return self._rows[name]

    def begin(self, name: str, place: str = "") -> None:
        """A job is being run; once more, if its node or process has died."""
        tries = self.row(name).tries + 1
        now = time.monotonic()
        self._set(name, state=RUNNING, line="", share=0.0, began=now, place=place, tries=tries)

    def progress(self, name: str, title: str, share: float) -> None:
        """How far a running job is with what it is at."""
        if self.row(name).state == RUNNING:
            self._set(name, line=title, share=share)

    def end(self, name: str, outcome: Outcome) -> None:
        """A job has ended."""
        seconds, line = outcome.seconds, outcome.line
        self._set(name, state=outcome.state, line=line, share=0.0, seconds=seconds)
        self.save()

    def wait(self, name: str, line: str) -> None:
        """A job that ran waits again."""
        self._set(name, state=WAITING, line=line, share=0.0)

    def stop(self, line: str) -> None:
        """What is running is stopped."""
        for row in self.rows:
            if row.state == RUNNING:
                self._set(row.job.name, state=STOPPED, line=line, share=0.0)
        self.save()

    def _set(self, name: str, **values: Any) -> None:
        with self._mutex:
            self._rows[name] = row = replace(self._rows[name], **values)
            self.changed(row)

    def save(self) -> None:
        """Write down what has ended, for the next run and for whoever looks."""
        with self._mutex:
            kept = {
                row.job.name: {
                    "key": row.job.key,
                    "state": row.state,
                    "line": row.line,
                    "seconds": row.seconds,
                    **row.job.to_json(),
                }
                for row in self._rows.values()
                if row.state in (DONE, FAILED, STOPPED)
            }
            path = state_file(self.batch.folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({**saved(self.batch.folder), **kept}, indent=1))


def state_file(folder: Path) -> Path:
    """Where a batch's folder notes how its jobs ended."""
    return folder / OURS / "state.json"


def log_of(folder: Path, name: str) -> Path:
    """Where a job's log is, in the batch's folder."""
    return folder / OURS / "logs" / f"{name}.txt"


def saved(folder: Path) -> dict[str, dict[str, Any]]:
    """How the jobs of a batch's folder ended, by name. Raises InputError if that is damaged."""
    path = state_file(folder)
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}); delete it: the runs' own journals know what is done"
        ) from None


def counted(rows: Sequence[Row]) -> str:
    """How many jobs are in each state, in words."""
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n) or "no jobs"
