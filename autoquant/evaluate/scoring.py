"""Perplexity, KL divergence and top-1 agreement on the same tokens for every format.

The protocol is llama.cpp's (tools/perplexity): the text is cut into chunks of CONTEXT tokens, a BOS
token (if the model uses one) replaces each chunk's first, and the predictions of each chunk's
second half are scored. KL divergence is KL(P ‖ Q) = Σ P (log P − log Q), P the unquantized model's
next-token distribution.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoquant.calibration import rendered
from autoquant.core.errors import InputError
from autoquant.core.records import Evaluation
from autoquant.core.texts import CHARACTERS, Document, plain
from autoquant.runtime import trace

CONTEXT = 512  # tokens per chunk; less for models with a shorter context


def predicting(length: int) -> int:
    """How many tokens of a chunk predict one that is scored: those of its second half but for the
    last.
    """
    return length - length // 2 - 1


def targets_of(chunk: Sequence[int]) -> Sequence[int]:
    """The tokens that are to be predicted."""
    return chunk[len(chunk) // 2 + 1 :]


def hash_of(chunks: Sequence[Sequence[int]]) -> str:
    """The sha256 of chunks of token ids: equal where the same tokens are scored in the same
    contexts.
    """
    said = json.dumps([list(chunk) for chunk in chunks])
    return hashlib.sha256(said.encode()).hexdigest()


def standard_error(differences: Any) -> float:
    """The standard error of the mean of [chunks, predictions] differences: the larger of the plain
    one over tokens and the one that is clustered by chunk.

    Tokens of one chunk share its subject, so their differences are correlated, and the plain error
    is too small: with the two bundled models by 15 %, with two types of one model by 4 % or less
    (on 120 chunks). The clustered one, as Miller (2024, https://arxiv.org/abs/2411.00640) advises
    for groups of related questions and for pairs of models, sums them up by chunk first. Of few
    chunks that is uncertain itself, and too small as a rule (Angrist and Pischke 2009, Mostly
    Harmless Econometrics, section 8.2.3): less than the plain one is never taken.
    """
    chunks, count = differences.shape[0], int(differences.size)
    centred = differences - differences.mean()
    plain = math.sqrt(float((centred**2).sum()) / max(1, count - 1) / count)
    if chunks < 2:
        return plain
    sums = centred.sum(axis=1)
    clustered = math.sqrt(chunks / (chunks - 1) * float((sums**2).sum())) / count
    return max(plain, clustered)


class Measure:
    """Sums up the metrics over chunks; memory is one chunk's log-probabilities some times over."""

    def __init__(self) -> None:
        self.nll: list[Any] = []
        self.differences: list[Any] = []
        self.kl: list[Any] = []
        self.agree: list[Any] = []

    def add(self, logits: Any, targets: Sequence[int], reference: Any = None) -> None:
        """``logits`` [n, vocabulary] of the model, ``targets`` [n] the true next tokens, logits of
        the unquantized model as ``reference``, if it is not that itself; all as torch has them. Of
        vocabularies of different lengths (some runtimes pad) what both have is compared.
        """
        import torch

        with trace.library("arithmetic on logits"), torch.inference_mode():
            if reference is not None:
                logits = logits.to(reference.device)
            if reference is not None and reference.shape[1] != logits.shape[1]:
                vocabulary = min(reference.shape[1], logits.shape[1])
                logits, reference = logits[:, :vocabulary], reference[:, :vocabulary]
            log_q = torch.log_softmax(logits, dim=1)
            wanted = torch.as_tensor(targets, device=log_q.device)[:, None]
            self.nll.append(-log_q.gather(1, wanted)[:, 0].double().cpu().numpy())
            if reference is None:
                self.differences.append(np.zeros(len(targets)))
                self.kl.append(np.zeros(len(targets)))
                self.agree.append(np.ones(len(targets), bool))
                return
            log_p = torch.log_softmax(reference, dim=1)
            found = log_p.gather(1, wanted)[:, 0].double().cpu().numpy()
            self.differences.append(-self.nll[-1] - found)
            self.agree.append((log_p.argmax(1) == log_q.argmax(1)).cpu().numpy())
            terms = log_p.exp().mul_(log_p.sub_(log_q))
            self.kl.append(terms.sum(1, dtype=torch.float64).cpu().numpy())

    def write(self, path: Path) -> None:
        """Write the log-probabilities of the scored tokens, in nats, as float32 .npy [chunks,
        predictions].
        """
        part = path.with_suffix(".part")
        with open(part, "wb") as file:
            np.save(file, -np.stack(self.nll).astype(np.float32))
        part.replace(path)

    def result(
        self,
        engine: str,
        text_sha256: str,
        kinds: Sequence[str] = (),
        tokens_sha256: str = "",
    ) -> Evaluation:
        """The metrics, and of a text of several ``kinds`` (one a chunk) some of each. The
        perplexity's error is exp(mean) times the standard error of the mean, as llama.cpp reports
        it; the KL divergence's is that of its mean, the difference's see :func:`standard_error`.
        """
        nll, kl = np.concatenate(self.nll), np.concatenate(self.kl)
        perplexity = _perplexity(nll)
        error = perplexity * math.sqrt(float(nll.var()) / max(1, len(nll) - 1))
        by_kind = {}
        for kind in dict.fromkeys(kinds) if len(set(kinds)) > 1 else ():
            own = [i for i, one in enumerate(kinds) if one == kind]
            by_kind[kind] = {
                "perplexity": _perplexity(np.concatenate([self.nll[i] for i in own])),
                "kl_mean": float(np.concatenate([self.kl[i] for i in own]).mean()),
                "agreement": float(np.concatenate([self.agree[i] for i in own]).mean()),
            }
        return Evaluation(
            perplexity=perplexity,
            perplexity_error=error,
            kl_mean=float(kl.mean()),
            kl_median=float(np.median(kl)),
            kl_99=float(np.quantile(kl, 0.99)),
            agreement=float(np.concatenate(self.agree).mean()),
            kl_error=math.sqrt(float(kl.var()) / max(1, len(kl) - 1)),
            difference_error=standard_error(np.stack(self.differences)),
            tokens=len(nll),
            engine=engine,
            text_sha256=text_sha256,
            tokens_sha256=tokens_sha256,
            by_kind=by_kind,
        )


def _perplexity(nll: Any) -> float:
    return math.exp(float(nll.mean())) if nll.mean() < 700 else math.inf


def tokenize(
    folder: str, parts: Mapping[str, Sequence[Document]], chunks: int, context: int
) -> dict[str, Any]:
    """Cut a text into ``chunks`` of token ids with the source's own tokenizer: of a ``folder``, or
    of a GGUF file. Of one of several kinds (``parts``) each gives as many, one after the other:
    ``kinds`` says which. Conversations are put through the model's chat template, if it has one.
    Runs in a worker.
    """
    encode, bos, eos = _encoder(folder)
    share, more = divmod(chunks, len(parts))
    cut: dict[str, list[list[int]]] = {}
    for i, (kind, documents) in enumerate(parts.items()):
        wanted = share + (i < more)
        if wanted:
            ids = encode(documents, wanted * context)
            cut[kind] = _cut(ids, wanted, context, bos=bos, eos=eos, least=len(parts) == 1)
    rounds = itertools.zip_longest(*cut.values())
    found = [
        (kind, chunk)
        for every in rounds
        for kind, chunk in zip(cut, every, strict=True)
        if chunk is not None
    ]
    return {"chunks": [chunk for _, chunk in found], "kinds": [kind for kind, _ in found]}


def _encoder(folder: str) -> tuple[Any, int | None, int | None]:
    """What gives the token ids of documents, at least as many as asked if there are; the token that
    each text begins with, and the one that ends it.
    """
    if Path(folder).is_file():
        from autoquant.backends.llamacpp.library import encode

        def by_llama_cpp(documents: Sequence[Document], needed: int) -> list[int]:
            text = "\n\n".join(map(plain, documents))
            return list(encode(folder, text[: needed * CHARACTERS])[0])

        _, bos, eos = encode(folder, "a")
        return by_llama_cpp, bos, eos
    with trace.library("tokenizer"):
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def by_tokenizer(documents: Sequence[Document], needed: int) -> list[int]:
        text = ""
        for one in documents:
            text += ("\n\n" if text else "") + rendered(tokenizer, one)
            if len(text) > needed * CHARACTERS:
                break
        return list(tokenizer.encode(text[: needed * CHARACTERS]))

    ids = by_tokenizer(["The beginning of a text."], 100)
    plain_ids = list(tokenizer.encode("The beginning of a text.", add_special_tokens=False))
    begins = (
        tokenizer.bos_token_id is not None
        and ids[:1] == [tokenizer.bos_token_id]
        and plain_ids[:1] != ids[:1]
    )
    return by_tokenizer, tokenizer.bos_token_id if begins else None, tokenizer.eos_token_id


def _cut(
    ids: list[int], chunks: int, context: int, *, bos: int | None, eos: int | None, least: bool
) -> list[list[int]]:
    """The chunks of a text's tokens. ``bos`` replaces the first of each, where the tokenizer begins
    with one; ``eos`` is taken off the end. Raises InputError without a whole chunk, if one is the
    ``least``.
    """
    if ids and eos is not None and ids[-1] == eos:
        ids.pop()
    n = min(chunks, len(ids) // context)
    if n < 1 and least:
        raise InputError(
            f"eval_text: the text has {len(ids)} tokens; at least one chunk of {context} is needed"
        )
    cut = [ids[i * context : (i + 1) * context] for i in range(n)]
    if bos is not None:
        for chunk in cut:
            chunk[0] = bos
    return cut
