"""Shards that go where they are to go while others are still being written. Runs in a worker."""

from __future__ import annotations

import time
from pathlib import Path

from autoquant.backends.llamacpp import check
from autoquant.backends.llamacpp.targets import File, Target
from autoquant.core.errors import ProcessFailed
from autoquant.core.files import sha256_of
from autoquant.formats.gguf import Header
from autoquant.runtime.worker import Emit

SENT, TAKEN = "sent", "taken"  # what happens to shards: they are sent, or sent and taken away
HELD = 2  # shards that may wait to be taken away, so that the disk does not fill
GOING = "going"  # stands beside them while they are taken away; to take it away needs no room
EVERY = 0.05  # seconds between two looks


class Shards:
    """Each shard that is whole is looked at and told by ``emit``: ``{"whole": name, "type",
    "bytes", "sha256"}``. Of those that are ``taken`` away, few wait for it.
    """

    def __init__(self, header: str, emit: Emit, *, taken: bool) -> None:
        self.expected, self.emit, self.taken = Header(header), emit, taken
        self._told: dict[Path, File] = {}

    @classmethod
    def of(cls, sending: str, header: str, emit: Emit) -> Shards | None:
        """For what happens to shards; None if nothing does."""
        return cls(header, emit, taken=sending == TAKEN) if sending else None

    def whole(self, target: Target, file: File) -> None:
        """Tell of a file, if it is a shard, has every tensor, and is here. Raises CheckFailed if it
        is not as planned.
        """
        if file.left or file.gone or len(target.files) == 1 or target.job["kept"]:
            return
        if file.path in self._told:
            return
        self._told[file.path] = file
        file.close()  # one that is open would stay on the disk
        check.look(Header(file.path), file.path.name, self.expected, target.types)
        size, sha256 = file.path.stat().st_size, file.sha256 or sha256_of(file.path)
        told = {"type": target.job["type"], "bytes": size, "sha256": sha256}
        self.emit({"whole": file.path.name, **told})

    def wait(self) -> None:
        """Wait while too many are still to be taken away. Raises ProcessFailed if none will be."""
        while self.taken and sum(path.exists() for path in self._told) > HELD:
            if not all((path.parent / GOING).exists() for path in self._told):
                raise ProcessFailed("finished shards are not taken away")
            time.sleep(EVERY)
