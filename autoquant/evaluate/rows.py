"""Measuring the artifacts of a run, row by row of its table."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from autoquant.core.errors import ProcessFailed
from autoquant.core.files import key_of
from autoquant.core.journal import RunFolder
from autoquant.core.machine import cores, memory_available
from autoquant.core.progress import bar_format, hidden, said, titled
from autoquant.core.records import Artifact, Evaluation, Snapshot
from autoquant.evaluate import sources
from autoquant.evaluate.evaluator import Evaluator, Kept
from autoquant.forward.head import KEPT
from autoquant.runtime import process

# bytes beside twice the artifact: Python, NumPy, llama.cpp's or torch's own buffers, and a head
WORKER_MEMORY = (600 << 20) + KEPT

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Rows:
    """Measures the artifacts of one run. ``how`` are arguments of blockwise.Blockwise;
    ``by_weights``: GGUF files are run by their weights, not by llama.cpp.
    """

    snapshot: Snapshot
    evaluator: Evaluator
    run: RunFolder
    how: dict[str, Any]
    converter: str
    by_weights: bool = False

    def key(self, artifact: Artifact) -> str:
        """What the row of an artifact depends on. Names what is kept of it."""
        by = "weights" if self.by_weights and not artifact.is_folder else ""
        return key_of(self.evaluator.key(), [stored.sha256 for stored in artifact.files], by)

    def known(self, artifacts: Sequence[Artifact], *, bare: bool = False) -> dict[str, Evaluation]:
        """The rows that the journal has; ``bare``: also those of earlier versions, which kept no
        log-probabilities.
        """
        done = {a.type: self.done(a.type, self.key(a), bare=bare) for a in artifacts}
        return {name: row for name, row in done.items() if row is not None}

    def done(self, name: str, key: str, *, bare: bool = False) -> Evaluation | None:
        """One row that the journal has, or None; see :meth:`known`."""
        facts = self.run.done(f"evaluate {name}", key)
        row = Evaluation(**facts) if facts else None
        return row if row is not None and (bare or row.log_probabilities) else None

    def scored(self, key: str) -> Path:
        """Where the log-probabilities of the scored tokens lie, by the row's key."""
        folder = self.run.ours / "log-probabilities"
        folder.mkdir(exist_ok=True)
        return folder / f"{key}.npy"

    def measure(self, artifacts: Sequence[Artifact], kept: Kept, bar: Bar) -> dict[str, Evaluation]:
        """The rows by type. Where a GGUF file cannot be run by its weights, llama.cpp runs all, and
        no row that was measured otherwise is among them.
        """
        folders = [one for one in artifacts if one.is_folder]
        files = [one for one in artifacts if not one.is_folder]
        rows = self._in_blocks(folders, kept, bar)
        if files and self.by_weights:
            try:
                return rows | self._in_blocks(files, kept, bar)
            except ProcessFailed as failure:
                log.warning("%s; llama.cpp runs the files instead", failure)
                self.by_weights = False
        return rows | self._by_llama_cpp(files, kept, bar)

    def note(self, name: str, key: str, row: Evaluation) -> Evaluation:
        """Note in the journal what was measured, with its file of log-probabilities."""
        scored = self.scored(key)
        named = scored.relative_to(self.run.folder).as_posix()
        row = dataclasses.replace(row, log_probabilities=named)
        self.run.record(f"evaluate {name}", key, [scored], dataclasses.asdict(row))
        return row

    def _in_blocks(
        self, artifacts: Sequence[Artifact], kept: Kept, bar: Bar
    ) -> dict[str, Evaluation]:
        """All in one pass beside the reference. Of a run that is killed the hidden states of those
        that have gone through are kept.
        """
        if not artifacts:
            return {}
        states = self.run.ours / "states"
        states.mkdir(exist_ok=True)
        files = [
            {
                **sources.file_of(self.snapshot, one.paths_in(self.run.folder), self.converter),
                "states": str(states / f"{self.key(one)}.npy"),
                "scored": str(self.scored(self.key(one))),
            }
            for one in artifacts
        ]
        parts = [bar.part(artifact.type) for artifact in artifacts]

        def progress(done: int, total: int) -> None:
            for i, part in enumerate(parts):
                part(min(max(0, done * len(parts) - i * total), total), total)

        found = self.evaluator.measure(files, kept, progress=progress, plan=self.how)
        rows = {
            a.type: self.note(a.type, self.key(a), row)
            for a, row in zip(artifacts, found, strict=True)
        }
        shutil.rmtree(states)
        return rows

    def _by_llama_cpp(
        self, artifacts: Sequence[Artifact], kept: Kept, bar: Bar
    ) -> dict[str, Evaluation]:
        """Side by side, as many at a time as memory and cores allow."""
        if not artifacts:
            return {}
        largest = max(artifact.bytes for artifact in artifacts)
        fit = memory_available() // (1 + WORKER_MEMORY + 2 * largest)
        at_once = max(1, min(len(artifacts), cores(), fit))

        def job_of(artifact: Artifact) -> Any:
            def job(children: process.Children) -> Evaluation:
                row = self.evaluator.measure_gguf(
                    artifact.path_in(self.run.folder),
                    kept,
                    threads=max(1, cores() // at_once),
                    scored=self.scored(self.key(artifact)),
                    children=children,
                    progress=bar.part(artifact.type),
                )
                return self.note(artifact.type, self.key(artifact), row)

            return job

        rows = process.side_by_side([job_of(artifact) for artifact in artifacts], at_once)
        return {a.type: row for a, row in zip(artifacts, rows, strict=True)}


class Bar:
    """One bar for several measurements, in percent of each."""

    def __init__(self, parts: int) -> None:
        self._done: dict[str, float] = {}
        self._title, self._total = titled("measure"), 100 * parts
        self._bar = tqdm(
            total=self._total,
            desc=self._title,
            disable=hidden(),
            leave=False,
            bar_format=bar_format(),
        )

    def part(self, name: str) -> process.Progress:
        """The progress function of one measurement."""

        def report(done: int, total: int) -> None:
            before, self._done[name] = self._done.get(name, 0.0), 100 * done / max(1, total)
            self._bar.update(self._done[name] - before)
            said(self._title, sum(self._done.values()) / max(1, self._total))

        return report

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._bar.update(self._bar.total - self._bar.n)  # what was known has not moved it
        self._bar.close()
