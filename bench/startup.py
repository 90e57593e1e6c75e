"""How long `import autoquant` and `autoquant --help` take, warm: the median of 15, in seconds; and
the look at a folder's structure with a process that is preloaded, the median of 5.
usage: python -m bench.startup
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time


def seconds(argv: list[str]) -> float:
    """The median wall time of a command."""
    times = []
    for _ in range(16):
        start = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def look() -> float:
    """The median wall time of resolving the bundled model and looking at its structure."""
    from autoquant.runtime import preload
    from autoquant.source import resolve, structure

    times = []
    with preload.kept():
        for _ in range(6):
            with tempfile.TemporaryDirectory() as cache:  # nothing is known from earlier
                os.environ["AUTOQUANT_CACHE"] = cache
                start = time.perf_counter()
                structure.structure(resolve("demo"))
                times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    bare = seconds([sys.executable, "-c", "pass"])
    print(f"python -c pass          {bare:.3f} s")
    print(f"import autoquant        {seconds([sys.executable, '-c', 'import autoquant']):.3f} s")
    print(
        "autoquant.gguf         "
        f" {seconds([sys.executable, '-c', 'import autoquant; autoquant.gguf']):.3f} s"
    )
    print(
        "autoquant --help       "
        f" {seconds([sys.executable, '-m', 'autoquant.cli', '--help']):.3f} s"
    )
    print(
        "autoquant quantize gguf --help "
        f" {seconds([sys.executable, '-m', 'autoquant.cli', 'quantize', 'gguf', '--help']):.3f} s"
    )
    print(f"look at a folder, preloaded      {look():.3f} s")
