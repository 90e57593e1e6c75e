"""What speaks to a Ray cluster: it looks at the nodes, hands them jobs, and tells how far they are.
Runs in a worker.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from autoquant.cluster.on_ray import task
from autoquant.cluster.work import FAILED, STOPPED, Outcome
from autoquant.core.errors import InputError
from autoquant.core.files import key_of
from autoquant.core.version import __version__

NAMESPACE = "autoquant"
RETRIES = 3  # of a job whose node or process dies
CORES = 8  # that a job takes at most, if nobody says: more hardly help one job
PATIENCE = 60.0  # seconds for a node to answer
ENDING = 4.0  # seconds for tasks to end by themselves
Emit = Callable[[Any], None]


def drive(
    address: str,
    folder: str,
    mark: str,
    jobs: Sequence[Mapping[str, Any]],
    token: str,
    emit: Emit,
) -> None:
    """Run jobs on a cluster to their end. Runs in a worker.

    Emits, for each job by its ``name``: ``began`` (the node's name), ``title`` and ``share``,
    ``waits``, and at last ``outcome`` with ``log`` and the small ``files`` of a folder that is not
    shared (base64).
    """
    with connected(address) as ray:
        nodes = _nodes(ray, mark)
        _refuse(nodes, jobs)
        reporter = (
            ray.remote(task.Reporter)
            .options(
                name=_name(folder),
                num_cpus=0,
                scheduling_strategy=_on(ray.get_runtime_context().get_node_id()),
                # only this driver's tasks call it, and one that is gone for a moment loses nothing
                max_restarts=-1,
            )
            .remote()
        )
        # an object of its own, and no text in a task's description
        _Jobs(ray, folder, nodes, reporter, ray.put(token), emit).run(jobs)


def cancel(address: str, folder: str) -> None:
    """Ask the driver of a folder's batch to end it, and wait until it has. Runs in a worker."""
    with connected(address) as ray:
        try:
            reporter = ray.get_actor(_name(folder))
        except ValueError:
            raise InputError(
                f"cancel: no batch of {folder} is being run at {address}; nothing is to be ended"
            ) from None
        ray.get(reporter.cancel.remote())
        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            while True:
                ray.get_actor(_name(folder))
                time.sleep(0.2)


def _name(folder: str) -> str:
    return f"batch-{key_of(folder)}"


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected. Raises InputError if no cluster answers."""
    import ray

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that tasks are ended first
    try:
        _answers(address)
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        said = str(error).split(". ")[0].strip()
        raise InputError(
            f"ray: no cluster answers at {address!r} ({said}). Start one with `ray start --head`"
            " and join others with `ray start --address=HOST:6379`, or leave --ray out"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Ray tries for minutes to reach an address where nobody is. Raises OSError or ValueError."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE / 4).close()


def _on(node: str, *, soft: bool = False) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node, soft=soft)


def _nodes(ray: Any, mark: str) -> dict[str, dict[str, Any]]:
    """The nodes that answer, by their ids, with what each has."""
    alive = {one["NodeID"]: one for one in ray.nodes() if one["Alive"]}
    asked = {
        ray.remote(task.look).options(num_cpus=0, scheduling_strategy=_on(node)).remote(mark): node
        for node in alive
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)
    found = {}
    for one in answered:
        host = alive[asked[one]]["NodeManagerHostname"]
        try:
            found[asked[one]] = {**alive[asked[one]], **ray.get(one), "host": host}
        except ray.exceptions.RayError as error:
            if "No module named" in str(error):
                raise InputError(
                    f"ray: the node {host} has no AutoQuant; install this version,"
                    f" {__version__}, on every node"
                ) from None
    if silent and not found:
        raise InputError("ray: no node answers; `ray status` shows how the cluster is")
    return found


def _refuse(nodes: Mapping[str, Mapping[str, Any]], jobs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a cluster that cannot do it as a whole. Raises InputError."""
    for node in nodes.values():
        if node["version"] != __version__:
            raise InputError(
                f"ray: the node {node['host']} has AutoQuant {node['version']}, and this is"
                f" {__version__}; install the same on every node"
            )
        if not node["shared"] and (kept := [job["name"] for job in jobs if not job["upload"]]):
            raise InputError(
                f"ray: the node {node['host']} does not see this batch's folder, so what it makes"
                f" would stay there: name an out on a disk that all nodes share, or let every job"
                f" upload ({kept[0]} does not)"
            )


class _Jobs:
    """Jobs on their way through a cluster."""

    def __init__(
        self,
        ray: Any,
        folder: str,
        nodes: Mapping[str, Any],
        reporter: Any,
        secret: Any,
        emit: Emit,
    ) -> None:
        self.ray, self.folder, self.nodes = ray, folder, nodes
        self.reporter, self.secret, self.emit = reporter, secret, emit
        self.task = ray.remote(task.run)
        self.cpus = min(CORES, int(min(one["Resources"].get("CPU", 1) for one in nodes.values())))
        self.running: dict[Any, Mapping[str, Any]] = {}
        self.full: dict[str, set[str]] = {}  # nodes without room for a job

    def run(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        """Hand all of them over, the longest first, and wait for their ends."""
        for job in sorted(jobs, key=lambda job: -float(job["seconds"])):
            self._submit(job)
        try:
            while self.running:
                ended, _ = self.ray.wait(list(self.running), timeout=0.3)
                cancelled, events = self.ray.get(self.reporter.take.remote(), timeout=PATIENCE)
                for event in events:
                    self.emit(event)
                for one in ended:
                    self._ended(one, self.running.pop(one))
                if cancelled:
                    self._cancel("cancelled")
        except SystemExit:
            self._cancel("stopped")
            raise

    def _resources(self, job: Mapping[str, Any]) -> dict[str, Any]:
        needs = job["needs"]
        gpus = needs["gpus"] if needs["gpu_needed"] or self._most("GPU") >= needs["gpus"] else 0
        cpus = needs["cpus"] or max(1, self.cpus)
        return {"num_cpus": cpus, "num_gpus": gpus, "memory": int(needs["memory"])}

    def _most(self, resource: str) -> float:
        return max(float(one["Resources"].get(resource, 0)) for one in self.nodes.values())

    def _submit(self, job: Mapping[str, Any], node: str = "") -> None:
        wanted = self._resources(job)
        for name, key, words in (
            ("num_cpus", "CPU", "{:g} processor cores"),
            ("num_gpus", "GPU", "{:g} GPUs"),
            ("memory", "memory", "{:.2f} GB of memory"),
        ):
            scale = 1e9 if key == "memory" else 1
            if wanted[name] > self._most(key):
                most = words.format(self._most(key) / scale)
                asked = words.format(wanted[name] / scale)
                self._end(job, f"it needs {asked}, and no node of the cluster has more than {most}")
                return
        placed = {"scheduling_strategy": _on(node, soft=True)} if node else {}
        handed = {name: job[name] for name in ("name", "model", "method", "values")}
        given = self.task.options(max_retries=RETRIES, **wanted, **placed)
        shared = all(one["shared"] for one in self.nodes.values())
        cpus = int(wanted["num_cpus"])
        started = given.remote(handed, self.folder, self.reporter, self.secret, shared, cpus)
        self.running[started] = job

    def _ended(self, one: Any, job: Mapping[str, Any]) -> None:
        exceptions = self.ray.exceptions
        try:
            told = self.ray.get(one)
        except exceptions.TaskCancelledError:
            self._end(job, "cancelled", STOPPED)
            return
        except exceptions.OutOfMemoryError:
            self._end(job, "memory ran out on its node; give it more ([ray] memory in the file)")
            return
        except exceptions.RayTaskError as error:
            self._end(job, f"a fault of AutoQuant's own, on its node: {error.cause}")
            return
        except exceptions.RayError as error:
            line = str(error).strip().splitlines()[0]
            self._end(job, f"its node or process died {RETRIES + 1} times: {line}")
            return
        if told["outcome"]["disk_full"] and (other := self._roomier(job, told)):
            self.emit({"name": job["name"], "waits": f"the disk of {told['host']} is full"})
            self._submit(job, other)
            return
        self.emit({"name": job["name"], **{k: told[k] for k in ("outcome", "log", "files")}})

    def _roomier(self, job: Mapping[str, Any], told: Mapping[str, Any]) -> str:
        """Another node with room on its disk for a job; empty if there is none, or if all write to
        the same disk.
        """
        if all(one["shared"] for one in self.nodes.values()):
            return ""
        tried = self.full.setdefault(job["name"], set())
        tried.add(told["node"])
        left = {
            node: one["free"]
            for node, one in self.nodes.items()
            if node not in tried and one["free"] >= job["needs"]["disk"]
        }
        return max(left, key=lambda node: left[node]) if left else ""

    def _end(self, job: Mapping[str, Any], line: str, state: str = FAILED) -> None:
        outcome = asdict(Outcome(state, line))
        self.emit({"name": job["name"], "outcome": outcome, "log": "", "files": {}})

    def _cancel(self, line: str) -> None:
        """End all tasks: at first by an interrupt, so that they put their things in order."""
        for one in self.running:
            self.ray.cancel(one)
        left = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=ENDING)[1]
        for one in left:
            self.ray.cancel(one, force=True)
        for job in self.running.values():
            self._end(job, f"{line}; run the same batch again to go on", STOPPED)
        self.running.clear()
