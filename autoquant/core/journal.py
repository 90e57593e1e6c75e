"""A run's folder: its lock, its journal of finished steps, and its scratch folder.

``<folder>/.autoquant/journal.json`` holds what the run was made from and, for each finished step, a
key (a hash of all it depends on), its output files with sizes and times, and facts. A step whose
key and files are unchanged is not done again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from autoquant.core.errors import InputError
from autoquant.core.files import existing_parent, sha256_of, write_atomically

if TYPE_CHECKING:
    from autoquant.core.records import Artifact, Stored

log = logging.getLogger(__name__)
Arrived = Callable[["dict[str, str] | None", "BaseException | None"], None]
FORMAT = 1
OURS = ".autoquant"


def read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A folder's journal: what it was made from, and its finished steps. Both empty if it has none.
    Raises InputError if it is damaged.
    """
    path = folder / OURS / "journal.json"
    if not path.is_file():
        return {}, {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return dict(data["identity"]), dict(data["steps"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); name another folder, or delete this one to start again"
        ) from None


def check_place(folder: Path, method: str, source_id: str) -> None:
    """Refuse a folder that a run cannot write into, before anything is downloaded for it. Raises
    InputError; writes nothing.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; name a folder")
    standing = existing_parent(folder)
    if not standing.is_dir():
        raise InputError(
            f"out: {standing} is a file, so there cannot be a folder {folder}; name another"
        )
    if not os.access(standing, os.W_OK | os.X_OK):
        raise InputError(f"out: nothing may be written into {standing}; name another folder")
    identity, steps = read(folder)
    others = (
        sorted(path.name for path in folder.iterdir() if path.name != OURS)
        if folder.is_dir()
        else []
    )
    if others and not identity:
        raise InputError(
            f"out: {folder} holds something else ({others[0]} …); name an empty or new folder"
        )
    if (others or steps) and (identity.get("method"), identity.get("source")) != (
        method,
        source_id,
    ):
        raise InputError(
            f"out: {folder} holds {identity.get('method')} files of {identity.get('source')}"
            " (another run); name another folder"
        )


class RunFolder:
    """A context manager around one run. Raises InputError if the folder holds something else or
    another run holds it.

    On an error or interrupt the scratch folder (with the large intermediate file) is removed,
    unless the run says that it ``keeps`` it. After
    bad input or an interrupt the whole folder goes too, if this run made it and finished nothing;
    after a failure the journal and the log stay to be read. A killed process leaves its scratch for
    the next run to resume. ``jobs`` is for libraries that resume their own work: what lies
    there stays after an interrupt or a failure, until a run takes it away.
    """

    def __init__(self, folder: Path, *, method: str, source_id: str, source_sha256: str) -> None:
        self.folder, self.ours = folder, folder / OURS
        self.work, self.logs, self._journal = (
            self.ours / "work",
            self.ours / "log.txt",
            self.ours / "journal.json",
        )
        self.jobs = self.ours / "jobs"
        # whether finished files in the scratch folder stay when a run is interrupted: they have
        # cost a download
        self.keeps = False
        self.identity: dict[str, Any] = {
            "format": FORMAT,
            "method": method,
            "source": source_id,
            "source_sha256": source_sha256,
        }
        self.steps: dict[str, dict[str, Any]] = {}
        self._mutex = threading.Lock()
        self.on_artifact: Callable[[Artifact], None] | None = None
        # sends a shard of a type from where it lies, and says to whom it may concern where it
        # arrived (None: it goes with the commit only), or what went wrong
        self.on_shard: Callable[[str, Stored, Path, Arrived], None] | None = None
        self._lock_file: Any = None
        self._made: Path | None = None

    def __enter__(self) -> RunFolder:
        check_place(self.folder, self.identity["method"], self.identity["source"])
        if not self.folder.exists():
            self._made = next(
                p for p in reversed([self.folder, *self.folder.parents]) if not p.exists()
            )
        try:
            self.ours.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"out: the folder {self.folder} cannot be made ({error.strerror}); name another"
            ) from None
        self._take_lock()
        if self._journal.is_file():
            try:
                identity, steps = read(self.folder)
            except InputError:
                self._release()
                raise
            if (
                identity != self.identity
                and not steps
                and not any(path.name != OURS for path in self.folder.iterdir())
            ):
                self._write()  # of a run of something else, killed before it had made anything
            elif identity != self.identity:
                self._release()
                raise InputError(
                    f"out: {self.folder} holds {identity.get('method')} files of"
                    f" {identity.get('source')} (other contents of the same name); name another"
                    " folder"
                )
            self.steps = steps
        else:
            # from now on what lies here is known to be ours, even if this process is killed before
            # its first step is done
            self._write()
        self.work.mkdir(exist_ok=True)
        keep = {output["name"] for step in self.steps.values() for output in step["outputs"]}
        for leftover in self.work.iterdir():  # what a killed run was in the middle of
            if f"{OURS}/work/{leftover.name}" not in keep:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or not self.keeps:
            shutil.rmtree(self.work, ignore_errors=True)
        if kind is None:
            self.logs.unlink(missing_ok=True)
        going_on = self.jobs.is_dir() and any(self.jobs.iterdir())
        kept = going_on or any(
            (self.folder / output["name"]).is_file()
            for step in self.steps.values()
            for output in step["outputs"]
        )
        if not self.steps and not going_on:
            self._journal.unlink(missing_ok=True)
        self._release()
        refused = kind is not None and issubclass(kind, (InputError, KeyboardInterrupt, SystemExit))
        if refused and self._made is not None and not kept:
            shutil.rmtree(self._made, ignore_errors=True)

    def _take_lock(self) -> None:
        self._lock_file = open(self.ours / "lock", "a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.seek(0)
            holder = self._lock_file.read().strip() or "unknown"
            self._lock_file.close()
            raise InputError(
                f"out: another run is writing into {self.folder}: {holder}. Wait for it or name"
                " another folder"
            ) from None
        self._lock_file.truncate(0)
        self._lock_file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock_file.flush()

    def _release(self) -> None:
        with self._mutex:
            if self._lock_file is not None:
                # the file stays: who has opened it must not hold another one's lock than a newcomer
                self._lock_file.truncate(0)
                self._lock_file.close()
                self._lock_file = None

    def passed(self, artifact: Artifact) -> None:
        """Tell whoever listens (an upload) that an artifact is in its place and has passed its
        checks.
        """
        if self.on_artifact is not None:
            self.on_artifact(artifact)

    def done(self, step: str, key: str) -> dict[str, Any] | None:
        """The facts of a finished step if its key is the same and its files are as it left them,
        else None.
        """
        record = self.steps.get(step)
        if record is None or record["key"] != key:
            return None
        for output in record["outputs"]:
            path = self.folder / output["name"]
            if not path.is_file() or path.stat().st_size != output["bytes"]:
                return None
            touched = path.stat().st_mtime_ns != output["mtime_ns"]
            if touched and (not output["sha256"] or sha256_of(path) != output["sha256"]):
                return None
        return dict(record["facts"])

    def record(
        self,
        step: str,
        key: str,
        outputs: Sequence[Path],
        facts: dict[str, Any],
        sha256: dict[str, str] | None = None,
    ) -> bool:
        """Note a finished step; its files must be in their final places. Written to disk before
        this returns; False, and nothing written, if the run is over.
        """
        listed = [
            {
                "name": path.relative_to(self.folder).as_posix(),
                "bytes": path.stat().st_size,
                "mtime_ns": path.stat().st_mtime_ns,
                "sha256": (sha256 or {}).get(path.relative_to(self.folder).as_posix(), ""),
            }
            for path in outputs
        ]
        with self._mutex:
            if self._lock_file is None:
                # an upload's thread that outlives an interrupted run: the folder may be another
                # run's by now
                return False
            self.steps[step] = {"key": key, "outputs": listed, "facts": facts}
            self._write()
            return True

    def _write(self) -> None:
        write_atomically(
            self._journal, json.dumps({"identity": self.identity, "steps": self.steps}, indent=1)
        )

    def forget(self, step: str) -> None:
        """Drop a step whose files are gone on purpose."""
        with self._mutex, contextlib.suppress(KeyError):
            del self.steps[step]
            self._write()

    def finish(self, path: Path, name: str = "") -> Path:
        """Move a finished file from the scratch folder into the run folder, under its own name or
        ``name``, which may have a folder in it.
        """
        target = self.folder / (name or path.name)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
        return target
