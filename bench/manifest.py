"""The sha256 of everything that a set of runs makes: to show that a change of the code changes no
file.

    python -m bench.manifest OUT.json [NAME …]        run the set (or the named runs) and write a
    manifest
    python -m bench.manifest --compare A.json B.json  what differs between two; exit status 1 if
    anything does

The runs are those of ``make demo`` and RUNS, all methods with fixed seeds on the bundled models,
each through the command line in a process of its own. A manifest has, for each run, the sha256 of
its model files, configs, importance matrices and measurements, and the figures of its evaluation.
Cards, plots and journals are left out: they have times, versions and sentences in them. EXL2, EXL3
and AutoGPTQ run on the tests' stand-ins for a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("*.gguf", "*.safetensors", "*.json", "*.parquet", "Modelfile*")
FAST = "--eval-chunks 4"
CALIBRATED = "--calibration-samples 8 --calibration-length 128"
RUNS = {
    "gguf-types": (
        "gguf demo-small --types F16,Q8_0,Q4_0,Q5_1,Q4_K_M,IQ4_XS,IQ2_M --imatrix builtin"
        f" --imatrix-chunks 8 {FAST}"
    ),
    "gguf-imatrix-calibration": (
        f"gguf demo-small --types Q3_K_S --imatrix calibration {CALIBRATED} {FAST}"
    ),
    "gguf-mixed": (
        "gguf demo-small --types Q4_K_M --output-type Q8_0 --tensor-types attn_v=Q6_K --split-size"
        f" 1M --modelfile --keep-intermediate {FAST}"
    ),
    "gguf-direct": f"gguf demo-small --types Q8_0 {FAST}",
    "gptq-4": f"gptq demo-small {CALIBRATED} {FAST}",
    "gptq-desc-act": f"gptq demo-small --desc-act --bits 3 --group-size 32 {CALIBRATED} {FAST}",
    "gptq-asym": f"gptq demo-small --no-sym --bits 8 {CALIBRATED} {FAST}",
    "gptq-row": (
        f"gptq demo-small --group-size -1 --bits 2 --calibration-seed 3 {CALIBRATED} {FAST}"
    ),
    "gptq-autoround": f"gptq demo-small --algorithm autoround --iterations 4 {CALIBRATED} {FAST}",
    "awq-autoround": f"awq demo-small --iterations 4 {CALIBRATED} {FAST}",
    "awq": f"awq demo-small --algorithm awq {CALIBRATED} {FAST}",
    "awq-sym": (
        f"awq demo-small --algorithm awq --no-zero-point --group-size 64 {CALIBRATED} {FAST}"
    ),
    "hqq-4": f"hqq demo-small {FAST}",
    "hqq-3": f"hqq demo-small --bits 3 --group-size 16 {FAST}",
    "hqq-1-axis-0": f"hqq demo-small --bits 1 --axis 0 {FAST}",
    "nf4-single": f"bitsandbytes demo-small --no-double-quant {FAST}",
    "fp4": f"bitsandbytes demo-small --quant-type fp4 {FAST}",
    "int8-threshold": f"bitsandbytes demo-small --quant-type int8 --threshold 4 {FAST}",
    "w8a8-static": f"w8a8 demo-small --scheme int8-static {CALIBRATED} {FAST}",
    "exl2": (
        "exl2 demo-small --bpw 3.0,4.5 --calibration builtin --measurement-samples 3"
        f" --calibration-samples 6 --calibration-length 128 {FAST}"
    ),
    "exl3": (
        "exl3 demo-small --bpw 2.5,4.0 --calibration builtin --calibration-samples 6"
        f" --calibration-length 128 {FAST}"
    ),
}
AUTO_GPTQ = """
from tests.fakes import auto_gptq_cpu
auto_gptq_cpu.install()
import autoquant
autoquant.gptq("demo-small", backend="auto-gptq", group_size=64, sym=False, out={out!r},
               calibration_samples=8, calibration_length=128, eval_chunks=4)
"""


def demo_runs() -> dict[str, str]:
    """The runs of ``make demo``, from the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    runs = {}
    for words in re.findall(r"autoquant quantize ([^\n]+)", text):
        out = re.search(r"--out \S+/(\S+)", words)
        assert out is not None, words
        runs[f"demo/{out[1]}"] = words.replace(out[0], "")
    return runs


def cache(folder: Path) -> None:
    """A cache folder that has what was installed, but nothing that was measured."""
    real = Path(os.environ.get("AUTOQUANT_CACHE") or Path.home() / ".cache" / "autoquant")
    for path in real.iterdir() if real.is_dir() else ():
        if path.name not in ("references", "measurements"):
            (folder / path.name).symlink_to(path)


def digest(path: Path) -> str:
    """sha256 of a file; of JSON written by a library of its values in order of their names."""
    data = path.read_bytes()
    if path.suffix == ".json":
        data = json.dumps(json.loads(data), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def made(folder: Path) -> dict[str, str]:
    """What a run has made: the sha256 of its files by name, and its figures."""
    files = {
        path
        for pattern in KEPT
        for path in folder.rglob(pattern)
        if path.is_file() and ".autoquant" not in path.parts
    }
    found = {path.relative_to(folder).as_posix(): digest(path) for path in sorted(files)}
    steps = json.loads((folder / ".autoquant" / "journal.json").read_text(encoding="utf-8"))[
        "steps"
    ]
    for name, step in sorted(steps.items()):
        if name.startswith("evaluate "):
            found[name] = json.dumps(step["facts"], sort_keys=True)
    return found


def run(name: str, words: str, scratch: Path) -> dict[str, str]:
    """One run, in the scratch folder."""
    out = scratch / "runs" / name
    if name == "auto-gptq":
        command = [sys.executable, "-c", AUTO_GPTQ.format(out=str(out))]
    else:
        command = [
            sys.executable,
            "-m",
            "autoquant.cli",
            "quantize",
            *shlex.split(words),
            "--out",
            str(out),
        ]
    fakes = ("exl2", "exl3") if name in ("exl2", "exl3") else ()
    stand_in = "".join(f"{ROOT / 'tests' / 'fakes' / one}{os.pathsep}" for one in fakes)
    env = {
        **os.environ,
        "AUTOQUANT_CACHE": str(scratch / "cache"),
        "PYTHONPATH": stand_in + str(ROOT),
    }
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: exit status {done.returncode}\n{done.stderr[-3000:]}")
    return made(out)


def write(target: Path, names: list[str]) -> None:
    """Run the set and write its manifest."""
    runs = {**demo_runs(), **RUNS, "auto-gptq": ""}
    unknown = [name for name in names if name not in runs]
    if unknown:
        raise SystemExit(f"no run is called {unknown[0]}; there are: {', '.join(runs)}")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "cache").mkdir()
        cache(scratch / "cache")
        for name in names or runs:
            started = time.monotonic()
            found[name] = run(name, runs[name], scratch)
            print(
                f"{name:28} {len(found[name]):3} entries {time.monotonic() - started:6.1f} s",
                flush=True,
            )
    target.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def compare(first: Path, second: Path) -> int:
    """Print what differs; how many entries do."""
    a, b = (json.loads(path.read_text(encoding="utf-8")) for path in (first, second))
    differing = 0
    for run in sorted({*a, *b}):
        one, other = a.get(run, {}), b.get(run, {})
        for name in sorted({*one, *other}):
            if one.get(name) != other.get(name):
                differing += 1
                print(
                    f"{run}: {name}: {one.get(name, 'not there')[:70]} |"
                    f" {other.get(name, 'not there')[:70]}"
                )
    print(
        f"{sum(map(len, a.values()))} and {sum(map(len, b.values()))} entries in {len(a)} and"
        f" {len(b)} runs; {differing} differ"
    )
    return differing


def main() -> int:
    """Write a manifest, or compare two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compare", action="store_true", help="compare two manifests")
    parser.add_argument("target", type=Path)
    parser.add_argument("names", nargs="*", help="runs; default: all")
    arguments = parser.parse_args()
    if arguments.compare:
        return min(1, compare(arguments.target, Path(arguments.names[0])))
    write(arguments.target, arguments.names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
