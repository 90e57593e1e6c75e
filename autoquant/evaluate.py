"""Perplexity, KL divergence and top-token agreement on the same tokens for every format, one
chunk's logits at a time.

The protocol is llama.cpp's (tools/perplexity): the text is cut into chunks of CONTEXT tokens, a BOS
token (if the model uses one) replaces each chunk's first, and the predictions of each chunk's
second half are scored. The same token ids go through llama.cpp (GGUF) and through transformers
(folders). KL divergence is KL(P ‖ Q) = Σ P (log P − log Q), P the unquantized model's next-token
distribution; its log-probabilities are computed once and cached on disk as float32.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoquant import dequantized, process, trace
from autoquant.core.errors import InputError, ProcessFailed
from autoquant.core.files import read_text, write_atomically
from autoquant.core.records import Evaluation
from autoquant.worker import Report

log = logging.getLogger(__name__)
CONTEXT = 512  # tokens a chunk; less for models with a shorter context
BUILTIN = Path(__file__).parent / "demo" / "austen_persuasion_heldout.txt"
Floats = npt.NDArray[np.float32]


# --- arithmetic -----------------------------------------------------------------------------------


def log_softmax(logits: Floats) -> Floats:
    """Row-wise log-probabilities, in float32 with the maximum taken out first. Returns a new array
    [n, vocab].
    """
    out: Floats = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(out).sum(axis=1, keepdims=True, dtype=np.float64)
    out -= np.log(total).astype(np.float32)
    return out


class Measure:
    """Sums up the metrics over chunks; memory is one chunk's log-probabilities."""

    def __init__(self) -> None:
        self.nll: list[npt.NDArray[np.float64]] = []
        self.kl: list[npt.NDArray[np.float64]] = []
        self.agree = 0

    def add(self, log_q: Floats, targets: npt.NDArray[np.int64], log_p: Floats | None) -> None:
        """``log_q`` [n, vocab] of the model, ``targets`` [n] the true next tokens, ``log_p`` [n,
        vocab] of the unquantized model.
        """
        self.nll.append(-log_q[np.arange(len(targets)), targets].astype(np.float64))
        if log_p is None:
            self.kl.append(np.zeros(len(targets)))
            self.agree += len(targets)
            return
        terms = np.exp(log_p)
        terms *= log_p - log_q
        self.kl.append(terms.sum(axis=1, dtype=np.float64))
        self.agree += int((log_p.argmax(axis=1) == log_q.argmax(axis=1)).sum())

    def result(self, engine: str, text_sha256: str) -> Evaluation:
        """The metrics. The perplexity's error is exp(mean) times the standard error of the mean, as
        llama.cpp reports it.
        """
        nll, kl = np.concatenate(self.nll), np.concatenate(self.kl)
        perplexity = math.exp(float(nll.mean())) if nll.mean() < 700 else math.inf
        error = perplexity * math.sqrt(float(nll.var()) / max(1, len(nll) - 1))
        return Evaluation(
            perplexity=perplexity,
            perplexity_error=error,
            kl_mean=float(kl.mean()),
            kl_median=float(np.median(kl)),
            kl_99=float(np.quantile(kl, 0.99)),
            agreement=self.agree / len(nll),
            tokens=len(nll),
            engine=engine,
            text_sha256=text_sha256,
        )


# --- the three pieces of work, each in a worker process -------------------------------------------


def tokenize(folder: str, text: str, chunks: int, context: int) -> dict[str, Any]:
    """Cut a text into chunks of token ids with the source's own tokenizer. Runs in a worker."""
    with trace.library("tokenizer"):
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        ids = list(tokenizer.encode(text))
        plain = list(tokenizer.encode(text[:200], add_special_tokens=False))
    starts_with_bos = (
        tokenizer.bos_token_id is not None
        and ids[:1] == [tokenizer.bos_token_id]
        and plain[:1] != ids[:1]
    )
    if ids and tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    n = min(chunks, len(ids) // context)
    if n < 1:
        raise InputError(
            f"eval_text: the text has {len(ids)} tokens; at least one chunk of {context} is needed"
        )
    cut = [ids[i * context : (i + 1) * context] for i in range(n)]
    if starts_with_bos:
        for chunk in cut:
            chunk[0] = tokenizer.bos_token_id
    return {"chunks": cut}


def _folder_logits(folder: str, chunks: list[list[int]], threads: int) -> Iterator[Floats]:
    """The logits of each chunk's second half from transformers, computed in float32, on a GPU if
    there is one.

    The weights of GPTQ and AWQ folders are read by our own readers into float32: what is measured
    is the files. Left alone, transformers would run them with the kernel that is fastest here, of
    which some compute in bfloat16 and some do not, and rows could not be compared.
    """
    with trace.library("load transformers model"):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any
        if dequantized.readable(folder):
            model = dequantized.load(folder).to(device).eval()
        else:
            safe = not any(Path(folder).glob("pytorch_model*.bin")) or any(
                Path(folder).glob("*.safetensors")
            )
            model = (
                AutoModelForCausalLM.from_pretrained(
                    folder, dtype=torch.float32, use_safetensors=safe
                )
                .to(device)
                .eval()
            )
    for chunk in chunks:
        with trace.library("transformers forward"), torch.inference_mode():
            tokens = torch.tensor([chunk], device=device)
            logits: Floats = (
                model(input_ids=tokens, logits_to_keep=len(chunk) - len(chunk) // 2)
                .logits[0, :-1]
                .float()
                .cpu()
                .numpy()
            )
        yield logits


def score(
    kind: str,
    path: str,
    chunks: list[list[int]],
    *,
    threads: int,
    text_sha256: str,
    reference: str = "",
    save: str = "",
    repack: bool = True,
    report: Report | None = None,
) -> dict[str, Any]:
    """Run a model over the chunks and measure it. Runs in a worker.

    ``kind`` is "gguf" (``path`` a GGUF file, llama.cpp) or "folder" (transformers). ``reference``
    is a float32 .npy [rows, vocab] of log-probabilities to compare with; ``save`` writes such a
    file instead. ``repack`` is llama.cpp's rearranging of weights for the processor.
    """
    if kind == "gguf":
        from autoquant.llama.library import log_softmax_chunks

        engine, stream = (
            "llama.cpp",
            log_softmax_chunks(path, chunks, threads=threads, repack=repack),
        )
    else:
        engine, stream = "transformers", _folder_logits(path, chunks, threads)
    stored = np.load(reference, mmap_mode="r") if reference else None
    # untyped in NumPy's stubs, which strict mypy refuses to call
    open_memmap: Any = np.lib.format.open_memmap
    target: Any = None
    measure = Measure()
    row = 0
    for i, logits in enumerate(stream):
        chunk = np.asarray(chunks[i], dtype=np.int64)
        with trace.library("arithmetic on logits"):
            log_q = log_softmax(logits)
            n, vocab = log_q.shape
            log_p: Floats | None = None
            if stored is not None:
                # some runtimes pad the vocabulary: compare what both have, renormalized
                if stored.shape[1] != vocab:
                    vocab = min(vocab, stored.shape[1])
                    log_q = log_softmax(log_q[:, :vocab])
                log_p = np.asarray(stored[row : row + n, :vocab])
            measure.add(log_q, chunk[len(chunk) // 2 + 1 :], log_p)
            if save:
                if target is None:
                    target = open_memmap(
                        save, mode="w+", dtype=np.float32, shape=(n * len(chunks), vocab)
                    )
                target[row : row + n] = log_q
        row += n
        if report is not None:
            report(i + 1, len(chunks))
    return asdict(measure.result(engine, text_sha256))


# --- the parent's side ----------------------------------------------------------------------------


class Evaluator:
    """Measures artifacts of one source on one text. Cheap to make; tokens and reference are
    computed when first needed. A context manager: workers are kept until its end.

    ``cache`` is the folder where references are kept: ``<key>.npy`` (float32 log-probabilities, 4 ·
    vocabulary · tokens bytes), ``<key>.json`` (the unquantized model's own figures) and
    ``<key>.tokens.json`` (the text as token ids); the key covers the source's hash, the text, and
    how it is cut.
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
    ) -> None:
        self.folder, self.source_sha256, self.cache, self.logs, self.threads, self.env = (
            folder,
            source_sha256,
            cache,
            logs,
            threads,
            env or {},
        )
        self.text = read_text(text, "eval_text", BUILTIN)
        self.text_sha256 = hashlib.sha256(self.text.encode()).hexdigest()
        self.wanted, self.context = chunks, min(CONTEXT, context)
        self._chunks: list[list[int]] | None = None
        self._lock = threading.Lock()  # several artifacts are measured at once
        self._repack = True
        # of what transformers runs; llama.cpp may crash, and each file has a process of its own
        self._pool = process.Pool(log=logs, env={**self.env, "HF_HUB_OFFLINE": "1"})

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()

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
                        "autoquant.evaluate:tokenize",
                        log=self.logs,
                        pool=self._pool,
                        folder=str(self.folder),
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
        is too large for that), from this unquantized GGUF file through llama.cpp.
        """
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
                    "autoquant.evaluate:score",
                    log=self.logs,
                    env=self.env,
                    pool=self._pool if kind == "folder" else None,
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
