"""What runs in a job: one job of a batch, as on any machine, with lines that say how far it is, its
finished steps kept, and what it leaves handed over.

    python -m autoquant.cluster.hf_jobs.inside    # the specification is in AUTOQUANT_JOB
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import autoquant
from autoquant.cluster import keeping, work
from autoquant.cluster.hf_jobs import lines
from autoquant.cluster.jobs import from_json
from autoquant.core.errors import AutoQuantError
from autoquant.core.redact import redact
from autoquant.hub.client import connect
from autoquant.runtime import preload

LOG = Path("/dev/stdout")  # the platform keeps what a job prints


def main() -> int:
    """Run it. 0: done; 1: it failed, and the last line says why; 143: the machine was taken."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for noisy in ("httpx", "httpx2", "httpcore", "httpcore2"):  # they log every request
        logging.getLogger(noisy).setLevel(logging.WARNING)
    spec: dict[str, Any] = json.loads(os.environ["AUTOQUANT_JOB"])
    where = Path(autoquant.__file__).parent
    say(f"autoquant {autoquant.__version__} from {where} ({Path(spec['wheel']).parent.name})")
    job, client = from_json(spec["job"]), connect()
    folder = Path.cwd() / job.name
    kept_in = keeping.unfinished(spec["user"], spec["key"])
    try:
        if names := keeping.restore(client, kept_in, folder):
            say(f"going on: {len(names)} files were kept in {kept_in}")
    except (AutoQuantError, OSError) as error:
        say(f"what was kept in {kept_in} cannot be taken, so it begins anew: {error}")
    keeper = keeping.Keeper(client, kept_in, folder, spec.get("every", keeping.EVERY))
    with preload.kept(), keeper:
        try:
            outcome = work.do(job, folder, LOG, lines.Reporter(say))
        except BaseException:  # stopped by the platform: a little time is left
            keeper.keep()
            raise
    outcome = dataclasses.replace(outcome, line=outcome.line.replace(str(LOG), "the job's log"))
    try:
        kept = json.dumps({**dataclasses.asdict(outcome), "attempt": spec["attempt"]})
        keeping.hand_over(client, spec["repo"], spec["key"], folder, redact(kept))
        if outcome.state == work.DONE:
            keeper.forget()
        else:
            keeper.keep()
    except (AutoQuantError, OSError) as error:
        say(f"what is left could not be handed over: {error}")
    say(lines.ended(outcome))
    return 0 if outcome.state == work.DONE else 1


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(redact(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
