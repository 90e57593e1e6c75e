"""A batch from end to end: read, planned, run, summed up."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from autoquant import result
from autoquant.cluster import jobs as reading
from autoquant.cluster import local, planning, shown, summary
from autoquant.cluster.board import OURS, Board, Row, counted
from autoquant.cluster.planning import BatchPlan, Planned
from autoquant.cluster.summary import Page
from autoquant.cluster.work import DONE, FAILED, STOPPED, Outcome
from autoquant.core.errors import InputError
from autoquant.display import html
from autoquant.runtime import preload

log = logging.getLogger(__name__)
Runner = Callable[[Sequence[Planned], Board], None]
Jobs = str | Path | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, repr=False)
class BatchResult:
    """What became of a batch: ``results`` by the jobs' names, ``failed`` with a line each, and the
    page on all of it. Prints as a table.
    """

    rows: tuple[Row, ...]
    results: Mapping[str, result.Result]
    summary: Path

    @property
    def failed(self) -> dict[str, str]:
        """The jobs that failed, or could not be run, with the reason."""
        return {row.job.name: row.line for row in self.rows if row.state == FAILED}

    def page(self) -> Page:
        """The summary's text; in a notebook it shows itself rendered."""
        return Page.of(self.summary)

    def __getitem__(self, name: str) -> result.Result:
        return self.results[name]

    def __str__(self) -> str:
        below = f"{counted(self.rows)}; a page with links to all: {self.summary}"
        return f"{shown.table(self.rows)}\n\n{below}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = [shown.cells(row) for row in self.rows]
        below = escape(f"{counted(self.rows)}; a page with links to all: {self.summary}")
        return f"<div>{html.table(shown.HEAD, body, left=3)}<p>{below}</p></div>"


@preload.kept()
def plan(jobs: Jobs, out: str | Path | None = None, *, here: bool = True) -> BatchPlan:
    """What a batch would make and need, on this machine if ``here``. Downloads and writes
    nothing.
    """
    return planning.plan(reading.read(jobs, out), here=here)


def on_cluster(address: str, planned: BatchPlan) -> Runner:
    """What runs a batch on a Ray cluster."""
    from autoquant.cluster.on_ray.runner import Cluster

    return Cluster(address, planned.batch.needs).run


@preload.kept()
def run(
    planned: BatchPlan, say: Callable[[str], None] = log.info, runner: Runner = local.run
) -> BatchResult:
    """Run what a plan says can be run. The others have failed, with their plan's reason. ``say``
    takes a line for each change, where it cannot be shown; ``runner`` is where they run.
    """
    with _alone(planned.batch.folder):
        board = board_of(planned)
        with finishing(board), shown.live(board, say):
            runner(planned.ready, board)
        return finished(board)


def board_of(planned: BatchPlan) -> Board:
    """The jobs as their plan leaves them: done, refused or waiting."""
    board = Board(planned.batch)
    for one in planned.planned:
        if one.done:
            board.end(one.job.name, Outcome(DONE, one.done))
        elif one.wrong:
            board.end(one.job.name, Outcome(FAILED, one.wrong))
    return board


@contextlib.contextmanager
def finishing(board: Board) -> Iterator[None]:
    """Around a run: where it is interrupted, the page and the notes are written all the same."""
    try:
        yield
    except BaseException:
        board.stop("stopped; run the same batch again to go on")
        finished(board)
        raise


def finished(board: Board) -> BatchResult:
    """Write the page; the batch's result."""
    results = {}
    for row in board.rows:
        if row.state in (DONE, STOPPED):
            with contextlib.suppress(InputError):  # on another machine, or not finished
                results[row.job.name] = result.load(board.batch.folder_of(row.job))
    board.save()
    page = summary.write(board.batch, board.rows, results)
    return BatchResult(tuple(board.rows), results, page)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep another batch out of a folder. Raises InputError."""
    ours = folder / OURS
    try:
        ours.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"out: the folder {folder} cannot be made ({error.strerror}); name another"
        ) from None
    with open(ours / "lock", "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"out: another batch is being run in {folder}; wait for it or name another folder"
            ) from None
        yield
