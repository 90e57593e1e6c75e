"""Starts exllamav2's own converter, unmodified, in a process that ends with its parent: ``python -m
autoquant.backends.exllamav2.run PARENT ARGUMENT…``.
"""

from __future__ import annotations

import runpy
import sys

from autoquant.runtime.worker import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    sys.argv = ["convert_exl2", *sys.argv[2:]]
    runpy.run_module("exllamav2.conversion.convert_exl2", run_name="__main__", alter_sys=True)
