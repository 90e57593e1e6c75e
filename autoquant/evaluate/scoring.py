"""Perplexity, KL divergence and top-1 agreement on the same tokens for every format, one
chunk's logits at a time.

The protocol is llama.cpp's (tools/perplexity): the text is cut into chunks of CONTEXT tokens, a BOS
token (if the model uses one) replaces each chunk's first, and the predictions of each chunk's
second half are scored. The same token ids go through llama.cpp (GGUF) and through transformers
(folders). KL divergence is KL(P ‖ Q) = Σ P (log P − log Q), P the unquantized model's next-token
distribution; its log-probabilities are computed once and cached on disk as float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoquant.core.errors import InputError
from autoquant.core.records import Evaluation
from autoquant.formats import architecture, dequantized
from autoquant.runtime import trace
from autoquant.runtime.worker import Report

CONTEXT = 512  # tokens per chunk; less for models with a shorter context

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
    """Cut a text into chunks of token ids with the source's own tokenizer: of a ``folder``, or of
    a GGUF file. Runs in a worker.
    """
    if Path(folder).is_file():
        from autoquant.backends.llamacpp.library import encode

        ids, bos, eos = encode(folder, text)
        return {"chunks": _cut(ids, chunks, context, bos=bos, eos=eos)}
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
    bos = tokenizer.bos_token_id if starts_with_bos else None
    return {"chunks": _cut(ids, chunks, context, bos=bos, eos=tokenizer.eos_token_id)}


def _cut(
    ids: list[int], chunks: int, context: int, *, bos: int | None, eos: int | None
) -> list[list[int]]:
    """The chunks of a text's tokens. ``bos`` replaces the first of each, where the tokenizer begins
    with one; ``eos`` is taken off the end. Raises InputError without a whole chunk.
    """
    if ids and eos is not None and ids[-1] == eos:
        ids.pop()
    n = min(chunks, len(ids) // context)
    if n < 1:
        raise InputError(
            f"eval_text: the text has {len(ids)} tokens; at least one chunk of {context} is needed"
        )
    cut = [ids[i * context : (i + 1) * context] for i in range(n)]
    if bos is not None:
        for chunk in cut:
            chunk[0] = bos
    return cut


def _folder_logits(folder: str, chunks: list[list[int]], threads: int) -> Iterator[Floats]:
    """The logits of each chunk's second half from transformers, computed in float32, on a GPU if
    there is one.

    The weights of GPTQ and AWQ folders are read by our own readers into float32: what is measured
    is the files. Left alone, transformers would run them with the kernel that is fastest here, of
    which some compute in bfloat16 and some do not, and rows could not be compared.
    """
    with trace.library("load transformers model"):
        import torch

        torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any
        if dequantized.readable(folder):
            model = dequantized.load(folder).to(device).eval()
        else:
            safe = not any(Path(folder).glob("pytorch_model*.bin")) or any(
                Path(folder).glob("*.safetensors")
            )
            config = architecture.config_of(folder)
            kind = architecture.class_of(config)
            model = kind.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=safe
            )
            model = model.to(device).eval()
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
        from autoquant.backends.llamacpp.library import log_softmax_chunks

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
