"""llama.cpp's C API: dry run, quantize, importance matrix, log-probabilities, tokens, a short
generation.

Every function here loads native code that may abort the process, so they run in workers
(:func:`autoquant.runtime.process.call`), with the converter's gguf-py on the path.
"""

from __future__ import annotations

import ctypes as C
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import llama_cpp.llama_cpp as L
import numpy as np
import numpy.typing as npt

from autoquant.core.errors import ProcessFailed
from autoquant.runtime import trace

CONTEXT = 512  # tokens per chunk, as llama.cpp's perplexity and imatrix tools use

# bytes of one worker's row buffers while quantizing; more does not make it faster
BUFFER = 128 << 20

Floats = npt.NDArray[np.float32]

Ints = npt.NDArray[np.int32]


class _Log(threading.local):
    """llama.cpp's log of one thread: types are quantized in threads, each reads its own lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.partial = ""
        self.on_line: Callable[[str], None] | None = None


said = _Log()


@L.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _: Any) -> None:
    """Gather llama.cpp's log: it comes in pieces of lines, on the thread that made the call."""
    *whole, said.partial = (said.partial + text.decode("utf-8", "replace")).split("\n")
    for line in whole:
        said.lines.append(line)
        sys.stderr.write(line + "\n")
        if said.on_line is not None:
            said.on_line(line)


L.llama_log_set(_log, C.c_void_p(0))

L.llama_backend_init()


def why() -> str:
    """What llama.cpp last complained of."""
    wanted = [
        line
        for line in said.lines[-40:]
        if re.search(r"fail|error|invalid|unknown|requires|missing|not ", line, re.IGNORECASE)
    ]
    return " | ".join(line.strip() for line in (wanted or said.lines)[-3:])


# --- run a model ----------------------------------------------------------------------------------


class Model:
    """A GGUF file opened for running.

    ``repack`` lets llama.cpp keep a second copy of the weights in memory, rearranged for the
    processor: faster for long runs, but then the model must fit. ``callback`` is a
    ggml_backend_sched_eval_callback.
    """

    def __init__(
        self,
        path: str,
        *,
        threads: int,
        context: int = CONTEXT,
        vocab_only: bool = False,
        repack: bool = True,
        callback: Any = None,
    ) -> None:
        params = L.llama_model_default_params()
        params.vocab_only = vocab_only
        params.use_extra_bufts = repack
        with trace.library("load"):
            self.model = L.llama_model_load_from_file(path.encode(), params)
            if not self.model and L.llama_supports_gpu_offload():
                params.n_gpu_layers = 0  # a build for GPUs, whose card may have no room for it
                self.model = L.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise ProcessFailed(f"llama.cpp cannot open {path}: {why()}")
        self.vocab = L.llama_model_get_vocab(self.model)
        self.n_vocab = int(L.llama_vocab_n_tokens(self.vocab))
        self.context = context
        self._callback = callback
        self.handle = None
        if not vocab_only:
            settings = L.llama_context_default_params()
            settings.n_ctx = settings.n_batch = settings.n_ubatch = context
            settings.n_threads = settings.n_threads_batch = threads
            if hasattr(settings, "n_outputs_max"):
                settings.n_outputs_max = context
            if callback is not None:
                settings.cb_eval = callback
            with trace.library("load"):
                self.handle = L.llama_init_from_model(self.model, settings)
            if not self.handle:
                raise ProcessFailed(f"llama.cpp cannot make a context for {path}: {why()}")
            self._batch = L.llama_batch_init(context, 0, 1)

    def tokenize(self, text: str, *, special: bool) -> Ints:
        """Token ids; ``special`` adds BOS/EOS as the model wants. Special tokens written in the
        text stay text.
        """
        raw = text.encode()
        room = (L.llama_token * (len(raw) + 16))()
        n = L.llama_tokenize(self.vocab, raw, len(raw), room, len(room), special, False)
        if n < 0:
            raise ProcessFailed(
                f"llama.cpp needs room for {-n} tokens where {len(room)} were expected"
            )
        return np.ctypeslib.as_array(room)[:n].astype(np.int32)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; none of a special one."""
        room = C.create_string_buffer(256)
        n = L.llama_token_to_piece(self.vocab, token, room, len(room), 0, False)
        return room.raw[: max(0, n)]

    def decode(self, tokens: Ints, first_output: int, *, start: int = 0) -> Floats:
        """Run tokens at positions ``start``…; the logits of positions ``first_output``… of them,
        [n, vocab], valid until the next call.
        """
        if start == 0:
            L.llama_memory_clear(L.llama_get_memory(self.handle), True)
        batch, n = self._batch, len(tokens)
        batch.n_tokens = n
        for i in range(n):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = (
                int(tokens[i]),
                start + i,
                1,
                0,
            )
            batch.logits[i] = i >= first_output
        with trace.library("decode"):
            status = L.llama_decode(self.handle, batch)
            if status != 0:
                raise ProcessFailed(
                    f"llama.cpp could not run the model (llama_decode: {status}): {why()}"
                )
            logits = L.llama_get_logits(self.handle)  # waits for the computation
        return np.ctypeslib.as_array(logits, shape=(n - first_output, self.n_vocab))


def tokens_of(path: str, text: str) -> list[int]:
    """A text's token ids by the GGUF file's own tokenizer, without special tokens."""
    return [
        int(token)
        for token in Model(path, threads=1, vocab_only=True).tokenize(text, special=False)
    ]


def text_of(path: str, tokens: list[int]) -> str:
    """The text that token ids stand for, by the GGUF file's own tokenizer."""
    model = Model(path, threads=1, vocab_only=True)
    return b"".join(model.piece(token) for token in tokens).decode("utf-8", "replace")


def encode(path: str, text: str) -> tuple[list[int], int | None, int | None]:
    """A text's token ids by the GGUF file's own tokenizer, with the BOS or EOS that the model
    wants; the BOS if there is one at the beginning; the EOS.
    """
    model = Model(path, threads=1, vocab_only=True)
    ids = [int(token) for token in model.tokenize(text, special=True)]
    bos, eos = int(L.llama_vocab_bos(model.vocab)), int(L.llama_vocab_eos(model.vocab))
    begins = bool(ids) and ids[0] == bos and bool(L.llama_vocab_get_add_bos(model.vocab))
    return ids, bos if begins else None, eos if eos >= 0 else None


def count(path: str, texts: list[str]) -> int:
    """How many tokens texts have by the GGUF file's own tokenizer."""
    return sum(len(encode(path, text)[0]) for text in texts)


def not_ending(path: str, tokens: list[int]) -> tuple[list[int], bool]:
    """Which of the tokens end no generation by the GGUF file; whether it has an end of turn."""
    vocab = Model(path, threads=1, vocab_only=True).vocab
    missing = [token for token in tokens if not L.llama_vocab_is_eog(vocab, token)]
    return missing, L.llama_vocab_eot(vocab) >= 0


def generate(path: str, *, threads: int, prompt: str, n: int) -> list[int]:
    """``n`` greedily chosen token ids after the prompt."""
    # the file is mapped: no memory of the model's size is taken
    model = Model(path, threads=threads, context=128, repack=False)
    tokens = model.tokenize(prompt, special=True)[-64:]
    if len(tokens) == 0:
        raise ProcessFailed(f"{path}: the prompt {prompt!r} has no tokens")
    out: list[int] = []
    position = 0
    for _ in range(n):
        logits = model.decode(tokens, len(tokens) - 1, start=position)
        position += len(tokens)
        out.append(int(logits[-1].argmax()))
        tokens = np.array(out[-1:], dtype=np.int32)
    return out


def log_softmax_chunks(
    path: str, chunks: list[list[int]], *, threads: int, repack: bool = True
) -> Iterator[Floats]:
    """For each chunk of token ids: the logits of its second half that predict a next token, [len/2
    - 1, vocab].
    """
    model = Model(path, threads=threads, context=len(chunks[0]), repack=repack)
    for chunk in chunks:
        half = len(chunk) // 2
        yield model.decode(np.asarray(chunk, dtype=np.int32), half)[:-1]
