"""``on="hf-jobs"`` of :func:`autoquant.batch`."""

from __future__ import annotations

from pathlib import Path

from autoquant.cluster import jobs as reading
from autoquant.cluster import run
from autoquant.cluster.hf_jobs import follow
from autoquant.cluster.hf_jobs.offers import Offers, Settings, confirm, offers
from autoquant.core.errors import InputError
from autoquant.runtime import preload


@preload.kept()
def batch(
    jobs: run.Jobs,
    out: str | Path | None,
    on: str,
    settings: Settings,
    *,
    yes: bool,
    dry_run: bool,
) -> run.BatchResult | Offers:
    """Plan, agree, run. Raises InputError for another place, or where nobody has agreed."""
    if on != "hf-jobs":
        raise InputError(f"on: {on!r} is not allowed; allowed: here, hf-jobs")
    found = offers(reading.read(jobs, out), settings)
    if dry_run:
        return found
    confirm(found, yes)
    return run.run(found.plan, runner=follow.runner(found))
