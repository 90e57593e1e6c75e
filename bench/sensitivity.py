"""What measuring sensitivities costs, and how much of it is needed: the time of the gradients
against an importance matrix over the same tokens, memory, and what a table from fewer samples or
fewer rows would have lost: the choices that it leads to, by the table of most samples and all rows.

usage: python -m bench.sensitivity FOLDER [MODEL of the choices; default demo]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import autoquant
from autoquant.backends.llamacpp import converter as llama
from autoquant.core import texts
from autoquant.core.bundled import SENSITIVITY
from autoquant.core.machine import cores
from autoquant.evaluate import planning, sources
from autoquant.fisher import choice, table
from autoquant.fisher.table import Sensitivities
from autoquant.runtime import preload, process
from autoquant.source import fetch, resolve
from bench.memory import own_memory

SAMPLES, MOST = (2, 8, 16, 32), 128
ROWS = (1 << 13, 1 << 15, 1 << 17)  # weights of a tensor that are quantized; ALL are all
ALL = 1 << 40
BITS = (2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0)
CHUNKS = 16


def gradients(folder: str) -> None:
    """Time and memory of both passes over the same tokens, of a model's matrices alone."""
    snapshot = fetch(resolve(folder))
    with tempfile.TemporaryDirectory() as scratch:
        log, env = Path(scratch) / "log", llama.environment(llama.locate(""))
        ids = process.call(
            "autoquant.evaluate.scoring:tokenize",
            log=log,
            env=env,
            folder=folder,
            parts=texts.parts("builtin", "text", SENSITIVITY),
            chunks=CHUNKS,
            context=512,
        )["chunks"]
        common: dict[str, Any] = {
            "log": log,
            "env": env,
            "source": sources.file_of(snapshot, []),
            "chunks": ids,
            "dataset": "",
            "threads": cores(),
            "plan": planning.how(snapshot.source, CHUNKS),
        }
        made = autoquant.gguf(folder, types=["Q8_0"], evaluate="off", out=Path(scratch) / "out")
        from autoquant.core import gguf_head

        head = gguf_head.read(made.path("Q8_0"))
        names = {name for name, one in head.tensors.items() if one.type == "Q8_0"}
        for _ in range(2):
            begun = time.perf_counter()
            with own_memory() as used:
                process.call(
                    "autoquant.evaluate.importance:collect", target=f"{scratch}/i.gguf", **common
                )
            matrix = time.perf_counter() - begun
            begun = time.perf_counter()
            with own_memory() as of_gradients:
                process.call(
                    "autoquant.fisher.collect:collect",
                    kinds={name: [] for name in names},
                    imatrix="",
                    own=f"{scratch}/f.gguf",
                    sample=1,
                    **common,
                )
            seconds = time.perf_counter() - begun
            print(
                f"gradients {seconds:.1f} s, importance matrix {matrix:.1f} s:"
                f" {seconds / matrix:.2f}; own memory {max(of_gradients) / 1e9:.2f} GB,"
                f" {max(used) / 1e9:.2f} GB"
            )


def tables(model: str, work: Path, samples: int, rows: int, seed: int = 0) -> Sensitivities:
    """A table of so many samples and rows."""
    with mock.patch("autoquant.methods.gguf.sensitivity.SAMPLE", rows):
        out = work / f"{samples}-{rows}-{seed}"
        autoquant.sensitivity(
            model, sensitivity_samples=samples, calibration_seed=seed, imatrix="builtin", out=out
        )
    return table.read(out / table.FILE)


def lost(by: Sensitivities, best: Sensitivities) -> str:
    """How much worse the choices by a table are than those by the best, by what that predicts; at
    each number of bits per weight.
    """
    kinds = {name: tuple(row.nats) for name, row in best.tensors.items()}
    weights = sum(row.bytes("Q8_0") / 34 * 32 for row in best.tensors.values())
    worse = []
    for bits in BITS:
        budget = int(weights * bits / 8)
        own = choice.choose(by.costs(kinds, 32), budget)
        ideal = choice.choose(best.costs(kinds, 32), budget)
        worse.append((best.predicted(own.types) or 0.0) / ideal.nats - 1)
    return " ".join(f"{100 * one:5.1f}%" for one in worse)


@preload.kept()
def main(folder: str, model: str) -> None:
    """Print all."""
    gradients(folder)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        best = tables(model, work, MOST, ALL)
        print(f"choices are worse by, at {', '.join(map(str, BITS))} bits per weight:")
        for samples in SAMPLES:
            print(
                f"{samples:4d} samples, all rows: {lost(tables(model, work, samples, ALL), best)}"
            )
        for rows in ROWS:
            print(
                f"{MOST} samples, {rows:6d} weights: {lost(tables(model, work, MOST, rows), best)}"
            )


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()), sys.argv[2] if sys.argv[2:] else "demo")
