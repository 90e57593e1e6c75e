"""What the teaching notebook needs beside the lines that teach: pictures of bits, a slider,
perplexity, and answers to exercises.
"""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np

from autoquant.display.colors import BLUE, GREY, ORANGE, RED

FORMATS = {"FP32": (8, 23), "FP16": (5, 10), "BF16": (8, 7), "FP8 E4M3": (4, 3), "FP8 E5M2": (5, 2)}
"""Exponent and mantissa bits. E4M3 without infinities, as in https://arxiv.org/abs/2209.05433 and
on GPUs.
"""
COLORS = (RED, ORANGE, BLUE)  # sign, exponent, mantissa
# half a bit more for scales, as with groups of 32
BOX = "display:inline-block;width:1.1em;text-align:center;color:white;margin-right:1px"
MEMORY = (
    ("FP32", 32.0),
    ("FP16, BF16", 16.0),
    ("INT8", 8.0),
    ("4-bit", 4.5),
    ("3-bit", 3.5),
    ("2-bit", 2.5),
)
ANSWERS: dict[int, tuple[float, ...]] = {
    1: (39.375,),
    2: (-76.0, 13.0, 51.0, 127.0),
    3: (64.0,),
    4: (4.3125,),
}
# an answer may be rounded, 39.4 or 4.3; the nearest wrong one of exercise 4, without the zero
# points, is 4.25
NEAR = {1: 0.1, 2: 0.01, 3: 0.01, 4: 0.02}


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
            f"{name:9} {bits} = {value!r} (error {value - self.number:.3g})"
            for name, (bits, value) in self.rows.items()
        )

    def _repr_html_(self) -> str:
        lines = []
        for name, (bits, value) in self.rows.items():
            sign, exponent, mantissa = COLORS
            color = [sign] + [exponent] * FORMATS[name][0] + [mantissa] * FORMATS[name][1]
            boxes = "".join(
                f"<span style='{BOX};background:{color[i]}'>{bit}</span>"
                for i, bit in enumerate(bits)
            )
            lines.append(
                f"<tr><td style='text-align:left'><b>{name}</b></td><td"
                f" style='text-align:left;white-space:nowrap;font-family:monospace'>{boxes}</td><td"
                f" style='text-align:right'>{value:.9g}</td><td"
                f" style='text-align:right'>{value - self.number:.3g}</td></tr>"
            )
        legend = " ".join(
            f"<span style='color:white;background:{color};padding:0 .5em'>{name}</span>"
            for name, color in zip(("±", "exponent", "mantissa"), COLORS, strict=True)
        )
        return f"<div><p>{self.number!r} &nbsp; {legend}</p><table>{''.join(lines)}</table></div>"


def memory(billions: float) -> dict[str, float]:
    """The memory footprint of a model's weights in GB (10^9 bytes) by format: parameters · bits /
    8.
    """
    return {name: billions * bits / 8 for name, bits in MEMORY}


def memory_slider(billions: float = 8.0) -> Any:
    """A slider over a model's parameters, in billions, with the memory footprint of its weights in
    each format and the memory of some GPUs.
    """
    import ipywidgets

    slider = ipywidgets.FloatSlider(
        value=billions,
        min=0.5,
        max=80,
        step=0.5,
        description="billions",
        continuous_update=True,
        layout={"width": "32em"},
    )
    shown = ipywidgets.HTML()

    def draw(_: Any = None) -> None:
        sizes = memory(slider.value)
        bar = f"<div style='background:{BLUE};height:1em;width:{{}}px'></div>"
        bars = "".join(
            f"<tr><td style='text-align:left'>{name}</td><td"
            f" style='text-align:left'>{bar.format(max(2, round(1.25 * gigabytes)))}</td><td"
            f" style='text-align:right'>{gigabytes:.1f} GB</td></tr>"
            for name, gigabytes in sizes.items()
        )
        shown.value = (
            f"<table>{bars}</table><small>T4: 16 GB · RTX 4090: 24 GB · A100: 80 GB</small>"
        )

    slider.observe(draw, "value")
    draw()
    return ipywidgets.VBox([slider, shown])


def log_probabilities(model: Any, ids: Any, context: int = 256) -> Any:
    """What a model predicts of every token but the first in chunks of ``context`` tokens: float64
    [predictions], in nats. ``ids``: [n] token ids, the same for all models that are compared.
    """
    import torch
    import torch.nn.functional as F

    found = []
    with torch.inference_mode():
        for start in range(0, len(ids) - context + 1, context):
            chunk = ids[start : start + context]
            logits = model(input_ids=chunk[None, :-1]).logits[0].float()
            found.append(-F.cross_entropy(logits, chunk[1:], reduction="none").double().numpy())
    return np.concatenate(found)


def perplexity(model: Any, ids: Any, context: int = 256) -> float:
    """exp of the mean cross-entropy of the same tokens; see :func:`log_probabilities`."""
    return math.exp(-float(log_probabilities(model, ids, context).mean()))


class Answer:
    """Whether an exercise's answer is right. Shows itself with a sign that needs no language."""

    def __init__(self, number: int, right: bool | None) -> None:
        self.number, self.right = number, right

    def __repr__(self) -> str:
        return f"{'…' if self.right is None else '✓' if self.right else '✗'} {self.number}"

    def _repr_html_(self) -> str:
        color = GREY if self.right is None else "#2e7d32" if self.right else "#b00020"
        return f"<b style='color:{color};font-size:120%'>{html.escape(repr(self))}</b>"


def check(number: int, answer: Any) -> Answer:
    """Look at the answer of an exercise: a number, or several. None is not answered yet."""
    if answer is None:
        return Answer(number, None)
    try:
        given = np.atleast_1d(np.asarray(answer, dtype=np.float64)).ravel()
    except (ValueError, TypeError):  # a word, or a number with a comma
        return Answer(number, False)
    expected = np.asarray(ANSWERS[number])
    return Answer(
        number,
        bool(
            given.shape == expected.shape
            and np.allclose(given, expected, rtol=0, atol=NEAR[number])
        ),
    )
