"""GGUF types straight from a checkpoint: each tensor is converted once, quantized to every type
that is asked for, and written at its place in each file. The bytes are those that
llama_model_quantize makes of a converted file (``bench/one_pass.py`` compares them).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from autoquant.backends.llamacpp.arriving import Arriving
from autoquant.backends.llamacpp.ggml import Bytes, Floats, Ggml
from autoquant.backends.llamacpp.imatrix import read_imatrix
from autoquant.backends.llamacpp.types import TYPES
from autoquant.core import gguf_head
from autoquant.core.errors import InputError
from autoquant.runtime import trace
from autoquant.runtime.worker import Report

# weights of one piece: 32 MB as float32, and as much again of what it was
PIECE = 8 << 20
# weights that one thread quantizes at a time
TASK = 1 << 20
# bytes that may wait for a thread, so that none waits for work
AHEAD = 64 << 20
FLOAT16 = 65504.0  # its largest number
EMBEDDINGS = "token_embd.weight"  # an importance matrix has nothing that fits them, as a rule
DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Target:
    """A file to be: its ``head``, and each tensor's offset in it and type."""

    path: Path
    head: bytes
    size: int
    offsets: dict[str, int]
    types: dict[str, str]
    imatrix: dict[str, Floats]

    @classmethod
    def of(
        cls, job: dict[str, Any], head: gguf_head.Head, header: Path, imatrix: dict[str, Floats]
    ) -> Target:
        """The file of a job of :func:`check.quantize_and_verify`; one that is ``ready`` there is
        the converted file itself here. ``head`` is that of the file ``header``.
        """
        path, planned = Path(job["target"]), job["plan"]
        if job["ready"]:
            with open(header, "rb") as file:
                data = file.read(head.data_offset)
            offsets = {name: len(data) + one.offset for name, one in head.tensors.items()}
            types = {name: one.type for name, one in head.tensors.items()}
            return cls(path, data, header.stat().st_size, offsets, types, {})
        number = TYPES[job["type"]].number
        laid = gguf_head.quantized(head, planned["tensors"], planned["order"], number)
        data, offsets, size = laid
        return cls(path, data, size, offsets, planned["tensors"], imatrix if job["imatrix"] else {})


@dataclass
class Origins:
    """Where a converter's tensors are from, by their names in GGUF: the checkpoint's ``names``, and
    of those that are a tensor of it as it is, that one (gguf-py's LocalTensor), in ``plain``.
    """

    names: dict[str, str] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)


class OnePass:
    """The writing of all files of a run. ``journal`` keeps the names of the tensors that are
    written, after ``key`` and the types: what a run of the same key has written of these types is
    not written again.
    """

    def __init__(
        self,
        header: str,
        jobs: list[dict[str, Any]],
        *,
        imatrix: str,
        threads: int,
        journal: str,
        key: str,
    ) -> None:
        self.head = gguf_head.read(Path(header))
        weights = read_imatrix(imatrix) if imatrix else {}
        self.targets = [Target.of(job, self.head, Path(header), weights) for job in jobs]
        self.threads, self.ggml = threads, Ggml()
        self.journal, self.key = Path(journal), key
        self.types = {job["type"] for job in jobs}
        self.done = self._begin()

    def _begin(self) -> set[str]:
        """Make the files, unless they are there; the tensors that are in them."""
        lines = self.journal.read_text(encoding="utf-8").splitlines() if self._resumed() else []
        if lines[:1] == [self.key] and self.types <= set(lines[1].split(",")):
            return set(lines[2:])
        for target in self.targets:
            with open(target.path, "wb") as file:
                file.write(target.head)
                file.truncate(target.size)
        types = ",".join(sorted(self.types))
        self.journal.write_text(f"{self.key}\n{types}\n", encoding="utf-8")
        return set()

    def _resumed(self) -> bool:
        return self.journal.is_file() and all(
            target.path.is_file() and target.path.stat().st_size == target.size
            for target in self.targets
        )

    def write(
        self,
        tensors: dict[str, Any],
        origins: Origins,
        report: Report | None = None,
        arriving: Arriving | None = None,
    ) -> None:
        """Write the converter's ``tensors`` (name -> gguf-py's TensorInfo, which is emptied). Those
        that are plain are read piece by piece. Memory: a few pieces, and the largest tensor that is
        not, as it is and as float32. ``arriving`` are the files, if they come one by one.

        Raises InputError for values that are not finite, or that a type cannot hold.
        """
        for kind in {kind for target in self.targets for kind in target.types.values()}:
            self.ggml.begin(kind)
        self.names = origins.names
        total, written = sum(one.bytes for one in self.head.tensors.values()), 0
        ahead, most = 0, max(AHEAD, 8 * TASK * self.threads)
        opened = [os.open(target.path, os.O_WRONLY) for target in self.targets]
        waiting: deque[tuple[Future[None], int, str]] = deque()

        def finish(most: int) -> None:
            nonlocal written, ahead
            while ahead > most:
                task, size, last = waiting.popleft()
                task.result()
                written, ahead = written + size, ahead - size
                if last:
                    journal.write(f"{last}\n")
                    journal.flush()
                if report is not None:
                    report(written, total)

        try:
            with (
                open(self.journal, "a", encoding="utf-8") as journal,
                ThreadPoolExecutor(self.threads) as pool,
            ):
                try:
                    given = (
                        arriving.in_turn(tensors, self.done, lambda: finish(0))
                        if arriving
                        else iter(tensors.items())
                    )
                    for name, info in given:
                        if name not in self.done:
                            for row, raw, last in self._tasks(name, info, origins.plain.get(name)):
                                task = pool.submit(self._one, opened, name, row, raw)
                                waiting.append((task, raw.nbytes, name if last else ""))
                                ahead += raw.nbytes
                                finish(most)
                        info.tensor = None
                    finish(0)
                finally:
                    pool.shutdown(cancel_futures=True)
        finally:
            for file in opened:
                os.close(file)

    def _tasks(self, name: str, info: Any, leaf: Any) -> Iterator[tuple[int, Bytes, bool]]:
        """A tensor's rows [n, bytes] as it is converted, in parts for one thread each: the first
        row's number, the rows, and whether they are the last ones. A part has rows of one expert.
        """
        entry = self.head.tensors[name]
        width, rows = entry.shape[0], entry.elements // entry.shape[0]
        each = entry.shape[1] if len(entry.shape) > 2 else rows
        step = max(1, TASK // width)
        first = 0
        for raw in _pieces(entry, info, leaf):
            at = 0
            while at < len(raw):
                n = min(step, len(raw) - at, each - first % each)
                yield first, raw[at : at + n], first + n == rows
                at, first = at + n, first + n

    def _one(self, opened: list[int], name: str, row: int, raw: Bytes) -> None:
        """Quantize some rows to every type, and write them."""
        entry = self.head.tensors[name]
        values: Floats | None = None
        if entry.type[0] in "FB" or any(one.types[name] != entry.type for one in self.targets):
            values = self.ggml.floats(raw, entry.type)
            self._refuse_not_finite(name, row, values, entry.type)
        for target, file in zip(self.targets, opened, strict=True):
            kind = target.types[name]
            if kind == entry.type or values is None:
                data = raw
            else:
                if kind == "F16":
                    self._refuse_too_large(name, row, values)
                data = self.ggml.quantize(values, kind, self._importance(target, entry, name, row))
            _write(file, data, target.offsets[name] + row * data.shape[1])

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
            " cannot hold, which ends at 65,504: take precision bf16 (--precision bf16), and no F16"
            " among the types"
        )


def _write(file: int, data: Bytes, offset: int) -> None:
    view = np.ascontiguousarray(data).reshape(-1).data
    while view:
        n = os.pwrite(file, view, offset)
        view, offset = view[n:], offset + n


def _pieces(entry: gguf_head.Entry, info: Any, leaf: Any) -> Iterator[Bytes]:
    """A converted tensor's rows [n, bytes], some at a time where that can be."""
    rows = entry.elements // entry.shape[0]
    if leaf is not None and entry.elements > PIECE:
        step = max(1, PIECE // entry.shape[0])
        raw = leaf.mmap_bytes().reshape(rows, -1)
        for first in range(0, rows, step):
            yield _converted(raw[first : first + step], leaf.dtype, entry.type)
        return
    with trace.library("convert"):
        if isinstance(info.tensor, gguf.LazyChunkedTensor):
            whole = [np.asarray(one) for one in _chunks(info.tensor)]
            value = np.concatenate(whole)
        else:
            value = gguf.LazyNumpyTensor.to_eager(info.tensor)
    yield np.ascontiguousarray(value).view(np.uint8).reshape(rows, -1)


def _chunks(tensor: Any) -> Iterator[Any]:
    """What gguf-py's LazyChunkedTensor would write, one after the other."""
    for load in tensor._chunks:
        chunk = load()
        yield gguf.quants.quantize(chunk, tensor._qtype) if tensor._qtype is not None else chunk


def _converted(raw: Bytes, dtype: str, kind: str) -> Bytes:
    """Rows of a checkpoint's ``dtype`` as the converter makes them of a GGUF type."""
    if dtype == kind:
        return np.array(raw)  # off the mapped file
    import torch

    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    values = torch.from_numpy(np.array(raw)).view(dtypes[dtype]).float().numpy()
    made = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    return np.ascontiguousarray(made).view(np.uint8).reshape(len(raw), -1)


def watch(converter: Any) -> Origins:
    """Let a converter tell where its tensors are from; to be read when it has prepared them."""
    import torch
    from gguf.utility import LocalTensor

    origins = Origins()
    own = converter.modify_tensors

    def leaf(tensor: Any) -> Any:
        arguments: tuple[Any, ...] = getattr(tensor, "_args", ())
        if len(arguments) == 2 and arguments[1] is torch.float32:  # .to(float32)
            arguments = getattr(arguments[0], "_args", ())
        found = arguments[0] if len(arguments) == 1 else None
        return found if isinstance(found, LocalTensor) and found.dtype in DTYPES else None

    def modify_tensors(tensor: Any, name: str, block: Any) -> Iterator[tuple[str, Any]]:
        for new_name, made in own(tensor, name, block):
            found = leaf(tensor) if made is tensor else None
            origins.names[new_name] = name
            if found is not None:
                origins.plain[new_name] = found
            yield new_name, made

    converter.modify_tensors = modify_tensors
    return origins
