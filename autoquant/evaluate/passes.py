"""The pieces of work of measuring, each in a worker process: what enters the unquantized model's
output head (its final hidden states) is computed once and kept; a file is then measured by its own,
or by llama.cpp's logits, against logits made of those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from autoquant.core.errors import CheckFailed, InputError
from autoquant.core.files import sha256_of
from autoquant.core.records import LLAMA_CPP, TRANSFORMERS, WEIGHTS
from autoquant.evaluate import models
from autoquant.evaluate.scoring import Measure, hash_of, predicting, targets_of
from autoquant.forward import head
from autoquant.forward.blockwise import Blockwise
from autoquant.forward.places import Place, place
from autoquant.runtime import trace
from autoquant.runtime.worker import Emit, Report


class _Progress:
    """Counts blocks of one model after the other, and parts of a measurement."""

    def __init__(self, report: Report | None) -> None:
        self._report, self.done, self.total = report, 0, 1

    def __call__(self, count: int = 1) -> None:
        self.done += count
        if self._report is not None:
            self._report(min(self.done, self.total), self.total)


def reference(
    source: Mapping[str, Any],
    chunks: list[list[int]],
    target: str,
    *,
    scored: str,
    threads: int,
    text_sha256: str,
    kinds: list[str],
    plan: Mapping[str, Any] | None = None,
    report: Report | None = None,
    emit: Emit,
) -> dict[str, Any]:
    """Run the unquantized model and write its final hidden states to ``target``, float32 .npy
    [chunks, predictions, width], and its log-probabilities of the scored tokens to ``scored`` (see
    Measure.write). Returns its own ``row`` and the ``sha256`` of the first file.
    """
    progress = _Progress(report)
    where = place(plan, emit)
    model = models.opened(source, where, threads=threads, emit=emit, done=progress)
    progress.total = len(model.units) + len(chunks)
    hidden = _final(model, chunks)
    with open(target, "wb") as file:
        np.save(file, hidden.numpy())
    measure, last = Measure(), head.Head(model)
    for i, chunk in enumerate(chunks):
        measure.add(last.logits(hidden[i : i + 1])[0], targets_of(chunk))
        progress()
    return {
        "row": _row(measure, TRANSFORMERS, chunks, text_sha256, kinds, scored),
        "sha256": sha256_of(Path(target)),
    }


def log_probabilities(
    path: str,
    chunks: list[list[int]],
    target: str,
    *,
    scored: str,
    threads: int,
    text_sha256: str,
    kinds: list[str],
    repack: bool,
    report: Report | None = None,
) -> dict[str, Any]:
    """The same of a source that is a GGUF file, by llama.cpp: its log-probabilities [predictions,
    vocabulary] are kept as float32 .npy.
    """
    import torch

    open_memmap: Any = np.lib.format.open_memmap  # untyped in NumPy's stubs
    measure, out = Measure(), None
    for i, logits in enumerate(_by_llama_cpp(path, chunks, threads, repack)):
        measure.add(torch.from_numpy(logits), targets_of(chunks[i]))
        n, vocabulary = logits.shape
        if out is None:
            shape = (n * len(chunks), vocabulary)
            out = open_memmap(target, mode="w+", dtype=np.float32, shape=shape)
        out[i * n : (i + 1) * n] = torch.log_softmax(torch.from_numpy(logits), dim=1).numpy()
        if report is not None:
            report(i + 1, len(chunks))
    del out  # written
    return {
        "row": _row(measure, LLAMA_CPP, chunks, text_sha256, kinds, scored),
        "sha256": sha256_of(Path(target)),
    }


def by_llama_cpp(
    path: str,
    chunks: list[list[int]],
    *,
    source: Mapping[str, Any] | None,
    kept: str,
    sha256: str,
    scored: str,
    threads: int,
    text_sha256: str,
    kinds: list[str],
    repack: bool,
    plan: Mapping[str, Any] | None = None,
    report: Report | None = None,
    emit: Emit,
) -> dict[str, Any]:
    """Measure a GGUF file that llama.cpp runs. ``kept`` is what :func:`reference` has written of
    the ``source``, or :func:`log_probabilities` where there is none. The file's log-probabilities
    of the scored tokens go to ``scored``, unless that is empty. ``plan`` says where the reference's
    head is.
    """
    import torch

    torch.set_num_threads(threads)
    where = place(plan)
    measure, known = Measure(), _Reference(source, kept, sha256, where, threads, emit)
    for i, logits in enumerate(_by_llama_cpp(path, chunks, threads, repack)):
        measure.add(torch.from_numpy(logits), targets_of(chunks[i]), known.logits(i, len(chunks)))
        if report is not None:
            report(i + 1, len(chunks))
    return _row(measure, LLAMA_CPP, chunks, text_sha256, kinds, scored)


def by_blocks(
    files: Sequence[Mapping[str, Any]],
    chunks: list[list[int]],
    *,
    source: Mapping[str, Any],
    kept: str,
    sha256: str,
    threads: int,
    text_sha256: str,
    kinds: list[str],
    plan: Mapping[str, Any] | None = None,
    report: Report | None = None,
    emit: Emit,
) -> list[dict[str, Any]]:
    """Measure files (see models; each with ``states``, the path where its final hidden states are
    kept until all are measured, and maybe ``scored``, that of its log-probabilities of the scored
    tokens), one after the other, and then beside the reference chunk by chunk at their heads. The
    rows in order.
    """
    progress, opened, hidden = _Progress(report), list[Blockwise](), list[Any]()
    where = place(plan, emit)
    for file in files:
        model = models.opened(file, where, threads=threads, emit=emit, done=progress)
        opened.append(model)
        progress.total = len(files) * (len(model.units) + len(chunks))
        states = Path(file["states"])
        if not states.is_file():
            with open(states.with_suffix(".part"), "wb") as out:
                np.save(out, _final(model, chunks).numpy())
            states.with_suffix(".part").replace(states)
        else:
            progress(len(model.units))
        model.close()
        hidden.append(np.load(states, mmap_mode="r"))
    known = _Reference(source, kept, sha256, where, threads, emit, share=1 + len(files))
    heads = [head.Head(model, share=1 + len(files)) for model in opened]
    measures = [Measure() for _ in files]
    for i, chunk in enumerate(chunks):
        wanted = known.logits(i, len(chunks))
        for last, states, measure in zip(heads, hidden, measures, strict=True):
            measure.add(last.logits(_tensor(states[i : i + 1]))[0], targets_of(chunk), wanted)
            progress()
    engines = [WEIGHTS if file.get("gguf") else TRANSFORMERS for file in files]
    return [
        _row(measure, engine, chunks, text_sha256, kinds, file.get("scored", ""))
        for measure, engine, file in zip(measures, engines, files, strict=True)
    ]


def _row(
    measure: Measure,
    engine: str,
    chunks: list[list[int]],
    text_sha256: str,
    kinds: list[str],
    scored: str,
) -> dict[str, Any]:
    """The figures; the log-probabilities that they are made of go to ``scored``, if that is a
    path. Raises CheckFailed if these are not finite.
    """
    if not all(np.isfinite(one).all() for one in measure.nll):
        raise CheckFailed("the model's predictions on this text are not finite (NaN or Inf)")
    if scored:
        measure.write(Path(scored))
    return asdict(measure.result(engine, text_sha256, kinds, hash_of(chunks)))


class _Reference:
    """The unquantized model's logits, of what was kept of it."""

    def __init__(
        self,
        source: Mapping[str, Any] | None,
        kept: str,
        sha256: str,
        where: Place,
        threads: int,
        emit: Emit,
        share: int = 1,
    ) -> None:
        if sha256_of(Path(kept)) != sha256:
            raise InputError(f"{kept} is damaged: remove it, and measure again")
        self._kept = np.load(kept, mmap_mode="r")
        self._head = None
        if source is not None:
            model = models.opened(source, where, threads=threads, emit=emit)
            self._head = head.Head(model, share=share)

    def logits(self, chunk: int, chunks: int) -> Any:
        """Those of one chunk's predictions [n, vocabulary]."""
        if self._head is None:
            n = len(self._kept) // chunks
            return _tensor(self._kept[chunk * n : (chunk + 1) * n])
        return self._head.logits(_tensor(self._kept[chunk : chunk + 1]))[0]


def _final(model: Blockwise, chunks: list[list[int]]) -> Any:
    """The final hidden states of the tokens that predict one that is scored."""
    import torch

    with trace.library("transformers forward"):
        keep = predicting(len(chunks[0])) + 1
        return head.final(model, torch.tensor(chunks), keep)[:, :-1].contiguous()


def _by_llama_cpp(path: str, chunks: list[list[int]], threads: int, repack: bool) -> Iterator[Any]:
    from autoquant.backends.llamacpp.library import log_softmax_chunks

    return log_softmax_chunks(path, chunks, threads=threads, repack=repack)


def _tensor(values: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(values))
