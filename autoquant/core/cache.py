"""Where things are kept that can be made or fetched again: the converter, references, headers of
models on the Hub.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """AUTOQUANT_CACHE, else $XDG_CACHE_HOME/autoquant, else ~/.cache/autoquant."""
    given = os.environ.get("AUTOQUANT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(given) if given else Path(base) / "autoquant"
