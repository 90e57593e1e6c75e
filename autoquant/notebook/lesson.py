"""What the teaching notebook needs beside the lines that teach: a start in one thread and one
language, pictures of bits, texts side by side, perplexity, and answers that are numbers.

Nothing here imports NumPy before ``start``, which tells it how many threads to use.
"""

from __future__ import annotations

import html
import itertools
import math
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autoquant.core import language as languages
from autoquant.core.language import say
from autoquant.runtime.process import HEAVY

if TYPE_CHECKING:
    from autoquant.notebook.moving import Moving

from autoquant.display.colors import BLUE, GREY, ORANGE, RED

FORMATS = {"FP32": (8, 23), "FP16": (5, 10), "BF16": (8, 7), "FP8 E4M3": (4, 3), "FP8 E5M2": (5, 2)}
"""Exponent and mantissa bits. E4M3 without infinities, as in https://arxiv.org/abs/2209.05433 and
on GPUs.
"""
COLORS = (RED, ORANGE, BLUE)  # sign, exponent, mantissa
BOX = "display:inline-block;width:1.1em;text-align:center;color:white;margin-right:1px"
ANSWERS: dict[int, tuple[float, ...]] = {
    1: (39.375,),
    2: (-76.0, 13.0, 51.0, 127.0),
    4: (64.0,),
    5: (4.3125,),
}
# an answer may be rounded, 39.4 or 4.3; the nearest wrong one of exercise 5, without the zero
# points, is 4.25
NEAR = {1: 0.1, 2: 0.01, 4: 0.01, 5: 0.02}
WRONG: dict[int, dict[tuple[float, ...], str]] = {
    1: {
        (315.0,): "These are gigabits: 8 bits are one byte.",
        (35.0,): "These are 4 bits per weight; the scales take half a bit more.",
    },
    2: {
        (-77.0, 13.0, 51.0, 128.0): "The largest code of 8 bits is 127: 2⁷ − 1.",
        (-76.0, 12.0, 50.0, 127.0): "Round to the nearest whole number; do not cut off.",
        (-76.2, 12.7, 50.8, 127.0): "Codes are whole numbers: round them.",
    },
    4: {
        (63.75,): "A code is a whole number: round it.",
        (63.0,): "Round to the nearest whole number; do not cut off.",
        (-64.0,): "z = round(−min / s): mind the sign of the smallest value.",
    },
    5: {
        (4.25,): "The zero point takes room too.",
        (24.0,): "64 weights share one scale and one zero point: divide by 64.",
    },
}
"""Answers that show what went wrong, and what is said to them."""
HINTS = {
    1: "Multiply the weights by the bits per weight; 8 bits are one byte, 10⁹ bytes one GB.",
    2: "The largest |w| is 1.0, so s = 1 / 127: divide each number by s and round.",
    4: "s = (3 − (−1)) / 255, and −min is 1: z = round(1 / s).",
    5: "The codes take 4 bits; add the bits of one scale and one zero point, divided by 64.",
}
"""What is said to any other wrong answer."""


def start(language: str = "en") -> None:
    """Begin a lesson: one thread, labels in a language (en, tr), and no warnings of libraries that
    are not used. To be called before NumPy and transformers are imported.

    Matrices this small are computed faster by one thread than by two, which wait for each other:
    on a busy machine 8 to 12 times faster (bench/RESULTS.md).
    """
    languages.use(language)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    import torch

    torch.set_num_threads(1)
    # transformers imports these wherever they are installed: torchao then logs that it cannot load
    # its kernels. It asks only once what there is, so they are hidden while it asks
    hidden = [name for name in HEAVY if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        import transformers.models.llama.modeling_llama
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
    # the bundled model's 39 tensors are read in a moment
    transformers.utils.logging.disable_progress_bar()


def encode(number: float, format: str) -> tuple[str, float]:
    """A number's bits in a format, and the value they stand for. Too large numbers become the
    format's largest (FP8 E4M3), or infinity.
    """
    import torch

    kinds = {
        "FP32": (torch.float32, torch.int32, 32),
        "FP16": (torch.float16, torch.int16, 16),
        "BF16": (torch.bfloat16, torch.int16, 16),
        "FP8 E4M3": (torch.float8_e4m3fn, torch.uint8, 8),
        "FP8 E5M2": (torch.float8_e5m2, torch.uint8, 8),
    }
    dtype, whole, width = kinds[format]
    given = max(-448.0, min(448.0, number)) if format == "FP8 E4M3" else number
    stored = torch.tensor([given], dtype=torch.float64).to(dtype)
    return f"{int(stored.view(whole)[0]) & ((1 << width) - 1):0{width}b}", float(
        stored.to(torch.float64)[0]
    )


class Bits:
    """One number in the floating-point formats, bit by bit. Shows itself in a notebook."""

    def __init__(self, number: float) -> None:
        self.number = number
        self.rows = {name: encode(number, name) for name in FORMATS}

    def __repr__(self) -> str:
        return "\n".join(
            f"{name:9} {bits} = {value!r} ({say('error')} {value - self.number:.3g})"
            for name, (bits, value) in self.rows.items()
        )

    def _repr_html_(self) -> str:
        names = (say("format"), say("bits"), say("stored value"), say("error"))
        lines = [
            "<tr>"
            + "".join(
                f"<th style='text-align:{'left' if i < 2 else 'right'}'>{html.escape(one)}</th>"
                for i, one in enumerate(names)
            )
            + "</tr>"
        ]
        for name, (bits, value) in self.rows.items():
            sign, exponent, mantissa = COLORS
            color = [sign] + [exponent] * FORMATS[name][0] + [mantissa] * FORMATS[name][1]
            boxes = "".join(
                f"<span style='{BOX};background:{color[i]}'>{bit}</span>"
                for i, bit in enumerate(bits)
            )
            lines.append(
                f"<tr><td style='text-align:left;white-space:nowrap'><b>{name}</b></td><td"
                f" style='text-align:left;white-space:nowrap;font-family:monospace'>{boxes}</td><td"
                f" style='text-align:right'>{value:.9g}</td><td"
                f" style='text-align:right;white-space:nowrap'>{value - self.number:.3g}</td></tr>"
            )
        legend = " ".join(
            f"<span style='color:white;background:{color};padding:0 .5em'>{name}</span>"
            for name, color in zip(("±", say("exponent"), say("mantissa")), COLORS, strict=True)
        )
        return f"<div><p>{self.number!r} &nbsp; {legend}</p><table>{''.join(lines)}</table></div>"


def memory_slider(billions: float = 8.0) -> Moving:
    """Memory footprints by format beside the memory of some GPUs, with a slider over models."""
    from autoquant.notebook import moving

    return moving.memory_slider(billions)


def number_line(weights: Any) -> Moving:
    """32 weights [32] and what they become, with sliders for all that quantization chooses."""
    from autoquant.notebook import moving

    return moving.number_line(weights)


def absmax(weights: Any, bits: int, group: int = 32) -> Any:
    """A matrix [rows, columns] of torch after absmax quantization in groups of a row, as in
    sections 3 and 5: its restored weights.
    """
    groups = weights.reshape(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((groups / scale).round() * scale).reshape(weights.shape)


def continued(model: Any, tokenizer: Any, prompt: str, tokens: int = 40) -> str:
    """What a model writes after the prompt, each time its most likely token."""
    import torch

    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    whole = str(tokenizer.decode(made[0], skip_special_tokens=True))
    return " ".join(whole.removeprefix(prompt).split("\n"))


class Texts:
    """Continuations of one prompt side by side, by what the model's weights were rounded to; what
    differs from the first is coloured. Shows itself in a notebook.
    """

    def __init__(self, prompt: str, by_name: Mapping[str, str]) -> None:
        self.prompt, self.by_name = prompt, dict(by_name)

    def split(self, name: str) -> tuple[str, str]:
        """A text as far as it is the first one's, word for word, and the rest."""
        first, text = next(iter(self.by_name.values())), self.by_name[name]
        if first == text:
            return text, ""
        pairs = zip(first, text, strict=False)
        alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        at = text.rfind(" ", 0, alike) + 1  # the word before which they part
        return text[:at], text[at:]

    def __repr__(self) -> str:
        return "\n".join(f"{name:>12}: {self.prompt}{one}" for name, one in self.by_name.items())

    def _repr_html_(self) -> str:
        rows = []
        for name in self.by_name:
            same, other = (html.escape(part) for part in self.split(name))
            text = f"<i>{html.escape(self.prompt)}</i>{same}<span style='color:{COLORS[0]}'>{other}"
            left, title = "text-align:left", html.escape(name)
            rows.append(
                f"<tr><td style='{left};white-space:nowrap'><b>{title}</b></td>"
                f"<td style='{left}'>{text}</span></td></tr>"
            )
        return f"<table>{''.join(rows)}</table>"


def log_probabilities(model: Any, ids: Any, context: int = 256) -> Any:
    """What a model predicts of every token but the first in chunks of ``context`` tokens: float64
    [predictions], in nats. ``ids``: [n] token ids, the same for all models that are compared.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    chunks, found = ids[: len(ids) // context * context].view(-1, context), []
    with torch.inference_mode():
        for some in chunks.split(4):
            logits = model(input_ids=some[:, :-1], use_cache=False).logits.float()
            losses = F.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="none")
            found.append(-losses.double().numpy())
    return np.concatenate(found)


def perplexity(model: Any, ids: Any, context: int = 256) -> float:
    """exp of the mean cross-entropy of the same tokens; see :func:`log_probabilities`."""
    return math.exp(-float(log_probabilities(model, ids, context).mean()))


class Answer:
    """Whether an exercise's answer is right, and a hint if it is not. Shows itself with a sign."""

    def __init__(self, name: int | str, right: bool | None, hint: str = "") -> None:
        self.name, self.right, self.hint = name, right, hint

    def __repr__(self) -> str:
        if self.right is None:
            said = f"… {say('exercise {name} is not answered yet', name=self.name)}"
        else:
            said = f"{'✓' if self.right else '✗'} {self.name}"
        return f"{said}: {self.hint}" if self.hint else said

    def _repr_html_(self) -> str:
        color = GREY if self.right is None else "#2e7d32" if self.right else "#b00020"
        return (
            f"<div style='color:{color};font-size:115%;border-left:4px solid {color};"
            f"padding-left:.6em'>{html.escape(repr(self))}</div>"
        )


def check(number: int, answer: Any) -> Answer:
    """Look at the answer of an exercise: a number, or several. None is not answered yet."""
    import numpy as np

    if answer is None:
        return Answer(number, None)
    try:
        given = np.atleast_1d(np.asarray(answer, dtype=np.float64)).ravel()
    except (ValueError, TypeError):  # a word, or a number with a comma
        return Answer(number, False, say("Write a number with a point: 1.5"))

    def near(wanted: tuple[float, ...]) -> bool:
        return given.shape == (len(wanted),) and np.allclose(
            given, wanted, rtol=0, atol=NEAR[number]
        )

    if near(ANSWERS[number]):
        return Answer(number, True)
    if given.size != len(ANSWERS[number]):
        wanted = len(ANSWERS[number])
        return Answer(number, False, say("{wanted} numbers are asked for", wanted=wanted))
    hint = next((said for wrong, said in WRONG[number].items() if near(wrong)), HINTS[number])
    return Answer(number, False, say(hint))
