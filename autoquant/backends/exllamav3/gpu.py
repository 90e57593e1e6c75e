"""What exllamav3 needs of a machine, looked at in a worker process (and there only: the tests'
stand-in for a GPU hooks this module's import).
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from autoquant.backends import extension


def look() -> dict[str, Any]:
    """Whether torch finds a GPU, and whether exllamav3's compiled extension is here or can be
    compiled.
    """
    return extension.look("exllamav3_ext")


def build() -> str:
    """Import exllamav3, which compiles its extension unless that has been done (minutes, once for a
    torch release; kept in torch's extension cache). Returns its version.
    """
    import exllamav3  # noqa: F401

    return importlib.metadata.version("exllamav3")
