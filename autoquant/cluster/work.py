"""What is done for one job, in whatever process it runs."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoquant import result
from autoquant.cluster.jobs import Job
from autoquant.core.errors import AutoQuantError
from autoquant.core.progress import Watcher, watched
from autoquant.core.records import LLAMA_CPP, Evaluation, RunRecord
from autoquant.core.redact import RedactingFilter, redact
from autoquant.display import tables
from autoquant.methods import METHODS

log = logging.getLogger(__name__)
DONE, FAILED, STOPPED = "done", "failed", "stopped"


@dataclass(frozen=True)
class Outcome:
    """How a job ended: what was made or what went wrong, in one line, after how many seconds.
    ``disk_full``: another machine may have the room.
    """

    state: str
    line: str
    seconds: float = 0.0
    disk_full: bool = False


def do(job: Job, folder: Path, log_file: Path, report: Watcher) -> Outcome:
    """Run a job into its folder; what is there already is not done again. Appends what it says to
    ``log_file``. A failure becomes the outcome's line, an interrupt goes on.
    """
    started = time.monotonic()
    with _logging_to(log_file), watched(report):
        try:
            made = result.quantize(METHODS[job.method], job.model, out=folder, values=job.options)
        except AutoQuantError as error:
            log.warning("%s", error)
            line = str(error)
        except OSError as error:
            log.warning("%s", error)
            line = redact(str(error))
        except Exception as error:
            log.exception("%s", job.name)
            line = redact(f"a fault of AutoQuant's own ({type(error).__name__}: {error})")
            line += f"; its traceback is in {log_file}"
        else:
            return Outcome(DONE, described(made), time.monotonic() - started)
    full = "No space left" in line or ("disk" in line and "free" in line)
    return Outcome(FAILED, line, time.monotonic() - started, disk_full=full)


def described(made: RunRecord) -> str:
    """What a run made, in one line."""
    files, places = made.offered, [receipt.url for receipt in made.receipts]
    if len(files) <= 2:
        parts = [f"{one.type} {tables.size(one.bytes)}" + _lost(one.evaluation) for one in files]
    else:
        sizes = [one.bytes for one in files]
        lost = [one.evaluation.kl_mean for one in files if one.evaluation is not None]
        parts = [f"{len(files)} types, {tables.size(min(sizes))} to {tables.size(max(sizes))}"]
        by = _by([one.evaluation for one in files])
        parts += [f"KL {min(lost):.4f} to {max(lost):.4f}{by}"] if lost else []
    return "; ".join([*parts, *([f"uploaded: {places[0]}"] if places else [])])


def _lost(measured: Evaluation | None) -> str:
    if measured is None:
        return ""
    return f", KL {measured.kl_mean:.4f}{_by([measured])}"


def _by(measured: Sequence[Evaluation | None]) -> str:
    """Marks what llama.cpp ran, which adds a little to the KL divergence."""
    return f" ({LLAMA_CPP})" if any(one and one.engine == LLAMA_CPP for one in measured) else ""


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Append what is logged to a file, and to it alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.addFilter(RedactingFilter())
    before, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        handler.close()
