"""Shards that go to the Hub while others are still being written, and may be deleted then."""

from __future__ import annotations

import os
import threading
from collections.abc import Container
from pathlib import Path
from typing import Any

from autoquant.core.errors import AutoQuantError, HubFailed
from autoquant.core.journal import RunFolder
from autoquant.core.records import Stored
from autoquant.methods.gguf.options import GgufOptions

SENT, TAKEN = "sent", "taken"  # see backends.llamacpp.shards
GOING = "going"
STEP = "sent"  # begins the journal's name for a shard that is on the Hub, and no more here


class Sending:
    """What is done with the shards of a run: nothing if it is not uploaded, or is not cut. What the
    worker tells of them is for :meth:`told`. ``key`` is what they depend on; those of the types
    that ``stay`` are not sent.
    """

    def __init__(
        self, run: RunFolder, options: GgufOptions, key: str, stay: Container[str] = ()
    ) -> None:
        self.run, self.key, self.stay = run, key, stay
        self.how = ""
        if run.on_shard is not None and options.split_bytes:
            self.how = TAKEN if options.delete_uploaded else SENT
        # by name, those that are no more here; and all that are whole
        self.gone: dict[str, Stored] = {}
        self.where = {"upload": options.upload, "layout": options.layout}
        for step, record in dict(run.steps).items():  # uploads note theirs meanwhile
            facts = record["facts"]
            mine = step.startswith(f"{STEP} ") and record["key"] == key
            if self.how == TAKEN and mine and self.where.items() <= facts.items():
                stored = Stored(step.removeprefix(f"{STEP} "), facts["bytes"], facts["sha256"])
                self.gone[stored.name] = stored
        self.known = dict(self.gone)
        self._left = threading.Condition()
        self._count = 0
        self.error: BaseException | None = None

    def begin(self) -> None:
        """Let the worker know that its shards will be taken away."""
        if self.how == TAKEN:
            (self.run.jobs / GOING).touch()

    def told(self, answer: dict[str, Any]) -> bool:
        """Send a shard that is whole; False if the answer is about something else."""
        if "whole" not in answer:
            return False
        stored = Stored(answer["whole"], answer["bytes"], answer["sha256"])
        self.known[stored.name] = stored
        if answer["type"] in self.stay:
            return True
        place = self.run.jobs / stored.name
        if self.how == SENT:
            # it is moved when all is checked: what is sent has a name of its own
            link = self.run.work / f"sending-{stored.name}"
            try:
                os.link(place, link)
            except OSError:  # a file system without links: it is sent when all is checked
                return True
            place = link
        assert self.run.on_shard is not None
        with self._left:
            self._count += 1
        self.run.on_shard(
            answer["type"], stored, place, lambda to, error: self._done(stored, place, to, error)
        )
        return True

    def _done(
        self, stored: Stored, place: Path, to: dict[str, str] | None, error: BaseException | None
    ) -> None:
        """Take note that a shard is on the Hub; ``to`` says where. Runs in the sending thread."""
        if self.how == SENT:
            place.unlink(missing_ok=True)
        elif to is not None:
            facts = {"bytes": stored.bytes, "sha256": stored.sha256, **to, **self.where}
            # not of a run that was interrupted meanwhile: the next one finds it here
            if self.run.record(f"{STEP} {stored.name}", self.key, [], facts):
                self.gone[stored.name] = stored
                place.unlink()
        elif error is None:  # the Hub takes it with the commit only
            place.replace(self.run.work / place.name)
        with self._left:
            self._count -= 1
            if self.how == TAKEN and error is not None:
                self.error = self.error or error
                (self.run.jobs / GOING).unlink(missing_ok=True)
            self._left.notify_all()

    def wait(self) -> None:
        """Wait until every shard is sent that is to be deleted. Raises what went wrong."""
        with self._left:
            self._left.wait_for(lambda: self.how != TAKEN or not self._count or self.error)
        self.failed()

    def failed(self) -> None:
        """Raise what went wrong with a shard that is to be deleted."""
        if self.error is None:
            return
        if isinstance(self.error, AutoQuantError):
            raise self.error
        raise HubFailed(f"sending a shard failed: {self.error}")

    def files(self, begins: str) -> tuple[Stored, ...]:
        """The shards of a type, by how their names begin."""
        return tuple(self.known[name] for name in sorted(self.known) if name.startswith(begins))
