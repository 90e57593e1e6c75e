"""A checkpoint's files from the Hub, one after the other, into a folder of the run, and away again
when the converter needs them no more.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from autoquant.core.records import Source
from autoquant.hub import fetch, look

FAILED = "failed"  # what the converter's worker looks for, see backends.llamacpp.arriving


class Feed:
    """``at_once`` files at most lie in ``folder``: with two, one comes while another is read. What
    the worker emits is for :meth:`told`; use as a context manager, which raises what went wrong
    with a download.
    """

    def __init__(self, source: Source, folder: Path, at_once: int) -> None:
        assert source.revision is not None
        self.listing = look.known(source.id, source.revision, source.tag)
        self.folder = folder
        self.failure: Exception | None = None
        self._room = threading.Semaphore(at_once)
        self._stopped = threading.Event()

    def told(self, answer: dict[str, Any]) -> bool:
        """Do what the worker asks for; False if it asks for nothing."""
        if "fetch" in answer:
            # daemon: an interrupt need not wait for a large file
            threading.Thread(target=self._run, args=(answer["fetch"],), daemon=True).start()
        elif "release" in answer:
            (self.folder / answer["release"]).unlink()
            self._room.release()
        else:
            return False
        return True

    def _run(self, names: list[str]) -> None:
        try:
            for name in names:
                self._room.acquire()
                if self._stopped.is_set():
                    return
                if not (self.folder / name).is_file():
                    fetch.fetch_one(self.listing, name, self.folder / name)
        except Exception as failure:  # noqa: BLE001
            # raised where the run waits for the worker, which ends when it sees the mark
            self.failure = failure
            (self.folder / FAILED).touch()

    def __enter__(self) -> Feed:
        self.folder.mkdir(exist_ok=True)
        (self.folder / FAILED).unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._room.release()
        if self.failure is not None:
            raise self.failure from None


def largest(source: Source) -> int:
    """Bytes of the largest weight file."""
    assert source.revision is not None
    listing = look.known(source.id, source.revision, source.tag)
    return max(file.bytes for file in listing.files if file.name in source.weights)


def hashes(source: Source) -> dict[str, str]:
    """The sha256 of each file by name, as the Hub lists them; of small ones by their bytes."""
    from autoquant.core.files import sha256_of

    assert source.revision is not None
    listing = look.known(source.id, source.revision, source.tag)
    return {
        file.name: file.sha256 or sha256_of(listing.folder / file.name) for file in listing.files
    }
