"""A batch's jobs as they run, shown: a table on a terminal or in a notebook, else a line for each
change.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

from autoquant.cluster.board import RUNNING, STATES, WAITING, Board, Row, counted
from autoquant.cluster.work import DONE, FAILED, STOPPED
from autoquant.core.progress import in_notebook
from autoquant.display import html, tables

log = logging.getLogger(__name__)
HEAD = ("job", "state", "result", "time")
COLORS = {RUNNING: "cyan", DONE: "green", FAILED: "red", STOPPED: "yellow", WAITING: "dim"}
OFTEN = 0.5  # seconds between two drawings
LINES = 20  # that a table has at most; of the others the number is said


def cells(row: Row) -> tuple[str, str, str, str]:
    """A job as a row of :data:`HEAD`."""
    seconds = time.monotonic() - row.began if row.state == RUNNING else row.seconds
    line = f"{row.line} {row.share:.0%}" if row.state == RUNNING and row.share else row.line
    if row.place:
        line = f"{line} (on {row.place})" if line else f"on {row.place}"
    if row.tries > 1:
        line = f"{line}, try {row.tries}"
    return row.job.name, row.state, line, f"{seconds:.0f} s" if seconds else ""


def chosen(rows: Sequence[Row], lines: int = LINES) -> tuple[list[Row], str]:
    """The rows that are shown where not all can be: what runs, what failed, what comes next, what
    was done last; in the batch's order, and what is left out.
    """
    if len(rows) <= lines:
        return list(rows), ""
    order = sorted(range(len(rows)), key=lambda i: STATES.index(rows[i].state))
    kept = sorted(order[:lines])
    return [rows[i] for i in kept], f"… and {len(rows) - lines} more: {counted(rows)}"


@contextlib.contextmanager
def live(board: Board, say: Callable[[str], None] = log.info) -> Iterator[None]:
    """Show a board while this is entered; where there is neither terminal nor notebook, ``say`` a
    line for each change.
    """
    if in_notebook():
        with _in_notebook(board):
            yield
    elif sys.stderr.isatty():
        with _on_terminal(board):
            yield
    else:
        board.changed = _Lines(board, say)
        yield


class _Lines:
    """A line for each job that begins or ends."""

    def __init__(self, board: Board, say: Callable[[str], None]) -> None:
        self.board, self.say = board, say
        self.states = {row.job.name: (row.state, row.tries) for row in board.rows}

    def __call__(self, row: Row) -> None:
        if self.states[row.job.name] != (row.state, row.tries):
            self.states[row.job.name] = row.state, row.tries
            name, state, line, taken = cells(row)
            ended = sum(one.state in (DONE, FAILED) for one in self.board.rows)
            after = f" after {taken}" if taken and state != RUNNING else ""
            said = f": {line}" if line else ""
            self.say(f"{name}: {state}{after}{said} ({ended} of {len(self.board.rows)} ended)")


@contextlib.contextmanager
def _on_terminal(board: Board) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True)

    def drawn() -> Table:
        rows, rest = chosen(board.rows, max(3, min(LINES, console.height - 6)))
        drawn = Table(*HEAD, caption=rest or counted(board.rows), box=None, pad_edge=False)
        for row in rows:
            name, state, line, taken = cells(row)
            state_of = Text(state, style=COLORS[row.state])
            drawn.add_row(Text(name, overflow="fold"), state_of, Text(line), taken)
        return drawn

    with Live(console=console, get_renderable=drawn, refresh_per_second=1 / OFTEN, transient=True):
        yield


@contextlib.contextmanager
def _in_notebook(board: Board) -> Iterator[None]:
    ipython: Any = importlib.import_module("IPython.display")

    def drawn() -> Any:
        rows, rest = chosen(board.rows)
        table = html.table(HEAD, [cells(row) for row in rows], left=3)
        return ipython.HTML(f"<div>{table}<p>{escape(rest or counted(board.rows))}</p></div>")

    shown = ipython.display(drawn(), display_id=True)
    try:
        with _now_and_then(lambda: shown.update(drawn())):
            yield
    finally:
        shown.update(ipython.HTML(""))  # what the batch returns shows the same


@contextlib.contextmanager
def _now_and_then(draw: Callable[[], object]) -> Iterator[None]:
    """Draw again and again from a thread."""
    over = threading.Event()

    def drawing() -> None:
        while not over.wait(OFTEN):
            draw()

    thread = threading.Thread(target=drawing, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def table(rows: Sequence[Row]) -> str:
    """All jobs as a table of text."""
    return tables.table(HEAD, [cells(row) for row in rows], left=3)
