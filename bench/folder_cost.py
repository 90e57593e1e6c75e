"""What GPTQ's wrapper costs, and the memory of GPTQ, AWQ and AutoRound on a synthetic checkpoint of
1.9 GB. usage: python -m bench.folder_cost WORK [time|memory]

Time: `autoquant quantize gptq` with all of its checks against a direct call of GPTQModel with the
    same samples, alternating, on WORK/smollm2.
Memory: the largest resident set of any one process, sampled from /proc; "anonymous" leaves out
    mapped file pages, which the system can take back.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.memory import checkpoint, resident

DIRECT = """
import json, os, sys
import torch
from gptqmodel import GPTQModel
from gptqmodel.quantization.config import GPTQConfig
model, target, ids, offload = sys.argv[1:]
samples = [{"input_ids": s, "attention_mask": [1] * len(s)} for s in json.load(open(ids))]
config = GPTQConfig(bits=4, group_size=64, offload_to_disk_path=offload)
loaded = GPTQModel.load(model, config, device="cpu")
loaded.quantize(samples, batch_size=4)
loaded.save(target)
os._exit(0)
"""
SAMPLES, LENGTH, ROUNDS = 128, 512, 2  # the defaults


def cost(work: Path) -> None:
    """Alternate the two sides; print each and the ratio of the medians."""
    import autoquant
    from autoquant import calibration
    from autoquant.core import options
    from autoquant.methods import METHODS
    from autoquant.methods.gptq import GptqOptions
    from autoquant.runtime import process

    parts: dict[str, float] = {}
    real = process.call

    def timed(target: str, /, **kwargs: Any) -> Any:
        begin = time.monotonic()
        try:
            return real(target, **kwargs)
        finally:
            parts[target.split(":")[1]] = time.monotonic() - begin

    process.call = timed

    model, scratch = work / "smollm2", work / "folder-cost"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    text = calibration.documents(options.build(calibration.CalibrationOptions, {}))
    (scratch / "ids.json").write_text(
        json.dumps(calibration.pack(str(model), text.texts, samples=SAMPLES, length=LENGTH, seed=0))
    )
    ours, direct = [], []
    for i in range(ROUNDS):
        start = time.monotonic()
        subprocess.run(
            [
                sys.executable,
                "-c",
                DIRECT,
                str(model),
                str(scratch / f"direct{i}"),
                str(scratch / "ids.json"),
                str(scratch / "offload"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=scratch,
            env={**os.environ, **METHODS["gptq"].environment(GptqOptions())},
        )
        direct.append(time.monotonic() - start)
        parts.clear()
        start = time.monotonic()
        autoquant.gptq(
            model,
            group_size=64,
            calibration_samples=SAMPLES,
            calibration_length=LENGTH,
            evaluate="off",
            out=scratch / f"ours{i}",
        )
        ours.append(time.monotonic() - start)
        inside = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items())
        print(
            f"round {i + 1}: GPTQModel alone {direct[-1]:.1f} s, autoquant with all checks"
            f" {ours[-1]:.1f} s ({inside})",
            flush=True,
        )
    print(
        f"ratio of medians: {statistics.median(ours) / statistics.median(direct):.3f}", flush=True
    )


def memory(work: Path) -> None:
    """Quantize a synthetic checkpoint of 16 layers with each algorithm; print the peaks."""
    out = work / "folder-memory"
    learned = ("--algorithm", "autoround", "--iterations", "2", "--calibration-samples", "16")
    scaled = ("--algorithm", "awq", "--calibration-samples", "4")
    for method, more in (
        ("gptq", ("--calibration-samples", "16", "--calibration-length", "256")),
        ("gptq", learned),
        ("awq", scaled),
    ):
        layers = 8 if "awq" in more else 16  # AWQ takes minutes a layer on a CPU
        model = work / f"synthetic-2048-{layers}"
        if not model.is_dir():
            checkpoint(model, layers=layers, width=2048)
        size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        print(f"checkpoint: {size / 1e9:.2f} GB, {layers} layers of width 2048", flush=True)
        shutil.rmtree(out, ignore_errors=True)
        words = [
            sys.executable,
            "-m",
            "autoquant.cli",
            "quantize",
            method,
            str(model),
            "--calibration-length",
            "128",
            *more,
            "--evaluate",
            "off",
            "--out",
            str(out),
        ]
        start = time.monotonic()
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        peaks = {"RssAnon": 0, "VmRSS": 0}
        while child.poll() is None:
            for key, value in resident(child.pid).items():
                peaks[key] = max(peaks[key], value)
            time.sleep(0.05)
        planned = subprocess.run(
            [*words[:3], "plan", *words[4:-4], "--out", str(out)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        line = next(one for one in planned.splitlines() if one.startswith("memory"))
        print(
            f"{method} {' '.join(more)}: exit status {child.returncode},"
            f" {time.monotonic() - start:.0f} s; largest process {peaks['RssAnon'] / 1e9:.2f} GB"
            f" anonymous, {peaks['VmRSS'] / 1e9:.2f} GB resident = {peaks['VmRSS'] / size:.2f} of"
            f" the checkpoint; plan: {line}",
            flush=True,
        )
    shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    chosen = sys.argv[2:] or ["time", "memory"]
    if "time" in chosen:
        cost(Path(sys.argv[1]).resolve())
    if "memory" in chosen:
        memory(Path(sys.argv[1]).resolve())
