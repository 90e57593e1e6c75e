"""Pictures with sliders that need no kernel: all states are drawn at once, a few lines of script
show the one that the sliders name. Where no script runs (GitHub, a notebook that is not trusted)
the first state is there as an image, without sliders.

Widgets of ipywidgets live in a kernel: a saved notebook that is opened again shows "Error
displaying widget" in their place.
"""

from __future__ import annotations

import base64
import html
import itertools
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoquant.core.language import say
from autoquant.display.colors import BLUE, GREY, ORANGE, RED

GPUS = (("T4", 16), ("RTX 4090", 24), ("A100", 80))  # GB, as they are sold
# half a bit more for scales, as with groups of 32
MEMORY = (
    ("FP32", 32.0),
    ("FP16, BF16", 16.0),
    ("INT8", 8.0),
    ("4 bits", 4.5),
    ("3 bits", 3.5),
    ("2 bits", 2.5),
)
LETTER = 7.2  # px, of a number in letters of 13 px
MODELS = (0.5, 1, 1.5, 2, 3, 4, 7, 8, 9, 12, 14, 20, 24, 27, 32, 40, 50, 70, 80)  # billions
SCRIPT = """(() => {
const box = document.getElementById("ID"), image = box.querySelector("img");
const inputs = [...box.querySelectorAll("input")], frames = FRAMES, head = HEAD;
const show = () => {
  let at = 0;
  for (const one of inputs) {
    at = at * (+one.max + 1) + +one.value;
    one.nextElementSibling.textContent = one.dataset.stops.split("|")[one.value];
  }
  image.src = "data:image/svg+xml," + encodeURIComponent(head + frames[at][0] + "</svg>");
  image.alt = frames[at][1];
};
for (const one of inputs) one.addEventListener("input", show);
box.querySelector("div").style.display = "";
show();
})();"""


@dataclass(frozen=True)
class Slider:
    """One slider: what it is called, its stops as they are shown, the values they stand for, and
    which is the first state.
    """

    title: str
    shown: Sequence[str]
    values: Sequence[Any]
    first: int


class Moving:
    """A picture that sliders move. ``draw`` takes a value of each slider and gives the inside of an
    SVG and a sentence that says what is seen. Shows itself in a notebook.
    """

    def __init__(
        self,
        sliders: Sequence[Slider],
        draw: Callable[..., tuple[str, str]],
        width: int,
        height: int,
    ) -> None:
        self.sliders, self.width = sliders, width
        self.head = (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}'"
            f" width='{width}' height='{height}' font-family='sans-serif' font-size='13'>"
            "<rect width='100%' height='100%' fill='white'/>"
        )
        # in the order in which SCRIPT counts: the last slider moves first
        self.frames = [draw(*values) for values in itertools.product(*(s.values for s in sliders))]
        self.first = 0
        for slider in sliders:
            self.first = self.first * len(slider.values) + slider.first

    def __repr__(self) -> str:
        return self.frames[self.first][1]

    def image(self) -> str:
        """The first state, as an HTML image that holds its own data."""
        body, caption = self.frames[self.first]
        data = base64.b64encode(f"{self.head}{body}</svg>".encode()).decode()
        return (
            f'<img alt="{html.escape(caption)}" width="{self.width}"'
            f' src="data:image/svg+xml;base64,{data}">'
        )

    def _repr_html_(self) -> str:
        name = f"moving-{uuid.uuid4().hex}"  # one page may show the same picture twice
        rows = "".join(
            f'<label style="display:flex;gap:1em;max-width:{self.width}px">'
            f'<span style="flex:0 0 14em">{html.escape(slider.title)}</span>'
            f'<input type="range" style="flex:1" min="0" max="{len(slider.values) - 1}"'
            f' value="{slider.first}" data-stops="{html.escape("|".join(slider.shown))}">'
            f'<output style="flex:0 0 7em">{html.escape(slider.shown[slider.first])}</output>'
            "</label>"
            for slider in self.sliders
        )
        script = (
            SCRIPT.replace("ID", name, 1)
            .replace("FRAMES", json.dumps(self.frames), 1)
            .replace("HEAD", json.dumps(self.head), 1)
        )
        return (
            f'<div id="{name}"><div style="display:none">{rows}</div>{self.image()}'
            f"<script>{script}</script></div>"
        )


def text(x: float, y: float, said: str, more: str = "") -> str:
    """A line of text in an SVG."""
    return f"<text x='{x:.0f}' y='{y:.0f}' {more}>{html.escape(said)}</text>"


def memory(billions: float) -> dict[str, float]:
    """The memory footprint of a model's weights in GB (10^9 bytes) by format: parameters · bits /
    8.
    """
    return {name: billions * bits / 8 for name, bits in MEMORY}


def memory_slider(billions: float = 8.0) -> Moving:
    """A slider over a model's parameters, in billions: the memory footprint of its weights in each
    format as bars, and the memory of some GPUs as lines.
    """
    left, right, top, row, end = 100, 700, 34, 30, 100.0  # px; the axis ends at 100 GB
    across = (right - left) / end

    def draw(billions: float) -> tuple[str, str]:
        bars, lines, numbers = [], [], []
        for i, (name, gigabytes) in enumerate(memory(billions).items()):
            y, width = top + row * i, min(gigabytes, end) * across
            color, inside = BLUE if gigabytes < GPUS[-1][1] else GREY, width > 80
            bars += [
                text(left - 8, y + 19, say(name), "text-anchor='end'"),
                (
                    f"<rect x='{left}' y='{y + 4}' width='{max(2, width):.0f}' height='{row - 8}'"
                    f" fill='{color}'/>"
                ),
            ]
            number = f"{gigabytes:.1f} GB{' →' if gigabytes > end else ''}"
            wide = LETTER * len(number)
            at = left + width + (-6 - wide if inside else 6)
            numbers += [  # on a ground of their own, so that no line runs through them
                (
                    f"<rect x='{at - 2:.0f}' y='{y + 6}' width='{wide + 4:.0f}' height='18'"
                    f" fill='{color if inside else 'white'}'/>"
                ),
                text(
                    at,
                    y + 20,
                    number,
                    f"fill='{'white' if inside else color}' textLength='{wide:.0f}'",
                ),
            ]
        for gpu, size in GPUS:
            x = left + size * across
            lines += [
                (
                    f"<path d='M{x:.0f} {top - 4}V{top + row * len(MEMORY)}' stroke='{RED}'"
                    " stroke-width='2' stroke-dasharray='5 3'/>"
                ),
                # the first two lines lie close together: one name to the left, one to the right
                text(
                    x + (-6 if size == GPUS[0][1] else 6),
                    top - 12,
                    f"{gpu}: {size} GB",
                    f"fill='{RED}'{' text-anchor=' + repr('end') if size == GPUS[0][1] else ''}",
                ),
            ]
        said = "; ".join(
            say("{gpu} ({size} GB) holds: {names}", gpu=gpu, size=size, names=names or "–")
            for gpu, size in GPUS
            for names in [", ".join(say(n) for n, held in memory(billions).items() if held < size)]
        )
        title = say("weights of a model of {billions} billion parameters", billions=f"{billions:g}")
        return "".join(bars + lines + numbers), f"{title}. {said}"

    stops = sorted({*MODELS, billions})
    shown = [say("{billions} billion", billions=f"{one:g}") for one in stops]
    return Moving(
        [Slider(say("parameters"), shown, stops, stops.index(billions))],
        draw,
        width=720,
        height=top + row * len(MEMORY) + 6,
    )


def rounded(
    weights: Any, bits: int, clipping: float, zero_point: bool, group: int
) -> tuple[Any, list[Any]]:
    """Weights [n] after quantization, and the values that can be written in each group. The range
    of each group is multiplied by ``clipping``; what lies outside gets its ends.
    """
    after, levels = [], []
    for part in weights.reshape(-1, group):
        if zero_point:
            low, high = clipping * min(part.min(), 0), clipping * max(part.max(), 0)
            scale = (high - low) / (2**bits - 1)
            zero = np.round(-low / scale)
            least, most = -zero, 2**bits - 1 - zero
        else:
            scale = clipping * np.abs(part).max() / (2 ** (bits - 1) - 1)
            least, most = 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1
        after.append(np.clip(np.round(part / scale), least, most) * scale)
        levels.append(np.arange(least, most + 1) * scale)
    return np.concatenate(after), levels


def number_line(weights: Any) -> Moving:
    """32 weights [32] on number lines, one for each group that shares a scale: where they lie, what
    they become, and all values that can be written; with sliders for bits, clipping, zero point
    and group size.
    """
    weights = np.asarray(weights, dtype=np.float64).ravel()
    if weights.shape != (32,):
        raise ValueError(f"32 weights, please, not {weights.size}")
    left, right, top, height = 20, 740, 54, 270
    end = np.abs(weights).max() * 1.04

    def at(values: Any) -> Any:
        return np.round((left + right) / 2 + np.asarray(values) / end * (right - left) / 2)

    def draw(bits: int, clipping: float, zero_point: bool, group: int) -> tuple[str, str]:
        after, levels = rounded(weights, bits, clipping, zero_point, group)
        parts = []
        for i, (before, now, values) in enumerate(
            zip(weights.reshape(-1, group), after.reshape(-1, group), levels, strict=True)
        ):
            room = (height - top - 26) / len(levels)
            y = round(top + room * (i + 0.5) + min(55, room * 0.32))  # the line
            over = round(y - min(110, room * 0.64))  # where the weights were
            ticks = at(values)
            if len(values) > 64:  # too close to be told apart
                parts.append(
                    f"<rect x='{ticks[0]:g}' y='{y}' width='{ticks[-1] - ticks[0]:g}' height='8'"
                    f" fill='{GREY}' opacity='.5'/>"
                )
            else:
                marks = "".join(f"M{x:g} {y}v9" for x in ticks)
                parts.append(f"<path d='{marks}' stroke='{GREY}' stroke-width='1.5'/>")
            moved = "".join(f"M{a:g} {over}L{b:g} {y}" for a, b in zip(at(before), at(now)))  # noqa: B905
            first = "".join(f"M{x:g} {over}h0" for x in at(before))
            last = "".join(f"M{x:g} {y}h0" for x in sorted(set(at(now))))
            parts.append(
                f"<path d='M{left} {y}H{right}' stroke='{GREY}'/>"
                f"<path d='{moved}' stroke='{ORANGE}' opacity='.45'/>"
                "<g stroke-linecap='round' stroke-width='8'>"
                f"<path d='{first}' stroke='{ORANGE}'/><path d='{last}' stroke='{BLUE}'/></g>"
            )
        lost = np.linalg.norm(after - weights) / np.linalg.norm(weights)
        cost = bits + (16 + (bits if zero_point else 0)) / group
        said = say(
            "relative error {lost}, {cost} bits per weight", lost=f"{lost:.3f}", cost=f"{cost:.2f}"
        )
        legend = (
            f"<circle cx='{left + 5}' cy='16' r='5' fill='{ORANGE}'/>"
            f"<circle cx='{left + 165}' cy='16' r='5' fill='{BLUE}'/>"
            f"<path d='M{left + 325} 11v10' stroke='{GREY}' stroke-width='2'/>"
        )
        names = (say("weight"), say("after rounding"), say("what the codes can stand for"))
        parts += [legend, *(text(left + 15 + 160 * i, 20, name) for i, name in enumerate(names))]
        parts.append(text(left, 44, said, "font-weight='bold'"))
        parts += [
            text(at(value), height - 4, f"{value:.2g}", f"fill='{GREY}' text-anchor='middle'")
            for value in (-end / 1.04, 0, end / 1.04)
        ]
        return "".join(parts), said

    clippings, groups = (1.0, 0.85, 0.7, 0.5), (32, 16, 8)
    bits = (2, 3, 4, 5, 8)
    return Moving(
        [
            Slider(say("bits"), [f"{n}" for n in bits], bits, 1),
            Slider(say("clipping"), [f"{one:.0%}" for one in clippings], clippings, 0),
            Slider(say("zero point"), [say("no"), say("yes")], (False, True), 0),
            Slider(say("weights per scale"), [f"{n}" for n in groups], groups, 0),
        ],
        draw,
        width=right + left,
        height=height,
    )
