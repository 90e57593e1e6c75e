"""The wrapper's own cost: wall time in which no library works, over the whole run with evaluation.
usage: python -m bench.overhead FOLDER

Library work is what autoquant/trace.py marks, in all processes: importing torch, transformers and
llama.cpp, the converter, llama.cpp's calls, transformers' forward passes, and NumPy's arithmetic on
logits (printed apart).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

TYPES = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M"


def main(model: Path) -> None:
    """Run once and print the parts."""
    work = Path("bench-work/overhead").resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    trace = work / "trace"
    start = time.monotonic()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "autoquant.cli",
            "quantize",
            "gguf",
            str(model),
            "--types",
            TYPES,
            "--evaluate",
            "on",
            "--out",
            str(work / "out"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        env={
            **os.environ,
            "AUTOQUANT_TRACE": str(trace),
            "AUTOQUANT_CACHE": str(work / "cache"),
            "AUTOQUANT_LLAMA_CPP": os.environ.get("AUTOQUANT_LLAMA_CPP") or str(_converter()),
        },
    )
    total = time.monotonic() - start
    events = [json.loads(line) for line in trace.read_text().splitlines()]
    covered, until = 0.0, start
    for event in sorted(events, key=lambda e: e["start"]):
        if event["end"] > until:
            covered += event["end"] - max(event["start"], until)
            until = event["end"]
    arithmetic = sum(e["end"] - e["start"] for e in events if e["name"] == "arithmetic on logits")
    print(
        f"whole run {total:.1f} s; no library at work {total - covered:.2f} s ="
        f" {(total - covered) / total:.1%} (NumPy on logits: {arithmetic:.1f} s of processor time)"
    )


def _converter() -> Path:
    from autoquant.backends.llamacpp import converter

    return converter.locate()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
