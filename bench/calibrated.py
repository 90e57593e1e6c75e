"""Memory of GPTQ, AWQ and AutoRound: the largest own (anonymous) memory of any one process, for
each piece of work of a run, on random checkpoints of two sizes; beside what a plan says.

usage: python -m bench.calibrated WORK LAYERS… [METHOD…]

METHOD is GPTQ, AutoRound or AWQ; without one, all three. A layer of width 4096 has 405 MB in
bfloat16: 4 of them are a checkpoint of 2.1 GB, 8 one of 3.8 GB. Few samples and steps: more of them
take time, and as much memory as a plan says.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path
from typing import Any

import autoquant
from autoquant.core.errors import CheckFailed
from autoquant.runtime import process
from bench.memory import checkpoint
from bench.tensorwise import Watch

COMMON: dict[str, Any] = {
    "calibration_samples": 8,
    "calibration_length": 256,
    "group_size": 128,
    "batch_size": 4,
    "evaluate": "off",
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "AutoRound": ("awq", {"algorithm": "autoround", "iterations": 2}),
    "GPTQ": ("gptq", {}),
    "AWQ": ("awq", {"algorithm": "awq"}),
}


class Quantizing(Watch):
    """Leaves the checks out: they load the finished folder, and are known (bench/tensorwise.py)."""

    def _call(self, target: str, /, **kwargs: Any) -> Any:
        if target.endswith("checks:verify"):
            raise CheckFailed("no checks here")
        return super()._call(target, **kwargs)


def main(work: Path, layers: list[int], names: list[str]) -> None:
    """Make checkpoints, run, and print."""
    for count in layers:
        folder = work / f"calibrated-{count}"
        shutil.rmtree(folder, ignore_errors=True)
        size = checkpoint(folder, layers=count)
        for name in names:
            method, options = RUNS[name]
            values = {**COMMON, **options}
            planned = autoquant.plan(method, folder, **values).memory_needed
            real, watch = process.call, Quantizing()
            try:
                with contextlib.suppress(CheckFailed):
                    getattr(autoquant, method)(folder, out=work / "out", **values)
            finally:
                process.call = real
                shutil.rmtree(work / "out", ignore_errors=True)
            pieces = ", ".join(
                f"{one.rpartition(':')[2]} {peak / 1e9:.2f} GB ({seconds:.0f} s)"
                for one, (seconds, peak) in watch.seen.items()
                if peak > 5e8
            )
            print(f"{size / 1e9:.1f} GB, {name}: plan {planned / 1e9:.2f} GB; {pieces}", flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(
        Path(sys.argv[1]).resolve(),
        [int(one) for one in sys.argv[2:] if one not in RUNS],
        [one for one in sys.argv[2:] if one in RUNS] or list(RUNS),
    )
