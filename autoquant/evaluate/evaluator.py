"""Measuring the artifacts of one source: the unquantized model once, then each against it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant.core.bundled import EVALUATION
from autoquant.core.errors import ProcessFailed
from autoquant.core.files import key_of, sha256_of, write_atomically
from autoquant.core.records import Evaluation
from autoquant.core.texts import enough, parts
from autoquant.core.version import __version__
from autoquant.evaluate.scoring import CONTEXT
from autoquant.forward.places import Places, Plan
from autoquant.runtime import environments, process

log = logging.getLogger(__name__)


# what figures depend on beside files and text: what makes token ids of it, weights of files (an
# adapter's too), and runs models. Not the device: see forward.places
ENGINES = (
    "transformers", "tokenizers", "sentencepiece", "tiktoken", "jinja2", "numpy", "peft", "torch",
    "llama-cpp-python",
)  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """What is kept of the unquantized model: a file and its sha256, its own figures, and the file
    of its log-probabilities of the ``scored`` tokens. ``source`` is that model, as evaluate.models
    takes it; None if it is a GGUF file that llama.cpp has run.
    """

    path: Path
    sha256: str
    row: Evaluation
    scored: Path
    source: dict[str, Any] | None

    def arguments(self) -> dict[str, Any]:
        """What a measurement is told of it."""
        return {"source": self.source, "kept": str(self.path), "sha256": self.sha256}


class Evaluator:
    """Measures artifacts of one source on one text. Cheap to make; tokens and reference are
    computed when first needed.

    ``source`` tells the unquantized model (see evaluate.models), whose tokenizer gives the tokens;
    where it is a GGUF file, ``gguf`` is that, and llama.cpp gives tokens and reference. ``cache``
    is the folder where references are kept: ``<key>.npy``, ``<key>.json`` (its hash, and the
    unquantized model's own figures), ``<key>.scored.npy`` (its log-probabilities of the scored
    tokens) and ``<key>.tokens.json`` (the text as token ids); the key covers the hash of all of the
    source's files, the text and how it is cut, and the versions of what computes. Of a GGUF file
    that stands for the source the key covers what it is made with (``stand_in``: precision,
    pre-tokenizer, converter), and that of its reference the file's own hash too. ``env`` and
    ``python`` are of the workers, and ``serve`` gives what prepares their arguments.
    """

    def __init__(
        self,
        source: Mapping[str, Any],
        source_sha256: str,
        *,
        text: str,
        chunks: int,
        context: int,
        cache: Path,
        logs: Path,
        threads: int,
        env: Mapping[str, str] | None = None,
        python: str = "",
        serve: Callable[[], AbstractContextManager[Callable[[dict[str, Any]], dict[str, Any]]]],
        gguf: Path | None = None,
    ) -> None:
        self.source, self.gguf = dict(source), gguf
        self.source_sha256, self.cache, self.logs = source_sha256, cache, logs
        self.threads, self.env, self.python = threads, dict(env or {}), python
        self.serve, self.stand_in = serve, ""
        self.parts = parts(text, "eval_text", EVALUATION)
        said = json.dumps(self.parts, ensure_ascii=False)
        self.text_sha256 = hashlib.sha256(said.encode()).hexdigest()
        self.wanted, self.context = chunks, min(CONTEXT, context)
        self._cut: tuple[list[list[int]], list[str]] | None = None
        self._lock = threading.Lock()  # several artifacts are measured at once
        self._repack, self._places = True, Places()

    def key(self) -> str:
        """What a measurement depends on beside the artifact itself."""
        versions = [__version__, *(environments.version(name) for name in ENGINES)]
        parts = [self.source_sha256, self.text_sha256, self.wanted, self.context, versions]
        parts += [self.stand_in] if self.stand_in else []
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def chunks(self) -> list[list[int]]:
        """The token ids, [n][context]."""
        return self._tokens()[0]

    def kinds(self) -> list[str]:
        """Of which kind of text each chunk is."""
        return self._tokens()[1]

    def _tokens(self) -> tuple[list[list[int]], list[str]]:
        """Both; kept beside the references, for starting a process to tokenize takes longer than
        the run of a small model.
        """
        with self._lock:
            if self._cut is None:
                kept = self.cache / f"{self.key()}.tokens.json"
                if kept.is_file():
                    answer = json.loads(kept.read_text(encoding="utf-8"))
                else:
                    answer = process.call(
                        "autoquant.evaluate.scoring:tokenize",
                        log=self.logs,
                        env=self.env,
                        folder=str(self.gguf or self.source["folder"]),
                        parts=enough(self.parts, self.wanted * self.context),
                        chunks=self.wanted,
                        context=self.context,
                    )
                    self.cache.mkdir(parents=True, exist_ok=True)
                    write_atomically(kept, json.dumps(answer), shared=True)
                self._cut = (answer["chunks"], answer["kinds"])
            return self._cut

    def reference(
        self,
        progress: process.Progress | None = None,
        gguf: Path | None = None,
        plan: Mapping[str, Any] | None = None,
    ) -> Kept:
        """What is kept of the unquantized model, computed unless it is there.

        By transformers, block by block: its final hidden states; or, where ``gguf`` is given (of a
        model that transformers does not know) or the source is a GGUF file, by llama.cpp: its
        log-probabilities.
        """
        gguf = gguf or self.gguf
        name = self.key()
        if gguf:  # the source's own files are in the key
            own = "" if gguf == self.gguf else sha256_of(gguf)
            name = f"{key_of(name, own)}-gguf"
        array, facts = self.cache / f"{name}.npy", self.cache / f"{name}.json"
        scored = self.cache / f"{name}.scored.npy"
        if not (array.is_file() and facts.is_file() and scored.is_file()):
            chunks = self.chunks()
            self.cache.mkdir(parents=True, exist_ok=True)
            part = self.cache / f".{name}.{os.getpid()}.part.npy"
            scored_part = self.cache / f".{name}.{os.getpid()}.scored.npy"
            common: dict[str, Any] = {
                "chunks": chunks,
                "target": str(part),
                "scored": str(scored_part),
                "threads": self.threads,
                "text_sha256": self.text_sha256,
                "kinds": self.kinds(),
            }
            try:
                if gguf:
                    answer = self.by_llama_cpp(
                        "log_probabilities", gguf, progress=progress, **common
                    )
                else:
                    answer = self.call(
                        "reference",
                        progress=progress,
                        source=self.source,
                        plan=plan,
                        **common,
                    )
                os.replace(scored_part, scored)
                os.replace(part, array)
            finally:
                part.unlink(missing_ok=True)
                scored_part.unlink(missing_ok=True)
            write_atomically(facts, json.dumps(answer), shared=True)
        known = json.loads(facts.read_text(encoding="utf-8"))
        source = None if gguf else self.source
        return Kept(array, known["sha256"], Evaluation(**known["row"]), scored, source)

    def is_kept(self) -> bool:
        """Whether the unquantized model, run by transformers, need not run again."""
        kept = (self.cache / f"{self.key()}{end}" for end in (".npy", ".json", ".scored.npy"))
        return all(path.is_file() for path in kept)

    def measure_gguf(
        self,
        path: Path,
        kept: Kept,
        *,
        threads: int,
        scored: Path | None = None,
        chunks: int | None = None,
        children: process.Children | None = None,
        progress: process.Progress | None = None,
    ) -> Evaluation:
        """Measure a GGUF file that llama.cpp runs, on the first ``chunks`` or all. Its
        log-probabilities of the scored tokens go to ``scored``, if that is given.
        """
        return Evaluation(
            **self.by_llama_cpp(
                "by_llama_cpp",
                path,
                children=children,
                progress=progress,
                chunks=self.chunks()[:chunks],
                plan=None,
                scored=str(scored or ""),
                threads=threads,
                text_sha256=self.text_sha256,
                kinds=self.kinds()[:chunks],
                **kept.arguments(),
            )
        )

    def measure(
        self,
        files: Sequence[Mapping[str, Any]],
        kept: Kept,
        *,
        progress: process.Progress | None = None,
        plan: Mapping[str, Any] | None = None,
    ) -> list[Evaluation]:
        """Measure files that are run block by block; see passes.by_blocks."""
        rows = self.call(
            "by_blocks",
            progress=progress,
            files=[dict(file) for file in files],
            chunks=self.chunks(),
            threads=self.threads,
            text_sha256=self.text_sha256,
            kinds=self.kinds(),
            plan=plan,
            **kept.arguments(),
        )
        return [Evaluation(**row) for row in rows]

    def call(self, name: str, **more: Any) -> Any:
        """A piece of work in a worker; where that runs a model, by its ``plan``."""
        target = f"autoquant.evaluate.passes:{name}"
        children = more.pop("children", None)
        progress = more.pop("progress", None)

        def work(plan: Plan) -> Any:
            planned = {"plan": plan} if "plan" in more else {}
            with self.serve() as prepare:
                return process.call(
                    target,
                    log=self.logs,
                    env=self.env,
                    python=self.python,
                    children=children,
                    progress=progress,
                    **prepare({**more, **planned}),
                )

        return self._places.run(work, more.get("plan"))

    def by_llama_cpp(self, name: str, path: Path, **more: Any) -> dict[str, Any]:
        """The same with a GGUF file. llama.cpp's kernels for repacked weights crash on some
        machines (such as virtual ones that report AMX without offering it): a worker that dies of
        that is started again without them.
        """
        tried = self._repack
        try:
            return dict(self.call(name, path=str(path), repack=tried, **more))
        except ProcessFailed as failure:
            crashes = (signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGABRT)
            if not tried or failure.signal not in crashes:
                raise
            log.warning(
                "llama.cpp crashed on this processor while running %s; trying again without"
                " repacked weights",
                path.name,
            )
            self._repack = False
            return dict(self.call(name, path=str(path), repack=False, **more))
