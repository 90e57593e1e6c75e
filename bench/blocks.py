"""What a run block by block takes: the largest own (anonymous) memory of its process, for random
checkpoints of several sizes, and the seconds. Mapped pages of files are left out: the system can
take them back.

usage: python -m bench.blocks WORK LAYERS…

A layer of width 4096 has 405 MB in bfloat16: 14 of them are a checkpoint of 6.2 GB, 29 one of
12.3 GB. Two chunks of 512 tokens.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from autoquant.core.machine import cores
from autoquant.runtime import preload, process
from bench.memory import checkpoint, own_memory

PLANS: dict[str, dict[str, Any]] = {
    "next block read ahead": {"ahead": True},
    "one block": {"ahead": False},
}


def peak_of(function: str, /, **arguments: Any) -> tuple[Any, int, float]:
    """Call a function in a worker; its result, its process's largest own memory, its seconds."""
    begun = time.monotonic()
    with own_memory() as peak:
        found = process.call(function, **arguments)
    return found, peak[0], time.monotonic() - begun


@preload.kept()
def main(work: Path, layers: list[int]) -> None:
    """Make checkpoints one after the other, run, and print."""
    chunks = [[(7 * i + j) % 30000 for j in range(512)] for i in range(2)]
    for count in layers:
        folder = work / f"{count}-layers"
        shutil.rmtree(folder, ignore_errors=True)
        size = checkpoint(folder, layers=count)
        for name, plan in PLANS.items():
            _, peak, seconds = peak_of(
                "autoquant.evaluate.passes:reference",
                log=work / "log",
                source={"folder": str(folder)},
                chunks=chunks,
                target=str(work / "states.npy"),
                scored=str(work / "scored.npy"),
                threads=cores(),
                text_sha256="",
                kinds=[],
                plan=plan,
            )
            print(f"{size / 1e9:.1f} GB, {name}: {peak / 1e9:.2f} GB, {seconds:.0f} s", flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]).resolve(), [int(one) for one in sys.argv[2:]])
