"""Where things are kept that can be made or fetched again: the converter, references, headers of
models on the Hub, 16-bit forms of quantized sources.
"""

from __future__ import annotations

import os
from pathlib import Path

from autoquant.core.errors import InputError


def cache_folder() -> Path:
    """AUTOQUANT_CACHE, else $XDG_CACHE_HOME/autoquant, else ~/.cache/autoquant; made if it is not
    there. Raises InputError if there is no home folder or nothing can be written there.
    """
    given = os.environ.get("AUTOQUANT_CACHE") or ""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    try:
        home = "" if given or base else str(Path.home() / ".cache")
        folder = Path(given).expanduser() if given else Path(base or home) / "autoquant"
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError) as error:
        said = error.strerror if isinstance(error, OSError) else "there is no home folder"
        raise InputError(
            f"nothing can be kept in the cache folder ({said}): set AUTOQUANT_CACHE to a folder"
            " that you may write to"
        ) from None
    return folder


def new_log(name: str) -> Path:
    """An empty log for work outside any run's folder, ``logs/NAME.log``: the one of the same work
    before goes, and it is there to be read after an error has named it. Raises InputError.
    """
    path = cache_folder() / "logs" / f"{name}.log"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    return path
