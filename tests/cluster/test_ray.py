"""A batch on a real Ray cluster of two nodes on this machine: a node killed in mid-run, a batch
cancelled, nodes that share no folder, a token that stays where it belongs.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import autoquant
from autoquant.cluster import jobs, planning
from autoquant.cluster.board import Board
from autoquant.cluster.on_ray import driver
from autoquant.cluster.on_ray.runner import Cluster, _heard
from autoquant.core.errors import InputError
from autoquant.runtime import process
from tests.fakes.hub import TOKEN, Hub

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "memory": 6 << 30}
pytestmark = pytest.mark.slow


@dataclasses.dataclass
class Nodes:
    """A cluster of two nodes, the Hub that they see, and where Ray keeps its logs."""

    cluster: Any
    hub: Hub
    logs: Path
    cache: Path

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def second(self) -> Any:
        """The node beside the head; another one if it is gone."""
        if not self.cluster.worker_nodes:
            self.cluster.add_node(**NODE)
        return next(iter(self.cluster.worker_nodes))


def started(place: Path) -> Any:
    """A cluster of one node that keeps its things at a place."""
    from ray.cluster_utils import Cluster as LocalCluster

    head = {**NODE, "include_dashboard": False, "temp_dir": str(place)}
    return LocalCluster(initialize_head=True, head_node_args=head)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    # Ray's sockets need a short path
    place = Path("/tmp") / f"aq-ray-{os.getpid()}"
    cache = tmp_path_factory.mktemp("nodes")
    hub = Hub(tmp_path_factory.mktemp("hub")).start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(cache / "hf"))
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_failure_threshold", "3")
        cluster = started(place)
        cluster.add_node(**NODE)
        try:
            yield Nodes(cluster, hub, place, cache)
        finally:
            cluster.shutdown()
            hub.stop()


def command(nodes: Nodes, path: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    words = ["batch", str(path), "--out", str(out), "--ray", nodes.address, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "autoquant.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def batch_file(folder: Path, chunks: int) -> Path:
    path = folder / "batch.toml"
    path.write_text(
        "[[jobs]]\nmodels = ['demo', 'demo-small']\nmethods = ['gguf', 'hqq', 'w8a8']\n"
        f"eval_chunks = {chunks}\ngguf = {{ types = ['Q8_0', 'Q4_K_M'], pre_tokenizer = 'gpt-2' }}"
    )
    return path


def until(stream: Any, text: str) -> None:
    """Read lines until one has a text."""
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"no line has {text!r}")


def test_a_batch_survives_a_node(nodes: Nodes, tmp_path: Path) -> None:
    """The second node is killed with whatever it is doing; its job is done by the other."""
    node, out = nodes.second(), tmp_path / "out"
    running = command(nodes, batch_file(tmp_path, 10), out)
    # each node has one job by then
    until(running.stderr, ": running")
    until(running.stderr, ": running")
    time.sleep(1)
    nodes.cluster.remove_node(node, allow_graceful=False)
    stdout, stderr = running.communicate(timeout=300)
    assert running.returncode == 0, f"{stdout}\n{stderr}\n{(out / '.autoquant-batch/ray.log')}"
    assert "6 done" in stdout
    assert (out / "summary.md").read_text().startswith("# 6 jobs: 6 done")
    assert not list((out / ".autoquant-batch").glob("shared-*"))
    assert re.search(r"running: on .*, try 2 \(", stderr)
    done = autoquant.batch(batch_file(tmp_path, 10), out=out, dry_run=True)
    assert done.ready == []


def test_a_batch_is_cancelled_by_another_client(nodes: Nodes, tmp_path: Path) -> None:
    path, out = batch_file(tmp_path, 4000), tmp_path / "out"
    with pytest.raises(InputError, match="no batch of .*out is being run"):
        Cluster(nodes.address, {}).cancel(out)
    running = command(nodes, path, out)
    until(running.stderr, ": running")
    ended = command(nodes, path, out, "--cancel")
    assert ended.wait(180) == 0
    stdout, _ = running.communicate(timeout=180)
    assert running.returncode == 1
    assert "6 stopped" in stdout
    assert "cancelled; run the same batch again to go on" in stdout
    assert process_free(out)
    # and by Ctrl-C in its own
    running = command(nodes, path, out)
    until(running.stderr, ": running")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=180)
    assert running.returncode == 130
    assert process_free(out)
    assert "stopped" in (out / "summary.md").read_text()


def process_free(out: Path) -> bool:
    """Whether no process works for a folder any longer, after a moment."""
    for _ in range(40):
        lines = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True).stdout
        if not any(str(out) in line for line in lines.splitlines()):
            return True
        time.sleep(0.25)
    return False


def test_nodes_that_share_no_folder_send_their_results_to_the_hub(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's mark is not seen, as on another machine. The token is the client's, and is found
    nowhere afterwards.
    """
    nodes.second()
    entry = {"model": "demo-small", "method": "hqq", "evaluate": "off"}
    kept = jobs.read([entry], tmp_path)
    mark = tmp_path / "elsewhere"
    given = {"address": nodes.address, "folder": str(tmp_path), "mark": str(mark), "token": TOKEN}

    def drive(batch: jobs.Batch) -> list[dict[str, Any]]:
        plan = planning.plan(batch, here=False)
        runner = Cluster(nodes.address, {})
        asked = [
            {
                **one.job.to_json(),
                "needs": runner._needs(one),
                "upload": bool(one.job.options.upload),
                "seconds": one.seconds,
            }
            for one in plan.planned
        ]
        events: list[dict[str, Any]] = []
        process.call(f"{driver.__name__}:drive", log=tmp_path / "log", on_part=events.append,
                     fresh=True, jobs=asked, **given)  # fmt: skip
        return events

    with pytest.raises(InputError, match="does not see this batch's folder.*demo-small-HQQ-4bit"):
        drive(kept)
    monkeypatch.setattr(planning, "_check_upload", lambda *_: None)  # this process has no token
    sent = jobs.read([{**entry, "upload": "tester/tiny", "base_model": "maker/tiny"}], tmp_path)
    last = drive(sent)[-1]
    assert last["outcome"]["state"] == "done", last
    assert f"{nodes.hub.url}/tester/tiny" in last["outcome"]["line"]
    assert {"README.md", ".autoquant/journal.json"} <= set(last["files"])
    # this side knows it as done, and where its files are
    _heard(last, Board(sent))
    assert planning.plan(sent, here=False).ready == []
    made = autoquant.load(tmp_path / "demo-small-HQQ-4bit")
    with pytest.raises(InputError, match="download it from tester/tiny"):
        made.path("4bit-64g")
    # what another node might have kept was asked for, and nothing is kept of a job that is done
    assert any("tester/autoquant-unfinished-" in one.path for one in nodes.hub.log)
    assert not [repo for repo in nodes.hub.repos if "unfinished" in repo]
    written = [path for path in (*nodes.logs.rglob("*"), *tmp_path.rglob("*")) if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_what_no_node_has_is_said(nodes: Nodes, tmp_path: Path) -> None:
    entries = [{"model": "demo-small", "method": "hqq", "evaluate": "off"}]
    planned = planning.plan(jobs.read(entries, tmp_path), here=False)
    for needs, said in (
        ({"cpus": 3}, "it needs 3 processor cores, and no node of the cluster has more than 1"),
        ({"memory": 64e9}, "it needs 64.00 GB of memory, and no node of the cluster has more than"),
    ):
        board = Board(planned.batch)
        Cluster(nodes.address, needs).run(planned.ready, board)
        assert said in board.rows[0].line
        assert board.rows[0].state == "failed"


def test_a_full_disk_sends_a_job_to_a_node_with_room() -> None:
    def node(free: int, *, shared: bool = False) -> dict[str, Any]:
        return {"shared": shared, "free": free, "host": f"has{free}", "Resources": {}}

    nodes = {"a": node(5), "b": node(50), "c": node(70)}
    waiting = driver._Jobs(mock.MagicMock(), "folder", nodes, None, None, lambda event: None)
    job = {"name": "job", "needs": {"disk": 40}}
    assert waiting._roomier(job, {"node": "a"}) == "c"
    assert waiting._roomier(job, {"node": "c"}) == "b"
    assert waiting._roomier(job, {"node": "b"}) == ""
    together = {"a": node(5, shared=True), "b": node(50, shared=True)}
    shared = driver._Jobs(mock.MagicMock(), "folder", together, None, None, lambda event: None)
    assert shared._roomier(job, {"node": "a"}) == "", "they write to the same disk"


def test_a_cluster_that_is_lost_is_said(tmp_path: Path) -> None:
    cluster = started(Path("/tmp") / f"aq-ray-{os.getpid()}-lost")
    nodes = Nodes(cluster, None, tmp_path, tmp_path)  # type: ignore[arg-type]
    running = command(nodes, batch_file(tmp_path, 4000), tmp_path / "out")
    until(running.stderr, ": running")
    address = nodes.address
    cluster.shutdown()
    _, stderr = running.communicate(timeout=120)
    assert running.returncode == 1
    assert f"error: the Ray cluster at {address} was lost" in stderr
    assert "Traceback" not in stderr
    assert "1 stopped, 5 waiting" in (tmp_path / "out" / "summary.md").read_text()


def test_no_cluster_and_no_ray_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [{"model": "demo-small", "method": "hqq", "evaluate": "off"}]
    with pytest.raises(InputError, match="no cluster answers at '127.0.0.1:1'.*ray start --head"):
        autoquant.batch(entries, out=tmp_path / "one", ray="127.0.0.1:1")
    monkeypatch.setattr("autoquant.runtime.environments.here", lambda name: False)
    with pytest.raises(InputError, match="ray>=.* is not installed here; `pip install"):
        autoquant.batch(entries, out=tmp_path / "two", ray="auto")
