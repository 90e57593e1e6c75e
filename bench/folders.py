"""Quality, size, time and memory of the methods that write folders. usage: python -m bench.folders
demo|FOLDER [SET …]

Prints one Markdown row a configuration as soon as it is measured. SETs are "gptq", "awq",
"autoround", "hqq", "bitsandbytes", "w8a8" (default: all); "steps" is GPTQ and AutoRound with 50 and
200 steps, one after the other, for what the steps cost. "seconds" is a run with all of its checks
and without evaluation; "memory" the largest process's resident set during it, sampled 20 times a
second.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import autoquant
from autoquant.display import tables
from autoquant.methods import METHODS
from bench.memory import resident

HEAD = (
    "format",
    "algorithm",
    "type",
    "bits/weight",
    "size",
    "perplexity",
    "KL mean",
    "top-1 agreement",
    "seconds",
    "memory",
)


def configurations(small: bool, sets: list[str]) -> list[list[str]]:
    """Command lines. The bundled model gets the whole grid; a larger one groups of 64 and 32
    (GPTQ) or 64, and AutoRound with 50 steps, and once with its default.
    """
    sizes = ("128", "64", "32") if small else ("64", "32")
    scaled, learned = (
        "--algorithm awq",
        "--algorithm autoround" + ("" if small else " --iterations 50"),
    )
    lines = {
        "gptq": [
            *(f"gptq --bits {bits} --group-size {size}" for bits in "8432" for size in sizes),
            *(
                f"gptq --bits {bits} --group-size 64 {more}"
                for bits in ("42" if small else "4")
                for more in ("--desc-act", "--no-sym")
            ),
        ],
        "awq": [
            *(f"awq {scaled} --group-size {size}" for size in (sizes if small else ("64",))),
            *([f"awq {scaled} --group-size 64 --no-zero-point"] if small else []),
        ],
        "autoround": [
            *(f"gptq {learned} --bits {bits} --group-size 64" for bits in "432"),
            f"awq {learned} --group-size 64",
            *([] if small else ["gptq --algorithm autoround --bits 4 --group-size 64"]),
        ],
        "steps": [
            "gptq --bits 4 --group-size 64",
            *(
                f"gptq --algorithm autoround --bits 4 --group-size 64 --iterations {steps}"
                for steps in ("50", "200")
            ),
        ],
        "hqq": [
            *(f"hqq --bits {bits} --group-size 64" for bits in ("84321" if small else "8432")),
            *(f"hqq --bits {bits} --group-size 64 --axis 0" for bits in "432" if small),
            *(
                f"hqq --bits {bits} --group-size 16{axis}"
                for bits in "321"
                if small
                for axis in ("", " --axis 0")
            ),
        ],
        "bitsandbytes": [
            "bitsandbytes",
            *(["bitsandbytes --no-double-quant"] if small else []),
            "bitsandbytes --quant-type fp4",
            "bitsandbytes --quant-type int8",
        ],
        "w8a8": [
            f"w8a8 --scheme {scheme}" for scheme in ("int8-dynamic", "int8-static", "fp8-dynamic")
        ],
    }
    return [line.split() for name in sets for line in lines[name]]


def run(words: list[str]) -> tuple[float, int]:
    """Run a command; its seconds and the largest resident set of one of its processes."""
    start, peak, done = time.monotonic(), [0], threading.Event()
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], resident(child.pid)["VmRSS"])

    thread = threading.Thread(target=watch)
    thread.start()
    status = child.wait()
    done.set()
    thread.join()
    if status:
        raise SystemExit(f"{' '.join(words)} exited with status {status}")
    return time.monotonic() - start, peak[0]


def main(model: str, sets: list[str]) -> None:
    """Measure and print."""
    small = model == "demo"
    common = ["--calibration-samples", "32" if small else "16", "--calibration-length", "256"]
    work = Path("bench-work/folders") / Path(model).name
    shutil.rmtree(work, ignore_errors=True)
    for i, (method, *more) in enumerate(configurations(small, sets)):
        out = work / str(i)
        calibrates = method in ("gptq", "awq") or "int8-static" in more
        words = [
            sys.executable,
            "-m",
            "autoquant.cli",
            "quantize",
            method,
            model,
            *more,
            *(common if calibrates else []),
            "--out",
            str(out),
        ]
        seconds, peak = run([*words, "--evaluate", "off"])
        subprocess.run(
            [*words, "--evaluate", "on", "--eval-chunks", "40" if small else "20"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        result = autoquant.load(str(out))
        (artifact,) = result.artifacts
        if i == 0:
            print(
                tables.markdown(
                    HEAD,
                    [("unquantized", "", "", *tables.rows(result)[0][1:4], "0", "100.0%", "", "")],
                    left=3,
                ),
                flush=True,
            )
        quality = tables.quality(artifact.evaluation)
        algorithm = str(artifact.facts["algorithm"]).split(" ")[0].rstrip(":") + (
            f", {more[more.index('--iterations') + 1]} steps" if "--iterations" in more else ""
        )
        cells = (
            METHODS[method].title,
            algorithm,
            artifact.type.removesuffix("-autoround"),
            f"{artifact.bits_per_weight:.2f}",
            tables.size(artifact.bytes),
            quality[0],
            quality[1],
            quality[4],
            f"{seconds:.0f}",
            f"{peak / 1e9:.2f} GB",
        )
        print("| " + " | ".join(cells) + " |", flush=True)
        shutil.rmtree(out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or ["gptq", "awq", "autoround", "hqq", "bitsandbytes", "w8a8"])
