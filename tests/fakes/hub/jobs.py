"""Jobs on the loopback Hub: each runs as a local process, with nothing of the Hub's own environment
but what its specification and the image give it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fakes.hub.connection import Connection
from tests.fakes.hub.contents import Refused, now

if TYPE_CHECKING:
    from tests.fakes.hub.server import Hub

OVER = ("COMPLETED", "CANCELED", "ERROR", "DELETED")


def machine(
    name: str, cpu: int, ram: int, disk: int, hourly: float, gpu: str = "", vram: int = 0
) -> dict[str, Any]:
    """An entry of the listing, as the Hub writes it."""
    accelerator = {
        "type": "gpu",
        "model": gpu,
        "quantity": "1",
        "vram": f"{vram} GB",
        "manufacturer": "Nvidia",
    }
    return {
        "name": name,
        "prettyName": name,
        "cpu": f"{cpu} vCPU",
        "ram": f"{ram} GB",
        "ephemeralStorage": f"{disk} GB",
        "accelerator": accelerator if gpu else None,
        "unitCostMicroUSD": round(hourly / 60 * 1e6),
        "unitCostUSD": hourly / 60,
        "unitLabel": "minute",
    }


# prices that are not the published ones, so that a test sees which were used
HARDWARE = (
    machine("cpu-basic", 2, 16, 50, 0.02),
    machine("cpu-upgrade", 8, 32, 50, 0.05),
    machine("cpu-xl", 16, 124, 1000, 1.10),
    machine("t4-small", 4, 15, 50, 0.42, "T4", 16),
    machine("a100-large", 12, 142, 1000, 2.60, "A100", 80),
)


@dataclass
class Job:
    """One job. ``lines`` are what it has printed, with their times."""

    id: str
    spec: dict[str, Any]
    owner: str
    folder: Path
    stage: str = "RUNNING"
    message: str | None = None
    lines: list[tuple[str, str]] = field(default_factory=list)
    created: str = field(default_factory=now)
    begun: float = field(default_factory=time.monotonic)
    seconds: int = 0
    process: subprocess.Popen[str] | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def end(self, stage: str, message: str | None = None) -> None:
        """Stop it, unless it has ended."""
        with self.changed:
            if self.stage not in OVER:
                self.stage, self.message = stage, message
                self.seconds = int(time.monotonic() - self.begun)
            self.changed.notify_all()
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def to_json(self) -> dict[str, Any]:
        """As the Hub shows it: of secrets the names alone."""
        spec = self.spec
        return {
            "id": self.id,
            "createdAt": self.created,
            "startedAt": self.created,
            "finishedAt": now() if self.stage in OVER else None,
            "dockerImage": spec.get("dockerImage"),
            "command": spec["command"],
            "arguments": spec.get("arguments", []),
            "environment": spec.get("environment", {}),
            "secrets": dict.fromkeys(spec.get("secrets", {}), ""),
            "flavor": spec["flavor"],
            "labels": spec.get("labels", {}),
            "status": {"stage": self.stage, "message": self.message},
            "durations": {"schedulingSecs": 0, "runningSecs": self.seconds},
            "owner": {"id": "0", "name": self.owner, "type": "user"},
        }


class Running:
    """The jobs of a Hub. ``image`` are the variables of a container, ``command`` replaces what a
    job would run, and a second of a job's timeout lasts a second by ``speed``.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.jobs = root, dict[str, Job]()
        self.hardware: list[Mapping[str, Any]] = list(HARDWARE)
        self.image: dict[str, str] = {}
        self.command: list[str] = []
        self.speed = 1.0

    def start(self, spec: dict[str, Any], owner: str) -> Job:
        """Run a job in a folder and a home of its own."""
        id = secrets.token_hex(12)
        folder = self.root / id
        folder.mkdir(parents=True)
        job = Job(id, spec, owner, folder)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "LANG": "C.UTF-8",
            "JOB_ID": id,
            **self.image,
            **spec.get("environment", {}),
            **spec.get("secrets", {}),
        }
        job.process = subprocess.Popen(
            self.command or [*spec["command"], *spec.get("arguments", [])],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.jobs[id] = job
        threading.Thread(target=self._read, args=(job,), daemon=True).start()
        if "timeoutSeconds" in spec:
            patience = spec["timeoutSeconds"] / self.speed
            timer = threading.Timer(patience, job.end, ("ERROR", "Job timeout"))
            timer.daemon = True
            timer.start()
        return job

    def _read(self, job: Job) -> None:
        assert job.process is not None
        assert job.process.stdout is not None
        for line in job.process.stdout:
            with job.changed:
                job.lines.append((now(), line.rstrip("\n")))
                job.changed.notify_all()
        status = job.process.wait()
        job.end("ERROR" if status else "COMPLETED", f"exit code {status}" if status else None)

    def end(self) -> None:
        """Stop all of them."""
        for job in self.jobs.values():
            job.end("DELETED")


class Jobs(Connection):
    """Requests about jobs."""

    hub: Hub

    def hardware(self) -> None:
        self.send(value=self.hub.running.hardware)

    def jobs(self, owner: str) -> None:
        self._mine(owner)
        if self.command == "POST":
            self.send(value=self.hub.running.start(json.loads(self.data), owner).to_json())
            return
        labels = [one.partition("=")[::2] for one in self.query.get("label", [])]
        found = [
            job.to_json()
            for job in self.hub.running.jobs.values()
            if job.owner == owner
            and job.stage in self.query.get("stage", [job.stage])
            and all(job.spec.get("labels", {}).get(name) == value for name, value in labels)
        ]
        self.send(value=found)

    def job(self, owner: str, job: str) -> None:
        self.send(value=self._job(owner, job).to_json())

    def cancel(self, owner: str, job: str) -> None:
        self._job(owner, job).end("CANCELED")
        self.send()

    def logs(self, owner: str, job: str) -> None:
        """All that a job has said, and what it says from now on, until it ends."""
        found, told = self._job(owner, job), 0
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while True:
            with found.changed:
                if told == len(found.lines):
                    if found.stage in OVER:
                        return
                    found.changed.wait(0.1)
                new = found.lines[told:]
            told += len(new)
            for at, line in new:
                event = json.dumps({"timestamp": at, "data": line})
                self.wfile.write(f"data: {event}\n\n".encode())
            self.wfile.flush()

    def _mine(self, owner: str) -> None:
        if not self.user:
            raise Refused(401, "Invalid username or password.")
        if owner not in [self.user["name"], *self.user.get("orgs", ())]:
            raise Refused(403, "You cannot see this user's jobs")
        if self.command == "POST" and self.user["role"] == "read":
            raise Refused(403, "This token has no permission to start jobs")

    def _job(self, owner: str, job: str) -> Job:
        self._mine(owner)
        found = self.hub.running.jobs.get(job)
        if found is None or found.owner != owner:
            raise Refused(404, "Job not found")
        return found
