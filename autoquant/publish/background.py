"""Uploading each artifact while the next is being made."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from autoquant.core.errors import HubFailed
from autoquant.core.journal import Arrived
from autoquant.core.options import UploadOptions
from autoquant.core.records import Artifact, Receipt, RunRecord, Source, Stored
from autoquant.hub.client import Client
from autoquant.publish.send import Sender, _bars, intend, upload
from autoquant.publish.upload import (
    Item,
    place,
    private,
    remote_name,
)

if TYPE_CHECKING:
    from autoquant.core.journal import RunFolder


log = logging.getLogger(__name__)
Dropped = Callable[[BaseException], None]


class Background:
    """Two threads that send files while others are being made: one hashes while the other's bytes
    are on their way.

    The first error is kept, later jobs are dropped, and :meth:`join` raises it.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], Dropped] | None] = (
            queue.SimpleQueue()
        )
        self._error: BaseException | None = None
        self.stopped = threading.Event()
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(_bars(shown=False))
        # daemon: an interrupt need not wait for a large file
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name=f"autoquant-upload-{i}")
            for i in range(2)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (given := self._jobs.get()) is not None:
            job, dropped = given
            error = self._error
            if error is None:
                try:
                    job()
                    continue
                except Exception as failure:  # noqa: BLE001
                    # raised by join, in the thread that waits
                    error = self._error = self._error or failure
            with contextlib.suppress(OSError):  # its folder may be gone with the run
                dropped(error)

    def submit(self, job: Callable[[], None], dropped: Dropped = lambda error: None) -> None:
        """Add a job; they are begun in order. One that is ``dropped``, or fails, is told why."""
        self._jobs.put((job, dropped))

    def _end(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        self._quiet.close()

    def join(self) -> None:
        """Wait for all jobs and raise the first error."""
        self._end()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """Do not begin the jobs that are still waiting; those that are at work see ``stopped``."""
        self.stopped.set()
        self._error = self._error or InterruptedError()
        self._end()


class BackgroundUpload:
    """What a run uses to send each artifact as soon as it has passed its checks."""

    def __init__(
        self, options: UploadOptions, client: Client, source: Source, run: RunFolder
    ) -> None:
        self.options, self.source, self.run = options, source, run
        self.sender, self._background = Sender(client), Background()
        self.sender.remember(run.steps)
        self._made: set[tuple[str, str]] = set()
        self._making = threading.Lock()

    def artifact(self, artifact: Artifact) -> None:
        """Send the files of an artifact that has passed its checks."""
        repo, branch = place(self.options, artifact.type)

        def job() -> None:
            self._make(repo, branch)
            for stored in artifact.files:
                if self._background.stopped.is_set():
                    return
                self.sender.send(
                    repo,
                    branch,
                    Item(
                        remote_name(self.options, artifact, stored.name),
                        self.run.folder / stored.name,
                        stored.bytes,
                        stored.sha256,
                    ),
                )

        self._background.submit(job)

    def _make(self, repo: str, branch: str) -> None:
        with self._making:
            if (repo, branch) not in self._made and not self._background.stopped.is_set():
                intend(self.run, repo, branch)
                self.sender.make(repo, branch, private(self.options, self.source))
                self._made.add((repo, branch))

    def shard(self, type: str, stored: Stored, path: Path, arrived: Arrived) -> None:
        """Send a shard of a file whose others are still being made, from where it lies now."""
        repo, branch = place(self.options, type)

        def job() -> None:
            self._make(repo, branch)
            item = Item(stored.name, path, stored.bytes, stored.sha256)
            ahead = self.sender.send(repo, branch, item)._is_uploaded
            if not ahead:  # its bytes go with the commit, from where it lies then
                self.sender.forget(repo, branch, item)
            arrived({"repo": repo, "branch": branch} if ahead else None, None)

        self._background.submit(job, lambda error: arrived(None, error))

    def finish(self, result: RunRecord) -> tuple[Receipt, ...]:
        """Wait for what is on its way, then send what is missing, commit and compare."""
        try:
            self._background.join()
        except HubFailed as failure:
            # it may have been a bad hour: everything that is missing is tried once more
            log.warning("%s", failure)
        return upload(self.sender, result, self.options, self.run)

    def abandon(self) -> None:
        """Stop after the file that is on its way."""
        self._background.abandon()
