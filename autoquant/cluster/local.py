"""A batch on this machine, one job after the other."""

from __future__ import annotations

from collections.abc import Sequence

from autoquant.cluster.board import Board, log_of
from autoquant.cluster.planning import Planned
from autoquant.cluster.work import do
from autoquant.runtime import preload


@preload.kept()
def run(ready: Sequence[Planned], board: Board) -> None:
    """Run them; all of them share the process that has imported the heavy modules."""
    for job in (one.job for one in ready):
        board.begin(job.name)

        def report(title: str, share: float, name: str = job.name) -> None:
            board.progress(name, title, share)

        folder = board.batch.folder
        outcome = do(job, board.batch.folder_of(job), log_of(folder, job.name), report)
        board.end(job.name, outcome)
