"""A model of 8 billion parameters on a small machine: plans, GGUF, NF4, measured on two chunks, and
the cards, each inside a memory control group of 4 GB (page cache counts too; needs root and cgroup
v1 or v2).

usage: python -m bench.large WORK [LAYERS [VOCABULARY]]

The model is random, of Llama 3's shape (width 4096, 32 blocks, 128,256 tokens; 16.1 GB in
bfloat16). It needs 30 GB of disk. Prints what each command says last, its seconds, the group's peak
and the largest own memory of a process. `bench.large WORK 1 2048` tries the program out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench import memory

LIMIT = 4_000_000_000
MEASURED = ("--evaluate", "on", "--eval-chunks", "2")
METHODS = (
    ("gguf", "--types", "Q4_K_M", "--pre-tokenizer", "gpt-2", *MEASURED),
    ("bitsandbytes", *MEASURED),
)
COMMANDS = tuple((verb, *words) for verb in ("plan", "quantize") for words in METHODS)


def main(work: Path, layers: int = 32, vocabulary: int = 128256) -> None:
    """Make the model, run, and print."""
    whole = (layers, vocabulary) == (32, 128256)
    folder = work / ("large-8b" if whole else f"large-{layers}-{vocabulary}")
    if not (folder / "model.safetensors.index.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        memory.checkpoint(
            folder, layers=layers, inner=14336, heads=8, vocabulary=vocabulary, shards=8
        )
    memory.LIMIT = LIMIT
    for i, (verb, method, *more) in enumerate(COMMANDS):
        out = work / f"out-{i}"
        shutil.rmtree(out, ignore_errors=True)
        words = [sys.executable, "-m", "autoquant.cli", verb, method, str(folder), *more]
        group = memory.Group()
        begun = time.monotonic()
        with memory.own_memory() as own:
            child = subprocess.run(
                [*words, "--out", str(out)],
                preexec_fn=group.enter,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
        seconds = time.monotonic() - begun
        print(child.stdout[-4000:])
        print(
            f"{verb} {method}: exit status {child.returncode}, {seconds:.0f} s; the group with page"
            f" cache at most {group.peak() / 1e9:.2f} GB, the largest process's own memory"
            f" {own[0] / 1e9:.2f} GB",
            flush=True,
        )
        group.close()
        if (out / "README.md").is_file():
            print((out / "README.md").read_text()[:3000])
        shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]).resolve(), *(int(one) for one in sys.argv[2:4]))
