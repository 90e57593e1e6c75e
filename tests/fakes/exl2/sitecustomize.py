"""A CPU where exllamav2 wants an NVIDIA GPU: put this folder on PYTHONPATH, and every Python
process that imports exllamav2, or looks for a GPU for it, finds one.

Python imports a module of this name when it starts. All else is exllamav2's own code, unmodified;
no other process is touched.
"""

from __future__ import annotations

import sys
from typing import Any

NAMES = ("exllamav2", "exllamav2_ext", "autoquant.backends.exllamav2.gpu")


class _Before:
    """Stands in front of Python's finders, and finds nothing itself."""

    done = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in NAMES and not _Before.done:
            _Before.done = True
            import cpu_as_cuda

            cpu_as_cuda.install()


sys.meta_path.insert(0, _Before())  # type: ignore[arg-type]
