"""The asked types straight from a checkpoint or a GGUF file, with no file in between."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp.types import file_type
from autoquant.core import gguf_head
from autoquant.core.errors import AutoQuantError, HubFailed, ProcessFailed
from autoquant.core.files import bytes_in, free_bytes
from autoquant.core.journal import RunFolder
from autoquant.core.progress import Bar
from autoquant.core.records import Source
from autoquant.methods.gguf.convert import convert
from autoquant.methods.gguf.feed import Feed, largest
from autoquant.methods.gguf.options import GgufOptions
from autoquant.methods.gguf.requantize import NO_LIMIT
from autoquant.methods.gguf.sending import Sending
from autoquant.methods.gguf.streaming import sizes_of
from autoquant.runtime import process

log = logging.getLogger(__name__)
JOURNAL = "one-pass.txt"  # the tensors that are written
KEPT = "kept"  # the folder of a pass that makes nothing but a file for ourselves
Finished = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Kept:
    """A file that is made for ourselves: its type, and where it goes."""

    type: str
    path: Path


@dataclass(frozen=True)
class OnePass:
    """What is made of: ``whole`` is the type that the converter writes or the source has,
    ``imatrix`` an importance matrix's file, ``key`` what all of it depends on, ``made`` how a
    source that is not made is read (see convert.made_of), and ``chosen`` the plans of files whose
    types were chosen.
    """

    source: Source
    options: GgufOptions
    run: RunFolder
    env: Mapping[str, str]
    header: Path
    stem: str
    whole: str
    key: str
    imatrix: Path | None
    sending: Sending
    made: dict[str, Any] | None
    chosen: Mapping[str, dict[str, Any]]

    def convert(
        self,
        types: list[str],
        kept: Kept | None,
        feed: Feed | None,
        finished: Finished,
        then: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        """Make and verify ``types`` of the checkpoint. What an interrupted run has written of them,
        in the run's ``jobs`` folder, is not written again; nothing stays of one that failed because
        of what is in the model.

        When all is written, the ``kept`` file goes to its place, and what is to be done ``then``
        gets what the converter has found, while the feed's folder is still there. Only after that,
        so that a killed run comes here again, is each type ``finished``, as soon as it is verified.
        Returns what was found.
        """
        options, run = self.options, self.run
        folder = run.jobs if types else run.jobs / KEPT
        jobs = [self._job(name) for name in types]
        planned = [name for name in types if name not in self.chosen]
        part = folder / f"{self.stem}.kept.gguf"
        if kept is not None:
            kept.path.parent.mkdir(exist_ok=True)
            jobs.append({**self._job(kept.type), "target": str(part), "kept": True})
            planned += [kept.type] * (kept.type != self.whole and kept.type not in types)
        log.info(
            "converting %s (%s, %s million parameters): %s",
            self.source.id,
            self.source.architecture,
            f"{self.source.parameters / 1e6:,.0f}",
            ", ".join(dict.fromkeys(job["type"] for job in jobs)) or "what sees or hears",
        )
        repeating: list[dict[str, Any]] = []

        def told(answer: dict[str, Any]) -> None:
            if (feed is not None and feed.told(answer)) or self.sending.told(answer):
                return
            if "made" in answer:
                if kept is not None:
                    part.replace(kept.path)
                then(answer["made"])
            elif answer["repeats"] is not None:
                repeating.append(answer)  # the unquantized model is asked when this worker is done
            else:
                finished(answer)

        deleted = options.delete_uploaded and bool(types)

        def work(progress: process.Progress) -> dict[str, Any]:
            with feed or nullcontext():
                return convert(
                    self.source,
                    options,
                    header=self.header,
                    logs=run.logs,
                    types=planned,
                    outtype=self.whole.lower(),
                    room=NO_LIMIT if deleted else free_bytes(run.folder) + bytes_in(folder),
                    need={
                        "other": (largest(self.source) if feed else 0)
                        + sum(one["bytes"] for name, one in self.chosen.items() if name in types),
                        "intermediate": int(kept is not None and kept.type == self.whole),
                    },
                    progress=progress,
                    one_pass={
                        "jobs": jobs,
                        "arriving": str(feed.folder) if feed else "",
                        "needs": sizes_of(self.source, options).made if deleted else None,
                        "made": self.made,
                        "spare": list(feed.spare) if feed else [],
                        **self._arguments(folder),
                    },
                    on_part=told,
                )

        return self._kept_to_the_end(folder, jobs, feed, work, lambda: _each(repeating, finished))

    def quantize(
        self,
        types: list[str],
        plans: Mapping[str, dict[str, Any]],
        paths: list[Path],
        there: Path | None,
        finished: Finished,
    ) -> None:
        """The same of a GGUF file, or of all its shards. ``there`` is that file itself where its
        own type is asked for.
        """
        jobs = []
        for name in types:
            job, plan = self._job(name), plans[name]
            if job["ready"]:
                plan = {**plan, "bytes": plan["converted_bytes"]}
            if job["ready"] and there is not None:
                job = {**job, "there": True, "target": str(there)}
            jobs.append({**job, "plan": plan})
        repeating: list[dict[str, Any]] = []

        def told(answer: dict[str, Any]) -> None:
            if self.sending.told(answer):
                return
            if answer["repeats"] is not None:
                repeating.append(answer)
            else:
                finished(answer)

        def work(progress: process.Progress) -> dict[str, Any]:
            process.call(
                "autoquant.backends.llamacpp.one_pass:from_files",
                log=self.run.logs,
                env=self.env,
                progress=progress,
                on_part=told,
                paths=[str(path) for path in paths],
                header=str(self.header),
                jobs=jobs,
                **self._arguments(self.run.jobs),
            )
            return {}

        self._kept_to_the_end(self.run.jobs, jobs, None, work, lambda: _each(repeating, finished))

    def _arguments(self, folder: Path) -> dict[str, Any]:
        return {
            "imatrix": str(self.imatrix or ""),
            "threads": self.options.cores,
            "split": self.options.split_bytes,
            "journal": str(folder / JOURNAL),
            "key": self.key,
            "gone": sorted(self.sending.gone),
            "sending": self.sending.how,
        }

    def _kept_to_the_end(
        self,
        folder: Path,
        jobs: list[dict[str, Any]],
        feed: Feed | None,
        work: Callable[[process.Progress], dict[str, Any]],
        done: Callable[[], None],
    ) -> dict[str, Any]:
        """Work in a folder of which nothing stays in the end."""
        folder.mkdir(parents=True, exist_ok=True)
        self.sending.begin()
        names = dict.fromkeys(job["type"] for job in jobs)
        try:
            with Bar(f"quantize {', '.join(names)}".strip()) as progress:
                try:
                    facts = work(progress)
                except ProcessFailed:
                    self.sending.failed()
                    raise
            done()
        except (AutoQuantError, OSError) as error:
            if not self._goes_on(error, feed):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder)
        if folder != self.run.jobs and not any(self.run.jobs.iterdir()):
            self.run.jobs.rmdir()
        return facts

    def _goes_on(self, error: AutoQuantError | OSError, feed: Feed | None) -> bool:
        """Whether what is written is gone on with by the next run: where something else failed than
        the making, and not for want of room on the disk, which what is written takes.
        """
        full = isinstance(error, OSError) or "no space left" in str(error)
        killed = isinstance(error, ProcessFailed) and bool(error.signal)
        elsewhere = self.sending.error is not None or (
            feed is not None and feed.failure is not None
        )
        return not full and (isinstance(error, HubFailed) or killed or elsewhere)

    def _job(self, name: str) -> dict[str, Any]:
        """One file to be; ``ready`` says that it is what the converter itself would write."""
        return {
            "type": name,
            "target": str(self.run.jobs / f"{self.stem}-{name}.gguf"),
            "ready": name == self.whole,
            "imatrix": file_type(name).imatrix != "no",
            "kept": False,
            "there": False,
            **({"plan": self.chosen[name]} if name in self.chosen else {}),
        }


def clear(run: RunFolder) -> None:
    """Remove what a killed run has made of types that are to be made otherwise now."""
    for left in run.jobs.iterdir() if run.jobs.is_dir() else ():
        if left.is_file():
            left.unlink()
        elif left.name != KEPT:
            shutil.rmtree(left)


def take_back(run: RunFolder, names: list[str]) -> None:
    """Files of these names that a run has moved into place, and was killed before it could note
    that, are where they were.
    """
    for path in run.folder.glob("*.gguf") if run.jobs.is_dir() else ():
        if gguf_head.SHARD.sub("", path.name).removesuffix(".gguf") in names:
            path.replace(run.jobs / path.name)


def _each(answers: list[dict[str, Any]], finished: Finished) -> None:
    for answer in answers:
        finished(answer)


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
