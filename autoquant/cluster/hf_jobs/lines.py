"""The lines by which a job tells whoever follows it how far it is: one of JSON each, after a mark,
so that they are found among all that libraries print.

    @autoquant {"share": 0.25, "title": "1 of 2, quantize"}
    @autoquant {"ended": "done", "line": "Q4_K_M 2.69 MB, KL 0.0061", "seconds": 12.5}
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from autoquant.cluster.work import Outcome
from autoquant.core.redact import redact

MARK = "@autoquant "
OFTEN = 1.0  # seconds between two lines about the same stage


def progress(title: str, share: float) -> str:
    """How far a job is with what it is at."""
    return _line({"title": title, "share": round(share, 3)})


def ended(outcome: Outcome) -> str:
    """How a job ended."""
    return _line(
        {
            "ended": outcome.state,
            "line": outcome.line,
            "seconds": round(outcome.seconds, 1),
            "disk_full": outcome.disk_full,
        }
    )


def _line(values: dict[str, Any]) -> str:
    return MARK + redact(json.dumps(values, sort_keys=True))


def read(line: str) -> dict[str, Any] | None:
    """What such a line says; None of any other."""
    if not line.startswith(MARK):
        return None
    try:
        values = json.loads(line.removeprefix(MARK))
    except ValueError:  # cut off, or of another release
        return None
    return values if isinstance(values, dict) else None


def outcome(values: Mapping[str, Any]) -> Outcome | None:
    """How a job ended, by a line's values; None if it has not."""
    return of({**values, "state": values["ended"]}) if "ended" in values else None


def of(values: Mapping[str, Any]) -> Outcome:
    """An outcome from its values, by their names."""
    return Outcome(
        str(values["state"]),
        str(values.get("line", "")),
        float(values.get("seconds", 0.0)),
        bool(values.get("disk_full", False)),
    )


class Reporter:
    """A watcher of a run's progress (core.progress) that says it in such lines, not too often."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say, self._title, self._then = say, "", 0.0

    def __call__(self, title: str, share: float) -> None:
        now = time.monotonic()
        if title != self._title or now - self._then >= OFTEN:
            self._title, self._then = title, now
            self.say(progress(title, share))
