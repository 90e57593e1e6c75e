"""What a run costs on the bundled model, beside another state of the code: wall time of whole
commands, alternating. usage: python -m bench.workers OTHER [ROUNDS]

OTHER is another checkout (`git worktree add ../other COMMIT`); both are run by this environment's
Python. Each run has an empty cache of references. Prints seconds, and the ratio of the medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.manifest import cache

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (("gguf", "demo"), ("gptq", "demo"))


def seconds(root: Path, words: tuple[str, ...]) -> float:
    """One run of a command by the code in a checkout."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "cache"
        folder.mkdir()
        cache(folder)
        command = [sys.executable, "-m", "autoquant.cli", "quantize", *words]
        command += ["--out", str(Path(scratch) / "out")]
        env = {**os.environ, "AUTOQUANT_CACHE": str(folder), "PYTHONPATH": str(root)}
        begin = time.monotonic()
        subprocess.run(command, cwd=root, env=env, check=True, capture_output=True)
        return time.monotonic() - begin


def main(other: Path, rounds: int) -> None:
    """Alternate the two, and print."""
    for words in COMMANDS:
        before, after = [], []
        for _ in range(rounds):
            before.append(seconds(other, words))
            after.append(seconds(ROOT, words))
        ratio = statistics.median(after) / statistics.median(before)
        times = " ".join(f"{one:.1f}/{two:.1f}" for one, two in zip(before, after, strict=True))
        print(f"{' '.join(words):12} other/this {times} s; ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
