"""How long `import autoquant` and `autoquant --help` take, warm: the median of 15, in seconds.
usage: python -m bench.startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(argv: list[str]) -> float:
    """The median wall time of a command."""
    times = []
    for _ in range(16):
        start = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
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
