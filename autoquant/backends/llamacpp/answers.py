"""A GGUF file that answers a prompt, by llama.cpp. Runs in workers."""

from __future__ import annotations

import ctypes as C
from typing import Any

import llama_cpp.llama_cpp as L
import numpy as np

from autoquant.backends.answers import rendered
from autoquant.backends.llamacpp.library import Model
from autoquant.core.errors import InputError
from autoquant.runtime.worker import Emit


def answer(
    path: str, prompt: str, *, tokens: int, tokenizer: str, threads: int, emit: Emit
) -> dict[str, Any]:
    """What the model of a GGUF file says to a prompt, as backends.answers.answer has it.
    ``tokenizer`` is the folder of the source, whose chat template is taken; without one the file's
    own is, where llama.cpp knows it. The file is mapped: it needs no memory of its size.
    """
    text, templated = rendered(tokenizer, prompt) if tokenizer else _by_file(path, prompt)
    # llama.cpp's own templates leave the first token out, those of transformers write it
    begins = not templated or not tokenizer
    vocabulary = Model(path, threads=1, vocab_only=True)
    length = len(_tokens(vocabulary, text, begins=begins, templated=templated))
    if not length:
        raise InputError(f"prompt: {prompt!r} has no tokens; write some words")
    model = Model(path, threads=threads, context=length + tokens + 8, repack=False)
    ids = _tokens(model, text, begins=begins, templated=templated)
    pieces, position = b"", 0
    for _ in range(tokens):
        logits = model.decode(ids, len(ids) - 1, start=position)
        position += len(ids)
        token = int(logits[-1].argmax())
        if L.llama_vocab_is_eog(model.vocab, token):
            break
        pieces += model.piece(token)
        emit(pieces.decode("utf-8", "ignore"))
        ids = np.array([token], dtype=np.int32)
    return {"text": pieces.decode("utf-8", "replace"), "engine": "llama.cpp", "lacking": 0}


def _tokens(model: Model, text: str, *, begins: bool, templated: bool) -> Any:
    """Token ids, with the first one that the model wants if it ``begins`` here; a template has
    written special ones into the text.
    """
    raw = text.encode()
    room = (L.llama_token * (len(raw) + 16))()
    n = L.llama_tokenize(model.vocab, raw, len(raw), room, len(room), begins, templated)
    return np.ctypeslib.as_array(room)[: max(0, n)].astype(np.int32)


def _by_file(path: str, prompt: str) -> tuple[str, bool]:
    """The prompt in the chat template of the file, if it has one that llama.cpp knows."""
    model = Model(path, threads=1, vocab_only=True)
    template = L.llama_model_chat_template(model.model, None)
    if not template:
        return prompt, False
    message = (L.llama_chat_message * 1)(L.llama_chat_message(b"user", prompt.encode()))
    room = C.create_string_buffer(4 * len(prompt.encode()) + 4096)
    n = L.llama_chat_apply_template(template, message, 1, True, room, len(room))
    return (room.raw[:n].decode(), True) if 0 < n <= len(room) else (prompt, False)
