"""How fast this machine was seen to be, so that plans can say how long something takes. Kept in the
cache folder.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping

from autoquant.core.cache import cache_folder
from autoquant.core.files import write_atomically

FILE = "rates.json"
LEAST = 0.5  # seconds, below which a download says nothing of the next one


def known() -> dict[str, float]:
    """What is known: amounts per second, by name. A file that cannot be read counts as none."""
    path = cache_folder() / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(rate) for name, rate in data.items() if float(rate) > 0}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def note(rates: Mapping[str, float]) -> None:
    """Keep what was measured, in the place of what was known by these names; where nothing can be
    written, nothing is kept.
    """
    text = json.dumps({**known(), **rates}, indent=1, sort_keys=True)
    with contextlib.suppress(OSError):
        write_atomically(cache_folder() / FILE, text, shared=True)


def note_download(size: int, seconds: float) -> None:
    """Keep how fast a download was; the last ones count as much as all before."""
    if seconds >= LEAST:
        now = size / seconds
        note({"download": (known().get("download", now) + now) / 2})
