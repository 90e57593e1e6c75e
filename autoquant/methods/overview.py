"""The table of all methods: what somebody asks who chooses one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autoquant.methods import METHODS
from autoquant.methods.base import AnyMethod, Method

NOTE = " ".join(
    (
        "Type, bits per weight (everything counted, at the shapes of Llama-3.1-8B), KL divergence"
        " (nats per token) and top-1 agreement (of the bundled demo model) are those of a run"
        " without options. GGUF's file was run by llama.cpp; run by its weights, as the others are,"
        " its KL divergence is 0.0003 less. What loads the files: transformers, llama.cpp and hqq"
        " were run in the tests, the others were not.",
        *(
            f"{method.title} was made on a {method.tested_on}."
            for method in METHODS.values()
            if method.tested_on != Method.tested_on
        ),
    )
)
QUANTIZES_ON = {("cpu",): "CPU", ("cuda",): "NVIDIA GPU", ("cpu", "cuda"): "CPU or GPU"}


def measured() -> dict[str, dict[str, Any]]:
    """Figures of each method at its defaults, by its name, as bench/methods.py has measured them:
    ``type``, ``bits_per_weight`` at the shapes of Llama-3.1-8B, and of the bundled model
    ``kl_mean`` (nats per token) and ``agreement`` (top-1 agreement). A method that has not
    been measured is not in it.
    """
    return dict(json.loads(Path(__file__).with_name("measured.json").read_text(encoding="utf-8")))


def table() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table of all methods: head and rows."""
    known = measured()
    head = (
        "method",
        "bits",
        "calibration",
        "GPU to quantize",
        "GPU to run",
        "loaded by",
        "type",
        "bits/weight",
        "KL mean",
        "top-1 agreement",
    )

    def row(method: AnyMethod) -> tuple[str, ...]:
        row = known.get(method.name)
        gpu = "no, but faster"
        if len(method.runs_on) == 1:
            gpu = "yes" if method.runs_on == ("cuda",) else "no"
        figures = (
            (
                row["type"],
                f"{row['bits_per_weight']:.2f}",
                f"{row['kl_mean']:.4f}",
                f"{row['agreement']:.1%}",
            )
            if row
            else ("–",) * 4
        )
        return (
            method.name,
            method.bits,
            method.requires_calibration,
            gpu,
            method.gpu_to_run,
            method.runtimes,
            *figures,
        )

    return head, [row(method) for method in METHODS.values()]


def choosing() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table for who has to choose a method: head and rows."""
    head = ("method", "take it when", "quantizes on", "loaded by", "tested on")
    return head, [
        (
            f"`{method.name}`",
            method.take_when,
            QUANTIZES_ON[method.runs_on],
            method.runtimes,
            "; ".join(filter(None, (method.tested_on, method.cards))),
        )
        for method in METHODS.values()
    ]
