"""GGUF files measured by their weights, block by block, beside llama.cpp's own runs of them: the
figures, and the time. And a folder measured block by block beside transformers' whole model.

usage: python -m bench.measuring WORK FOLDER [CHUNKS] [TYPE…]

WORK keeps the files. Prints a table and the ratios of wall times; the reference is computed before.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import autoquant
from autoquant import pipeline
from autoquant.core.bundled import EVALUATION_TEXT
from autoquant.core.machine import cores
from autoquant.evaluate import planning
from autoquant.runtime import preload, process

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K")


def whole(folder: str, chunks: list[list[int]], threads: int) -> float:
    """The perplexity by transformers' whole model in float32, one chunk after the other. Runs in a
    worker.
    """
    import torch

    from autoquant.evaluate.scoring import Measure, targets_of
    from autoquant.formats.architecture import class_of, config_of

    torch.set_num_threads(threads)
    config = config_of(folder)
    model: Any = class_of(config).from_pretrained(folder, config=config, dtype=torch.float32)
    measure = Measure()
    with torch.inference_mode():
        for chunk in chunks:
            keep = len(chunk) - len(chunk) // 2
            logits = model(input_ids=torch.tensor([chunk]), logits_to_keep=keep).logits[0, :-1]
            measure.add(logits, targets_of(chunk))
    return measure.result("", "").perplexity


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    begun = time.perf_counter()
    return run(), time.perf_counter() - begun


@preload.kept()
def main(work: Path, folder: str, chunks: int, types: list[str]) -> None:
    """Make the files, measure them both ways, and print."""
    made = autoquant.gguf(folder, types=types, evaluate="off", out=work / "gguf")
    paths = [made.path(name) for name in types]
    pipeline.evaluate_files([paths[0]], folder, chunks=chunks)  # the reference

    def measure(small: int) -> Any:
        with mock.patch.object(planning, "SMALL", small):
            return pipeline.evaluate_files(paths, folder, chunks=chunks)[1:]

    runs, seconds = timed(lambda: measure(1 << 60))
    weights, seconds_of_weights = timed(lambda: measure(0))
    print(f"{'type':8} {'KL llama.cpp':>13} {'KL weights':>11} {'PPL':>8} {'PPL':>8}  agreement")
    for name, (_, one), (_, other) in zip(types, runs, weights, strict=True):
        print(
            f"{name:8} {one.kl_mean:13.5f} {other.kl_mean:11.5f} {one.perplexity:8.3f}"
            f" {other.perplexity:8.3f}  {one.agreement:.3f} {other.agreement:.3f}"
        )
    ratio = seconds_of_weights / seconds
    print(f"by weights {seconds_of_weights:.0f} s, llama.cpp {seconds:.0f} s: {ratio:.2f}")
    with tempfile.TemporaryDirectory() as scratch:
        ids = process.call(
            "autoquant.evaluate.scoring:tokenize",
            log=Path(scratch) / "log",
            folder=folder,
            parts={"": [EVALUATION_TEXT.read_text(encoding="utf-8")]},
            chunks=chunks,
            context=512,
        )["chunks"]
        common: dict[str, Any] = {"log": Path(scratch) / "log", "chunks": ids, "threads": cores()}
        ours: dict[str, Any] = {
            "source": {"folder": folder},
            "text_sha256": "",
            "kinds": [],
            "target": f"{scratch}/states",
            "scored": f"{scratch}/scored.npy",
        }
        for _ in range(2):
            known, blocks = timed(
                lambda: process.call("autoquant.evaluate.passes:reference", **common, **ours)
            )
            theirs, all_at_once = timed(
                lambda: process.call("bench.measuring:whole", folder=folder, **common)
            )
            print(
                f"folder: blocks {blocks:.1f} s, whole {all_at_once:.1f} s:"
                f" {blocks / all_at_once:.2f}; perplexity {known['row']['perplexity']:.6f}"
                f" {theirs:.6f}"
            )


if __name__ == "__main__":
    main(
        Path(sys.argv[1]).resolve(),
        str(Path(sys.argv[2]).resolve()),
        int(sys.argv[3]) if sys.argv[3:] else 20,
        sys.argv[4:] or list(TYPES),
    )
