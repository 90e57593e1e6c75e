"""A run of a library's own converter: what each of its bitrates needs, and what the journal knows
of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

from autoquant import calibration
from autoquant.backends.exllama import Environment
from autoquant.core.journal import RunFolder
from autoquant.core.records import Artifact, Snapshot
from autoquant.methods.bitrates.options import BitrateOptions
from autoquant.runtime import environments, process
from autoquant.source.layers import linears, weights_of_blocks

log = logging.getLogger(__name__)
O = TypeVar("O", bound=BitrateOptions)


class BitrateWork(Generic[O]):
    """One run: its source, its calibration text, its interpreter."""

    machine: ClassVar[Environment]

    def __init__(self, snapshot: Snapshot, options: O, run: RunFolder) -> None:
        self.snapshot, self.options, self.run, self.source = snapshot, options, run, snapshot.source
        self.layers = linears(self.source)
        self.blocks = weights_of_blocks(self.layers)
        self.length = min(int(options.calibration_length), self.source.context)
        library = self.machine.library
        self.version = f"{library} {environments.version(library)}"
        self.text = None if options.own_text else calibration.documents(options, self.source.folder)
        self._python: str | None = None

    @property
    def python(self) -> str:
        """The interpreter that has the library, with its extension compiled."""
        if self._python is None:
            # looks at the machine again: other options than those of a finished run come here
            # unasked
            self._python = self.machine.ready(self.run.logs)
        return self._python

    def text_name(self) -> str:
        """The calibration text in words."""
        own = f"the text that comes with {self.machine.library}"
        return own if self.text is None else self.text.name

    def refuse_damaged(self) -> None:
        """Hours with damaged weights would be in vain. Raises InputError."""
        process.call(
            "autoquant.backends.folder:finite",
            log=self.run.logs,
            model=str(self.snapshot.folder),
        )

    def known(self, type: str, key: str) -> Artifact | None:
        """An artifact that the journal knows as done."""
        facts = self.run.done(f"quantize {type}", key)
        return None if facts is None else Artifact.from_json(facts)

    def once(self, type: str, key: str, make: Callable[[], Artifact]) -> Artifact:
        """An artifact: the one that the journal knows, or a new one, which is noted there."""
        artifact = self.known(type, key)
        if artifact is None:
            self.run.jobs.mkdir(exist_ok=True)
            artifact = make()
            self.run.record(
                f"quantize {type}",
                key,
                [self.run.folder / stored.name for stored in artifact.files],
                artifact.to_json(),
                {stored.name: stored.sha256 for stored in artifact.files},
            )
        self.run.passed(artifact)
        for note in artifact.notes:
            log.warning("%s: %s", type, note)
        return artifact
