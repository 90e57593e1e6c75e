"""A checkpoint's files from the Hub, one after the other, into a folder of the run, and away again
when the converter needs them no more.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoquant.core.files import free_bytes
from autoquant.core.records import Source
from autoquant.hub import fetch
from autoquant.source.remote import listing_of, names

GOING = "going"  # what the converter's worker looks for, see backends.llamacpp.arriving
PATIENCE = 2.0  # seconds for a download to see that it is not wanted any more


class Feed:
    """One file at a time lies in ``folder``, or two where there is room, so that one comes while
    another is read. What the worker emits is for :meth:`told`; use as a context manager, which
    raises what went wrong with a download. The parts of the files that are ``spare`` (file, offset,
    bytes) are not gone with them: they are in the folder ``spared``, at their places in files that
    are holes otherwise.
    """

    def __init__(
        self, source: Source, folder: Path, spare: Sequence[tuple[str, int, int]] = ()
    ) -> None:
        self.source, self.spare = source, spare
        self.listing = listing_of(source)
        self.folder = folder
        self.spared = folder / "spared"
        self.failure: Exception | None = None
        self._room = threading.Semaphore(1)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def told(self, answer: dict[str, Any]) -> bool:
        """Do what the worker asks for; False if it asks for nothing."""
        if "fetch" in answer:
            wanted = set(answer["fetch"])
            for left in self.folder.glob("*.safetensors*"):
                if left.name.removesuffix(".part") not in wanted:
                    left.unlink()  # a killed run had done with it
            # spare parts are there twice in the end: in what they are made into, too
            needed = answer["needs"] + 2 * sum(size for _, _, size in self.spare)
            if free_bytes(self.folder) > needed + 2 * largest(self.source):
                self._room.release()
            # daemon: an interrupt need not wait for a large file
            self._thread = threading.Thread(target=self._run, args=(answer["fetch"],), daemon=True)
            self._thread.start()
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
                    place = self.folder / name
                    fetch.fetch_one(self.listing, name, place, self._stopped.is_set)
        except Exception as failure:  # noqa: BLE001
            if self._stopped.is_set():
                return
            # raised where the run waits for the worker, which ends when it sees that the mark is
            # gone
            self.failure = failure
            (self.folder / GOING).unlink(missing_ok=True)

    def __enter__(self) -> Feed:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / GOING).touch()
        if self.spare and not self.spared.exists():
            outlined(self.source.folder, self.spared)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._room.release()
        if self._thread is not None:
            self._thread.join(PATIENCE)
        if self.failure is not None:
            raise self.failure from None


def outlined(folder: Path, target: Path) -> None:
    """A folder like one of headers and holes, to be filled: the weights' files copied as such, the
    others as links.
    """
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            with open(path, "rb") as file, open(part / path.name, "wb") as out:
                length = file.read(8)
                out.write(length + file.read(int.from_bytes(length, "little")))
                out.truncate(path.stat().st_size)
        else:
            (part / path.name).symlink_to(path.resolve())
    part.replace(target)


def largest(source: Source) -> int:
    """Bytes of the largest weight file."""
    own = names(source)
    return max(file.bytes for file in listing_of(source).files if file.name in own)
