"""Starts one of exllamav3's own programs, unmodified, in a process that ends with its parent:
``python -m autoquant.backends.exllamav3.run PARENT PROGRAM ARGUMENT…``.
"""

from __future__ import annotations

import runpy
import sys

from autoquant.runtime.worker import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(f"exllamav3.conversion.{sys.argv[0]}", run_name="__main__", alter_sys=True)
