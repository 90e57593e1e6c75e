"""GGUF types straight from what a model is given as: each tensor is read once, quantized to every
type that is asked for, and written at its place in each file. The bytes are those that
llama_model_quantize makes of a converted file (``bench/one_pass.py`` compares them).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoquant.backends.llamacpp import check, given
from autoquant.backends.llamacpp.ggml import Bytes, Floats, Ggml
from autoquant.backends.llamacpp.given import Rows
from autoquant.backends.llamacpp.imatrix import read_imatrix
from autoquant.backends.llamacpp.shards import TAKEN, Shards
from autoquant.backends.llamacpp.targets import File, Target
from autoquant.core import gguf_head
from autoquant.core.errors import InputError
from autoquant.runtime import trace
from autoquant.runtime.worker import Emit, Report

# weights that one thread quantizes at a time
TASK = 1 << 20
# bytes that may wait for a thread, so that none waits for work
AHEAD = 64 << 20
FLOAT16 = 65504.0  # its largest number
# what to do about a value that float16 cannot hold, where the model is converted
PRECISION = "take precision bf16 (--precision bf16), and no F16 among the types"
EMBEDDINGS = "token_embd.weight"  # an importance matrix has nothing that fits them, as a rule

# the tensors in the order in which they can be read; it is given a function that waits until
# nothing reads any more from what was given
Turns = Callable[[Callable[[], None]], Iterator[str]]


@dataclass
class _Part:
    """Some rows of a tensor, from ``row`` on, that a thread makes into ``made``, for each target.
    ``size`` is in bytes as they were given, ``last`` says whether they are the tensor's last ones.
    """

    name: str
    row: int
    size: int
    last: bool
    task: Future[list[Bytes]]


class OnePass:
    """The writing of all files of a run. ``journal`` keeps the names of the tensors that are
    written, after ``key`` and the types: what a run of the same key has written of these types is
    not written again; nor are files that are ``gone``, by name, of such a run. ``instead`` is what
    to do about values that are too large for F16.
    """

    def __init__(
        self,
        header: str,
        jobs: list[dict[str, Any]],
        *,
        imatrix: str,
        threads: int,
        split: int,
        journal: str,
        key: str,
        gone: Sequence[str] = (),
        instead: str = PRECISION,
    ) -> None:
        self.head = gguf_head.read(Path(header))
        weights = read_imatrix(imatrix) if imatrix else {}
        self.targets = [Target.of(job, self.head, split, weights, gone) for job in jobs]
        self.threads, self.ggml, self.instead = threads, Ggml(), instead
        self.journal, self.key = Path(journal), key
        self.types = {job["type"] for job in jobs}
        self.names: Mapping[str, str] = {}
        self.done = self._begin()

    def _begin(self) -> set[str]:
        """Make the files, unless they are there; the tensors that are in them."""
        files = [file for target in self.targets for file in target.files]
        resumed = self.journal.is_file() and all(file.there for file in files)
        lines = self.journal.read_text(encoding="utf-8").splitlines() if resumed else []
        if lines[:1] == [self.key] and self.types <= set(lines[1].split(",")):
            for file in files:
                file.left -= set(lines[2:])
            return set(lines[2:])
        for left in set(self.journal.parent.glob("*.gguf")) - {file.path for file in files}:
            left.unlink()  # of a run that was asked for something else
        for file in files:
            file.begin()
        types = ",".join(sorted(self.types))
        self.journal.write_text(f"{self.key}\n{types}\n", encoding="utf-8")
        return set()

    def order(self) -> list[str]:
        """The names of the tensors that are to be written, best in this order: the files' hashes
        cost no reading then.
        """
        names = self.targets[0].file_of if self.targets else ()
        return [name for name in names if name not in self.done]

    def to_write(self) -> int:
        """Bytes that the files will take on the disk beside what they take now."""
        return sum(file.to_write() for target in self.targets for file in target.files)

    def write(
        self,
        turns: Turns,
        rows: Rows,
        names: Mapping[str, str] | None = None,
        report: Report | None = None,
        shards: Shards | None = None,
    ) -> None:
        """Write the tensors' ``rows`` in these ``turns``; ``names`` gives those by which a user
        knows them. ``shards`` gets each shard as soon as it is whole. Memory: a few pieces, and
        what ``rows`` takes.

        Raises InputError for values that are not finite, or that a type cannot hold.
        """
        for kind in {kind for target in self.targets for kind in target.types.values()}:
            self.ggml.begin(kind)
        self.names = names or {}
        ahead, most = 0, max(AHEAD, 8 * TASK * self.threads)
        written = sum(self.head.tensors[name].bytes for name in self.done)
        total = sum(one.bytes for one in self.head.tensors.values())
        files = [file for target in self.targets for file in target.files]
        waiting: deque[_Part] = deque()

        def finish(most: int) -> None:
            nonlocal written, ahead
            while ahead > most:
                part = waiting.popleft()
                self._count(part)
                written, ahead = written + part.size, ahead - part.size
                if part.last:
                    journal.write(f"{part.name}\n")
                    journal.flush()
                    whole(part.name)
                if report is not None:
                    report(written, total)

        def whole(name: str) -> None:
            if shards is not None:
                for target in self.targets:
                    shards.whole(target, target.file_of[name])

        for file in files:
            file.open()
        if shards is not None:  # of an earlier run
            for target in self.targets:
                for file in target.files:
                    shards.whole(target, file)
        try:
            with (
                open(self.journal, "a", encoding="utf-8") as journal,
                ThreadPoolExecutor(self.threads) as pool,
            ):
                try:
                    for name in turns(lambda: finish(0)):
                        if shards is not None:
                            shards.wait()
                        for row, raw, last in self._parts(name, rows):
                            task = pool.submit(self._one, name, row, raw)
                            waiting.append(_Part(name, row, raw.nbytes, last, task))
                            ahead += raw.nbytes
                            finish(most)
                    finish(0)
                finally:
                    pool.shutdown(cancel_futures=True)
        finally:
            for file in files:
                file.close()

    def hashes(self) -> dict[str, str]:
        """The sha256 of the files by name, as far as they are known without a reading."""
        files = (file for target in self.targets for file in target.files)
        return {file.path.name: file.sha256 for file in files if not file.left}

    def _parts(self, name: str, rows: Rows) -> Iterator[tuple[int, Bytes, bool]]:
        """A tensor's rows [n, bytes], in parts for one thread each: the first row's number, the
        rows, and whether they are the last ones. A part has rows of one expert.
        """
        entry = self.head.tensors[name]
        width, count = entry.shape[0], entry.elements // entry.shape[0]
        each = entry.shape[1] if len(entry.shape) > 2 else count
        step = max(1, TASK // width)
        first = 0
        for raw in rows(name):
            at = 0
            while at < len(raw):
                n = min(step, len(raw) - at, each - first % each)
                yield first, raw[at : at + n], first + n == count
                at, first = at + n, first + n

    def _one(self, name: str, row: int, raw: Bytes) -> list[Bytes]:
        """Quantize some rows to every type, and write them."""
        entry = self.head.tensors[name]
        values: Floats | None = None
        if entry.type[0] in "FB" or any(one.types[name] != entry.type for one in self.targets):
            values = self.ggml.floats(raw, entry.type)
            self._refuse_not_finite(name, row, values, entry.type)
        made = []
        for target in self.targets:
            kind = target.types[name]
            if kind == entry.type or values is None:
                data = raw
            else:
                if kind == "F16":
                    self._refuse_too_large(name, row, values)
                data = self.ggml.quantize(values, kind, self._importance(target, entry, name, row))
            data = np.ascontiguousarray(data)
            target.file_of[name].write(name, row * data.shape[1], data)
            made.append(data)
        return made

    def _count(self, part: _Part) -> None:
        """Take note of rows that are written, when they are."""
        for target, data in zip(self.targets, part.task.result(), strict=True):
            file: File = target.file_of[part.name]
            file.count(part.name, part.row * data.shape[1], data)
            if part.last:
                file.left.discard(part.name)

    def _importance(
        self, target: Target, entry: gguf_head.Entry, name: str, row: int
    ) -> Floats | None:
        """The importance of a row's weights: of experts, of this one's."""
        found = target.imatrix.get(name)
        width, experts = entry.shape[0], entry.shape[2] if len(entry.shape) > 2 else 1
        if found is not None and found.size != width * experts and name != EMBEDDINGS:
            raise InputError(
                f"imatrix: it has {found.size} values for {name}, where the model has"
                f" {width * experts}: it is another model's"
            )
        if found is None or found.size != width * experts:
            return None  # llama.cpp does without, too
        expert = row // entry.shape[1] if experts > 1 else 0
        return found[expert * width : (expert + 1) * width]

    def _refuse_not_finite(self, name: str, row: int, values: Floats, kind: str) -> None:
        finite = np.isfinite(values).all(axis=1)
        if finite.all():
            return
        where = row + int(finite.argmin())
        if kind == "F16" and not np.isnan(values).any():
            raise self._too_large(name, where, "values")
        raise InputError(
            f"{self.names.get(name, name)} has NaN or Inf values (first in row {where} of {name});"
            " the model is damaged"
        )

    def _refuse_too_large(self, name: str, row: int, values: Floats) -> None:
        most = np.abs(values).max(axis=1)
        if (most > FLOAT16).any():
            first = int((most > FLOAT16).argmax())
            raise self._too_large(name, row + first, f"the value {most[first]:.6g}")

    def _too_large(self, name: str, row: int, what: str) -> InputError:
        return InputError(
            f"{self.names.get(name, name)} has {what} (first in row {row} of {name}) that float16"
            f" cannot hold, which ends at 65,504: {self.instead}"
        )


def from_files(
    paths: list[str],
    header: str,
    jobs: list[dict[str, Any]],
    *,
    imatrix: str,
    threads: int,
    split: int,
    journal: str,
    key: str,
    gone: list[str],
    sending: str,
    report: Report,
    emit: Emit,
) -> None:
    """Make types of a GGUF file, or of all its shards, and verify them. ``header`` is its head (of
    shards, joined). A job of :meth:`Target.of` may be ``there``: its file is only verified. See
    :func:`check.verify_all` for what is emitted. Runs in a worker.
    """
    hashes: dict[str, str] = {}
    if making := [job for job in jobs if not job["there"]]:
        one_pass = OnePass(
            header,
            making,
            imatrix=imatrix,
            threads=threads,
            split=split,
            journal=journal,
            key=key,
            gone=gone,
            instead="take BF16 in its place",
        )
        shards = Shards.of(sending, header, emit)
        with trace.library("quantize types"):
            one_pass.write(
                lambda settle: iter(one_pass.order()),
                given.of_files(paths),
                report=report,
                shards=shards,
            )
        hashes = one_pass.hashes()
    check.verify_all(header, jobs, hashes, cores=threads, emit=emit, taken=sending == TAKEN)
