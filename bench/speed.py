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

import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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


def busy(events: list[dict[str, Any]], samples: list[tuple[float, dict[int, float]]]) -> float:
    """Processor seconds per core and second while types are made: of the process that takes the
    most of them.
    """
    made = next(event for event in events if event["name"] == "quantize types")
    during = [times for at, times in samples if made["start"] <= at <= made["end"]]
    seen = [at for at, _ in samples if made["start"] <= at <= made["end"]]
    used = max(during[-1][pid] - during[0].get(pid, 0.0) for pid in during[-1])
    return used / (len(os.sched_getaffinity(0)) * (seen[-1] - seen[0]))


def ours(model: Path, out: Path, trace: Path) -> tuple[float, float, float]:
    """Seconds of the whole command, and until the last type was written; and how busy the cores
    were meanwhile.
    """
    trace.unlink(missing_ok=True)
    begun, start = time.monotonic(), time.perf_counter()
    child = subprocess.Popen(
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
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "AUTOQUANT_TRACE": str(trace)},
    )
    samples = []
    while child.poll() is None:
        samples.append((time.monotonic(), processor_time(child.pid)))
        time.sleep(0.05)
    whole = time.perf_counter() - start
    if child.returncode:
        raise SystemExit(f"exit status {child.returncode}")
    events = list(map(json.loads, trace.read_text().splitlines()))
    ends = [event["end"] for event in events if event["name"].startswith("quantize ")]
    return whole, max(ends) - begun, busy(events, samples)


def processor_time(pid: int) -> dict[int, float]:
    """Processor seconds of a process and all below it, by number."""
    found: dict[int, float] = {}
    pids, tick = [pid], os.sysconf("SC_CLK_TCK")
    while pids:
        one = pids.pop()
        if one in found:
            continue
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            found[one] = (int(fields[11]) + int(fields[12])) / tick
    return found


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
    print(f"cores busy while quantizing: {statistics.median(row[4] for row in rows):.2f}")


if __name__ == "__main__":
    given, wide = Path(sys.argv[1]).resolve(), Path("bench-work/wide").resolve()
    if len(sys.argv) > 3:
        shutil.rmtree(wide, ignore_errors=True)
        checkpoint(wide, int(sys.argv[3]), given)
    main(wide if len(sys.argv) > 3 else given, int(sys.argv[2]) if len(sys.argv) > 2 else 5)
