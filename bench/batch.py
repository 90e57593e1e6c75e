"""Batches: overhead against calling the functions, planning of many jobs, and a Ray cluster of two
nodes of one core against one core.

usage: python -m bench.batch WORK [overhead|plans|ray …]
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import autoquant
from autoquant.core.bundled import MODELS
from autoquant.runtime import preload

QUICK = {"evaluate": "off"}
PLANNED = 1000
METHODS = ("gguf", "gptq", "awq", "hqq", "w8a8")


def _timed(what: Any) -> float:
    start = time.monotonic()
    what()
    return time.monotonic() - start


def _copies(work: Path, count: int) -> list[str]:
    """So many copies of the small bundled model."""
    folders = []
    for i in range(count):
        folder = work / f"model{i}"
        folder.mkdir(parents=True, exist_ok=True)
        for path in MODELS["demo-small"].iterdir():
            if not (folder / path.name).exists():
                shutil.copy(path, folder)
        folders.append(str(folder))
    return folders


def overhead(work: Path) -> None:
    """20 tiny jobs as a batch, and as 20 calls under one preloaded process."""
    models = _copies(work / "models", 20)
    times: dict[str, list[float]] = {"calls": [], "batch": []}
    for turn in range(3):

        def calls(turn: int = turn) -> None:
            with preload.kept():
                for i, model in enumerate(models):
                    autoquant.hqq(model, out=work / f"calls{turn}-{i}", evaluate="off")

        def batch(turn: int = turn) -> None:
            autoquant.batch(
                [{"models": models, "method": "hqq", **QUICK}], out=work / f"batch{turn}"
            )

        for name, what in (("calls", calls), ("batch", batch)):
            times[name].append(_timed(what))
    calls_took, batch_took = min(times["calls"]), min(times["batch"])
    print(
        f"20 jobs: {calls_took:.2f} s as calls, {batch_took:.2f} s as a batch:"
        f" {100 * (batch_took / calls_took - 1):+.1f} % (best of 3)"
    )


def plans(work: Path) -> None:
    """1,000 jobs planned: 200 models by five methods."""
    models = _copies(work / "models", PLANNED // len(METHODS))
    entry: dict[str, Any] = {"models": models, "methods": list(METHODS), **QUICK}
    entry["gguf"] = {"types": ["Q8_0", "Q4_K_M"], "pre_tokenizer": "gpt-2"}
    found: list[Any] = []
    took = _timed(
        lambda: found.append(autoquant.batch([entry], out=work / "planned", dry_run=True))
    )
    print(f"{len(found[0].ready)} jobs planned in {took:.0f} s")


def ray(work: Path) -> None:
    """6 jobs on two nodes of one core, and one after the other on one core."""
    from ray.cluster_utils import Cluster

    jobs: list[dict[str, Any]] = [{
        "models": ["demo", "demo-small"],
        "methods": ["gguf", "gptq", "w8a8"],
        "eval_chunks": 200,
        "gguf": {
            "types": ["Q8_0", "Q6_K", "Q4_K_M", "Q2_K"],
            "imatrix": "builtin",
            "pre_tokenizer": "gpt-2",
        },
        "w8a8": {"scheme": "int8-static"},
    }]  # fmt: skip
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(every)})
    alone = _timed(lambda: autoquant.batch(jobs, out=work / "alone"))
    os.sched_setaffinity(0, every)
    node = {"num_cpus": 1, "object_store_memory": 80 << 20, "memory": 6 << 30}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    together = _timed(lambda: autoquant.batch(jobs, out=work / "together", ray=cluster.address))
    cluster.shutdown()
    print(
        f"6 jobs: {alone:.1f} s on one core, {together:.1f} s on two nodes of one core:"
        f" {together / alone:.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("what", nargs="*", default=["overhead", "plans", "ray"])
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    shutil.rmtree(given.work, ignore_errors=True)
    given.work.mkdir(parents=True)
    for one in given.what:
        {"overhead": overhead, "plans": plans, "ray": ray}[one](given.work.resolve())
