"""The asked types straight from a checkpoint, without an unquantized file in between."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp.types import TYPES
from autoquant.core.errors import AutoQuantError
from autoquant.core.files import free_bytes
from autoquant.core.journal import RunFolder
from autoquant.core.progress import Bar
from autoquant.core.records import Source
from autoquant.methods.gguf.convert import convert
from autoquant.methods.gguf.feed import Feed, largest
from autoquant.methods.gguf.options import GgufOptions
from autoquant.runtime import process

log = logging.getLogger(__name__)
JOURNAL = "one-pass.txt"  # the tensors that are written


@dataclass(frozen=True)
class OnePass:
    """What is made of: ``whole`` is the type that the converter writes, ``imatrix`` an importance
    matrix's file, and ``key`` what all of it depends on.
    """

    source: Source
    options: GgufOptions
    run: RunFolder
    header: Path
    stem: str
    whole: str
    key: str
    imatrix: Path | None
    feed: Feed | None = None

    def make(self, types: list[str], finished: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Make and verify ``types``, and say of each what was seen as soon as it is ``finished``.
        What an interrupted run has written of them, in the run's ``jobs`` folder, is not written
        again; nothing of a failed one stays. Returns what the converter has found.
        """
        options, run = self.options, self.run
        run.jobs.mkdir(exist_ok=True)
        jobs = [self._job(name) for name in types]
        kept = run.jobs / f"{self.stem}-{self.whole}.kept.gguf"
        if options.keep_intermediate and (self.whole not in types or options.split_bytes):
            jobs.append({**self._job(self.whole), "target": str(kept), "kept": True})
        log.info("%s: %s, straight from the checkpoint", self.source.id, ", ".join(types))
        try:
            facts = self._convert(types, jobs, finished)
        except (AutoQuantError, OSError):
            shutil.rmtree(run.jobs, ignore_errors=True)
            raise
        if kept.is_file():
            run.finish(kept, f"{self.stem}-{self.whole}.gguf")
        shutil.rmtree(run.jobs)
        return facts

    def _convert(
        self,
        types: list[str],
        jobs: list[dict[str, Any]],
        finished: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        options, run, feed = self.options, self.run, self.feed

        def told(answer: dict[str, Any]) -> None:
            if feed is None or not feed.told(answer):
                finished(answer)

        with Bar(f"quantize {', '.join(types)}") as progress, feed or nullcontext():
            return convert(
                self.source,
                options,
                header=self.header,
                target=run.work / "never.gguf",
                logs=run.logs,
                types=types,
                outtype=self.whole.lower(),
                room=free_bytes(run.folder) + _written_already(jobs),
                need={
                    "other": largest(self.source) if feed else 0,
                    "intermediate": int(jobs[-1]["kept"]),
                },
                only_plan=False,
                progress=progress,
                one_pass={
                    "jobs": jobs,
                    "imatrix": str(self.imatrix or ""),
                    "threads": options.cores,
                    "split": options.split_bytes,
                    "journal": str(run.jobs / JOURNAL),
                    "key": self.key,
                    "arriving": str(feed.folder) if feed else "",
                },
                on_part=told,
            )

    def _job(self, name: str) -> dict[str, Any]:
        """One file to be; ``ready`` says that it is what the converter itself would write."""
        return {
            "type": name,
            "target": str(self.run.jobs / f"{self.stem}-{name}.gguf"),
            "ready": name == self.whole,
            "imatrix": TYPES[name].imatrix != "no",
            "kept": False,
        }


def _written_already(jobs: list[dict[str, Any]]) -> int:
    """Bytes on the disk of what an interrupted run has written."""
    paths = (Path(job["target"]) for job in jobs)
    return sum(512 * path.stat().st_blocks for path in paths if path.is_file())


def compare_repeating(
    answer: dict[str, Any], unquantized: Path, *, logs: Path, env: Mapping[str, str], threads: int
) -> None:
    """A file that repeats one token is right if the ``unquantized`` one does; its check then says
    so. Raises CheckFailed.
    """
    said = process.call(
        "autoquant.backends.llamacpp.check:repeats_too",
        log=logs,
        env=env,
        unquantized=str(unquantized),
        name=answer["files"][0][0],
        token=answer["repeats"],
        threads=threads,
    )
    answer["checks"] = [
        ["generates", said] if check[0] == "generates" else check for check in answer["checks"]
    ]
