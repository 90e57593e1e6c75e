"""A model of transformers, quantized or not, that answers a prompt. Runs in workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from autoquant.core.errors import CheckFailed
from autoquant.core.machine import memory_available, nvidia_gpu
from autoquant.formats import dequantized
from autoquant.formats.architecture import class_of, config_of
from autoquant.formats.checkpoint import quantization
from autoquant.formats.tensors import Tensors
from autoquant.runtime.worker import Emit

BESIDE = 1 << 30  # bytes for the cache, activations and libraries


def rendered(folder: str, prompt: str) -> tuple[str, bool]:
    """A prompt as the model is asked: as a user's message in its chat template, where it has one
    (and then with the special tokens that this begins with); else as it is.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        return prompt, False
    message = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(
        message,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,  # Qwen3 and others would think aloud first; the rest ignore it
    )
    return str(text), True


def answer(
    folder: str,
    prompt: str,
    *,
    tokens: int,
    quantized: bool,
    emit: Emit,
) -> dict[str, Any]:
    """What the model of a folder says to a prompt, at most so many ``tokens``, chosen greedily so
    that files can be compared; what it has said so far is emitted. A ``quantized`` one is run by
    the library for such folders, or from what our reader reads where that is not here or cannot.

    Returns ``text``, ``engine``, and ``lacking``: bytes that it would need if it does not fit.
    """
    import torch
    from transformers import AutoTokenizer

    needed = Tensors(folder).bytes() + BESIDE
    # libraries put quantized folders on the GPU themselves
    elsewhere = nvidia_gpu() if quantized else _on_gpu(needed)
    if not elsewhere and needed > memory_available():
        return {"text": "", "engine": "", "lacking": needed}
    config, engine = config_of(folder), "transformers"
    if quantized:
        loader, engine = dequantized.loading(quantization(folder))
        try:
            model: Any = loader(folder)
        except (CheckFailed, ImportError):
            needed = 4 * sum(math.prod(one) for one in dequantized.Values(folder).shapes.values())
            if needed + BESIDE > memory_available():
                return {"text": "", "engine": "", "lacking": needed + BESIDE}
            model, engine = dequantized.load(folder), dequantized.READ_BACK
    else:
        place = {"device_map": "cuda"} if elsewhere else {}
        model = class_of(config).from_pretrained(folder, config=config, dtype="auto", **place)
    model.eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    text, templated = rendered(folder, prompt)
    given = tokenizer(text, return_tensors="pt", add_special_tokens=not templated)
    ids = given.input_ids.to(model.device)
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            # the likeliest token, as llama.cpp takes it: without what the model's own settings add
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            streamer=_Stream(tokenizer, ids.shape[1], emit),
        )
    said = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return {"text": said, "engine": engine, "lacking": 0}


def _on_gpu(needed: int) -> bool:
    """Whether a GPU has so many bytes free."""
    if not nvidia_gpu():
        return False
    import torch

    return bool(torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > needed)


class _Stream:
    """What transformers tells of each new token; emits the text so far."""

    def __init__(self, tokenizer: Any, skip: int, emit: Callable[[Any], None]) -> None:
        self._tokenizer, self._emit = tokenizer, emit
        self._ids: list[int] = []
        self._skip = skip

    def put(self, value: Any) -> None:
        """The prompt's tokens first, then one at a time."""
        self._ids += [int(one) for one in value.flatten()]
        if len(self._ids) > self._skip:
            self._emit(self._tokenizer.decode(self._ids[self._skip :], skip_special_tokens=True))

    def end(self) -> None:
        """Nothing is to be done."""
