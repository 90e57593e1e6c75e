"""How long a GGUF run takes here, by what this machine was measured to do in a second."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import converter as llama
from autoquant.core import rates
from autoquant.core.gguf_head import Head
from autoquant.core.records import Source
from autoquant.fisher.table import SAMPLE
from autoquant.methods import gradients as backward
from autoquant.methods.gguf.options import GgufOptions
from autoquant.methods.gguf.sizes import RUN_BY
from autoquant.methods.gguf.streaming import Way
from autoquant.runtime import process

INTEGERS = ("I8", "I16", "I32", "I64", "F64")


def seconds(
    download: int, options: GgufOptions, plans: list[dict[str, Any]], head: Head, way: Way
) -> dict[str, float]:
    """Seconds to ``download`` as many bytes, if anything has been downloaded here before, and to
    ``quantize`` all types (with the checks of every value, without those of the files). ``head`` is
    that of the file that types are made of. Collecting an importance matrix and measuring come on
    top.
    """
    weights: Counter[str] = Counter()
    for one in head.tensors.values():
        weights[f"floats {one.type}"] += one.elements
    for plan in plans:
        for name, kind in plan.get("tensors", {}).items():
            if kind != head.tensors[name].type:
                weights[kind] += head.tensors[name].elements
    if way.twice and RUN_BY not in options.files:
        weights[RUN_BY] += sum(one.elements for one in head.tensors.values())
    known = _rates([kind for kind in weights if kind.removeprefix("floats ") not in INTEGERS])
    found = {"quantize": sum(weights[kind] / rate for kind, rate in known.items()) / options.cores}
    rate = rates.known().get("download")
    return {"download": download / rate, **found} if download and rate else found


def gradients(
    source: Source, options: GgufOptions, head: Head, kinds: Mapping[str, list[str]]
) -> dict[str, float]:
    """Seconds of a run forward and backward, and of quantizing some of each tensor to each of its
    ``kinds``.
    """
    weights: Counter[str] = Counter()
    for name, every in kinds.items() if options.size else ():
        for kind in every:
            weights[kind] += min(SAMPLE, head.tensors[name].elements)
    known = _rates(list(weights))
    quantizing = sum(weights[kind] / rate for kind, rate in known.items()) / options.cores
    run = backward.seconds(source, options.sensitivity_samples)
    return {"measure sensitivities": run + quantizing}


def _rates(kinds: list[str]) -> dict[str, float]:
    """Weights that a thread makes in a second, by type; measured once, in a second or two."""
    version = llama.installed_version()
    names = {kind: f"{kind} by llama-cpp-python {version}" for kind in kinds}
    known = rates.known()
    if unknown := [kind for kind, name in names.items() if name not in known]:
        with tempfile.TemporaryDirectory() as scratch:
            measured = process.call(
                "autoquant.backends.llamacpp.ggml:rates",
                log=Path(scratch) / "log",
                env=llama.environment(llama.locate("")),
                fresh=True,  # it needs nothing that takes seconds to import
                kinds=unknown,
            )
        now = {names[kind]: rate for kind, rate in measured.items()}
        rates.note(now)
        known |= now  # where nothing can be kept, too
    return {kind: known[name] for kind, name in names.items()}
