"""Measuring the artifacts of one source: the unquantized model once, then each against it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

from autoquant.core.bundled import EVALUATION_TEXT
from autoquant.core.errors import ProcessFailed
from autoquant.core.files import write_atomically
from autoquant.core.records import Evaluation
from autoquant.core.texts import read_text
from autoquant.evaluate.scoring import CONTEXT
from autoquant.runtime import process

log = logging.getLogger(__name__)


# --- the parent's side ----------------------------------------------------------------------------


class Evaluator:
    """Measures artifacts of one source on one text. Cheap to make; tokens and reference are
    computed when first needed.

    ``gguf`` is the source itself where it is a GGUF file: llama.cpp then gives tokens and
    reference. ``cache`` is the folder where references are kept: ``<key>.npy`` (float32
    log-probabilities, 4 · vocabulary · tokens bytes), ``<key>.json`` (the unquantized model's own
    figures) and ``<key>.tokens.json`` (the text as token ids); the key covers the source's hash,
    the text, and how it is cut.
    """

    def __init__(
        self,
        folder: Path,
        source_sha256: str,
        *,
        text: str,
        chunks: int,
        context: int,
        cache: Path,
        logs: Path,
        threads: int,
        env: dict[str, str] | None = None,
        gguf: Path | None = None,
    ) -> None:
        self.gguf = gguf
        self.folder, self.source_sha256, self.cache, self.logs, self.threads, self.env = (
            folder,
            source_sha256,
            cache,
            logs,
            threads,
            env or {},
        )
        self.text = read_text(text, "eval_text", EVALUATION_TEXT)
        self.text_sha256 = hashlib.sha256(self.text.encode()).hexdigest()
        self.wanted, self.context = chunks, min(CONTEXT, context)
        self._chunks: list[list[int]] | None = None
        self._lock = threading.Lock()  # several artifacts are measured at once
        self._repack = True

    def key(self) -> str:
        """What a measurement depends on beside the artifact itself."""
        return hashlib.sha256(
            json.dumps([self.source_sha256, self.text_sha256, self.wanted, self.context]).encode()
        ).hexdigest()[:24]

    def chunks(self) -> list[list[int]]:
        """The token ids, [n][context]; kept beside the references, for starting a process to
        tokenize takes longer than the run of a small model.
        """
        with self._lock:
            if self._chunks is None:
                kept = self.cache / f"{self.key()}.tokens.json"
                if kept.is_file():
                    self._chunks = json.loads(kept.read_text(encoding="utf-8"))
                else:
                    # 12 characters a token is more than any tokenizer needs: do not tokenize a
                    # whole library for 20 chunks
                    text = self.text[: self.wanted * self.context * 12]
                    answer = process.call(
                        "autoquant.evaluate.scoring:tokenize",
                        log=self.logs,
                        env=self.env,
                        folder=str(self.gguf or self.folder),
                        text=text,
                        chunks=self.wanted,
                        context=self.context,
                    )
                    self.cache.mkdir(parents=True, exist_ok=True)
                    write_atomically(kept, json.dumps(answer["chunks"]), shared=True)
                    self._chunks = [list(chunk) for chunk in answer["chunks"]]
            return self._chunks

    def reference(
        self, progress: process.Progress | None = None, gguf: Path | None = None
    ) -> tuple[Path, Evaluation]:
        """The unquantized model's log-probabilities (computed unless cached) and its own figures.

        Through transformers in float32 from the source folder; or, if ``gguf`` is given (the source
        is too large for that, or a GGUF file itself), from this GGUF file through llama.cpp.
        """
        gguf = gguf or self.gguf
        name = self.key() + ("-gguf" if gguf else "")
        array, facts = self.cache / f"{name}.npy", self.cache / f"{name}.json"
        if not (array.is_file() and facts.is_file()):
            chunks = self.chunks()
            self.cache.mkdir(parents=True, exist_ok=True)
            part = self.cache / f".{name}.{os.getpid()}.part.npy"
            try:
                answer = self._score(
                    "gguf" if gguf else "folder",
                    gguf or self.folder,
                    chunks,
                    threads=self.threads,
                    progress=progress,
                    save=str(part),
                )
                os.replace(part, array)
            finally:
                part.unlink(missing_ok=True)
            write_atomically(facts, json.dumps(answer), shared=True)
        return array, Evaluation(**json.loads(facts.read_text(encoding="utf-8")))

    def measure(
        self,
        kind: str,
        path: Path,
        reference: Path,
        *,
        threads: int,
        children: process.Children | None = None,
        progress: process.Progress | None = None,
    ) -> Evaluation:
        """Measure one artifact against the reference."""
        return Evaluation(
            **self._score(
                kind,
                path,
                self.chunks(),
                threads=threads,
                children=children,
                progress=progress,
                reference=str(reference),
            )
        )

    def _score(self, kind: str, path: Path, chunks: list[list[int]], **more: Any) -> dict[str, Any]:
        """:func:`score` in a worker. llama.cpp's kernels for repacked weights crash on some
        machines (such as virtual ones that report AMX without offering it): a worker that dies of
        that is started again without them.
        """

        def attempt() -> dict[str, Any]:
            return dict(
                process.call(
                    "autoquant.evaluate.scoring:score",
                    log=self.logs,
                    env=self.env,
                    kind=kind,
                    path=str(path),
                    chunks=chunks,
                    text_sha256=self.text_sha256,
                    repack=self._repack,
                    **more,
                )
            )

        tried = self._repack
        try:
            return attempt()
        except ProcessFailed as failure:
            if (
                not tried
                or kind != "gguf"
                or failure.signal
                not in (
                    signal.SIGSEGV,
                    signal.SIGILL,
                    signal.SIGBUS,
                    signal.SIGABRT,
                )
            ):
                raise
            log.warning(
                "llama.cpp crashed on this processor while running %s; trying again without"
                " repacked weights",
                path.name,
            )
            self._repack = False
            return attempt()

    def reference_bytes(self, vocab: int) -> int:
        """What the reference will take on the disk."""
        return 4 * vocab * self.wanted * (self.context // 2)
