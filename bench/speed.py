"""Five GGUF types from one checkpoint: ours against the usual sequence, in one run, alternating.
usage: python -m bench.speed FOLDER [ROUNDS [LAYERS]]

LAYERS makes a random Llama of that many layers of width 4096 with FOLDER's tokenizer (4: 1.2
billion parameters) and measures with that.

The usual sequence is llama.cpp's convert script, then five quantize runs one after the other with
all cores each. Of those runs only llama_model_quantize itself is counted (a Python start is not
charged to them). Ours is `autoquant quantize gguf` from process start to exit with every check,
without evaluation; "files written" is when the last of the five was there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from autoquant.backends.llamacpp import converter
from bench.memory import checkpoint

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M")
QUANTIZE = """
import ctypes, sys, time
from llama_cpp import llama_cpp as L
from autoquant.backends.llamacpp.types import TYPES
quiet = L.llama_log_callback(lambda *_: None)
L.llama_log_set(quiet, ctypes.c_void_p(0))
p = L.llama_model_quantize_default_params(); p.ftype = TYPES[sys.argv[3]].number
start = time.perf_counter()
status = L.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(p))
print(time.perf_counter() - start); sys.exit(status)
"""


def usual(model: Path, work: Path) -> tuple[float, float]:
    """Seconds of the convert script and of the five quantize calls."""
    start = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            str(converter.locate() / "convert_hf_to_gguf.py"),
            str(model),
            "--outfile",
            str(work / "f16.gguf"),
            "--outtype",
            "auto",
            "--model-name",
            model.name,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    convert = time.perf_counter() - start
    total = 0.0
    for name in TYPES:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                QUANTIZE,
                str(work / "f16.gguf"),
                str(work / f"{name}.gguf"),
                name,
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        total += float(done.stdout)
    return convert, total


def ours(model: Path, out: Path, trace: Path) -> tuple[float, float]:
    """Seconds of the whole command, and until the last type was written."""
    trace.unlink(missing_ok=True)
    begun, start = time.monotonic(), time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "autoquant.cli",
            "quantize",
            "gguf",
            str(model),
            "--types",
            ",".join(TYPES),
            "--evaluate",
            "off",
            "--out",
            str(out),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "AUTOQUANT_TRACE": str(trace)},
    )
    whole = time.perf_counter() - start
    ends = [
        event["end"]
        for event in map(json.loads, trace.read_text().splitlines())
        if event["name"].startswith("quantize ")
    ]
    return whole, max(ends) - begun


def main(model: Path, rounds: int) -> None:
    """Alternate and print medians and ratios."""
    work = Path("bench-work/speed").resolve()
    rows = []
    for i in range(rounds + 1):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        row = (*usual(model, work), *ours(model, work / "ours", work / "trace"))
        if i:  # the first round warms the page cache
            rows.append(row)
            print("  ".join(f"{value:6.2f}" for value in row), flush=True)
    digest = {
        path: hashlib.sha256(path.read_bytes()).digest()
        for path in (*work.glob("*.gguf"), *work.glob("ours/*.gguf"))
    }
    same = all(
        digest[work / f"{name}.gguf"] == digest[work / "ours" / f"{model.name}-{name}.gguf"]
        for name in TYPES
    )
    convert, quantize, whole, written = (
        statistics.median(row[i] for row in rows) for i in range(4)
    )
    print(
        f"usual: convert {convert:.2f} s + quantize {quantize:.2f} s = {convert + quantize:.2f} s"
    )
    print(
        f"ours: files written {written:.2f} s (ratio"
        f" {statistics.median(r[3] / (r[0] + r[1]) for r in rows):.2f}), with every check and the"
        f" process end {whole:.2f} s (ratio"
        f" {statistics.median(r[2] / (r[0] + r[1]) for r in rows):.2f})"
    )
    print(f"identical bytes: {same}")


if __name__ == "__main__":
    given, wide = Path(sys.argv[1]).resolve(), Path("bench-work/wide").resolve()
    if len(sys.argv) > 3:
        shutil.rmtree(wide, ignore_errors=True)
        checkpoint(wide, int(sys.argv[3]), given)
    main(wide if len(sys.argv) > 3 else given, int(sys.argv[2]) if len(sys.argv) > 2 else 5)
