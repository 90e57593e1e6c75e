"""This side of a batch on a Ray cluster: a process of its own speaks to it, because Ray ends its
driver when the cluster is gone.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant.cluster import keeping
from autoquant.cluster.board import OURS, Board, log_of
from autoquant.cluster.planning import Planned
from autoquant.cluster.work import DONE, Outcome
from autoquant.core.errors import InputError, ProcessFailed
from autoquant.core.plans import Plan
from autoquant.hub.client import connect
from autoquant.methods import METHODS
from autoquant.runtime import environments, process

EXTRA = "cluster"
DRIVER = "autoquant.cluster.on_ray.driver"


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster by its address, "auto" for the one that this machine belongs to. ``needs`` are
    a job's cpus, gpus and memory, where they are not to be ours (see jobs.Batch).
    """

    address: str
    needs: Mapping[str, float]

    def run(self, ready: Sequence[Planned], board: Board) -> None:
        """Run jobs there; see :data:`autoquant.cluster.run.Runner`. Raises InputError for a cluster
        that cannot run them, ProcessFailed where it is lost.
        """
        refuse_without_ray()
        folder = board.batch.folder
        log = folder / OURS / "ray.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        mark = log.parent / f"shared-{uuid.uuid4().hex}"
        mark.touch()  # a node that sees it shares this folder
        jobs = [
            {
                **one.job.to_json(),
                "needs": self._needs(one),
                "upload": bool(one.job.options.upload),
                "seconds": one.seconds,
            }
            for one in ready
        ]
        try:
            process.call(
                f"{DRIVER}:drive",
                log=log,
                on_part=lambda event: _heard(event, board),
                fresh=True,
                address=self.address,
                folder=str(folder),
                mark=str(mark),
                jobs=jobs,
                token=connect().token or "",
            )
        except ProcessFailed as failure:
            raise ProcessFailed(
                f"the Ray cluster at {self.address} was lost (its head node, or the one of this"
                " machine, has ended). What was finished is kept: when it is back, run the same"
                f" command again. Log: {log}"
            ) from failure
        finally:
            mark.unlink(missing_ok=True)

    def _needs(self, one: Planned) -> dict[str, float]:
        """What one job needs of a node: 0 cpus for as many as suit the cluster."""
        plan = one.plan
        assert isinstance(plan, Plan)
        where = METHODS[one.job.method].runs_on
        return {
            "cpus": self.needs.get("cpus", 0),
            "gpus": self.needs.get("gpus", 1) if where[-1] == "cuda" else 0,
            "gpu_needed": float(where == ("cuda",)),
            "memory": self.needs.get("memory", plan.memory_needed),
            "disk": plan.disk_needed,
        }

    def cancel(self, folder: Path) -> None:
        """End the batch of a folder that somebody else's client runs there. Raises InputError if
        there is none.
        """
        refuse_without_ray()
        log = folder / OURS / "ray.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        process.call(
            f"{DRIVER}:cancel", log=log, fresh=True, address=self.address, folder=str(folder)
        )


def refuse_without_ray() -> None:
    """Raises InputError if Ray is not installed here."""
    if not environments.here(EXTRA):
        wanted = ", ".join(f"{name}{of}" for name, of in environments.extra(EXTRA).items())
        raise InputError(
            f"ray: {wanted} is not installed here; `pip install '{environments.PACKAGE}[{EXTRA}]'`"
            " on every node"
        )


def _heard(event: Mapping[str, Any], board: Board) -> None:
    """What the process that speaks to the cluster tells of a job."""
    name = event["name"]
    if "began" in event:
        board.begin(name, event["began"])
    elif "waits" in event:
        board.wait(name, event["waits"])
    elif "title" in event:
        board.progress(name, event["title"], event["share"])
    else:
        folder = board.batch.folder / name
        for path, content in event["files"].items():  # of a node that does not share the folder
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(base64.b64decode(content))
        if event["outcome"]["state"] == DONE and event["files"]:
            keeping.elsewhere(folder)
        if event["log"]:
            log = log_of(board.batch.folder, name)
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(event["log"], encoding="utf-8")
        board.end(name, Outcome(**event["outcome"]))
