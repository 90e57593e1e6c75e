"""Running other processes: status and files checked, everything ended on interrupt."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from autoquant.core.errors import InputError, ProcessFailed
from autoquant.runtime import preload, process

ROOT = Path(__file__).parents[1]


def test_exit_status_zero_without_the_file_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="reported success but did not write"):
        process.run(
            ["sh", "-c", "echo all fine"], log=tmp_path / "log", produces=[tmp_path / "model"]
        )
    assert "all fine" in (tmp_path / "log").read_text()


def test_a_failing_command_says_how_and_why(tmp_path: Path) -> None:
    with pytest.raises(
        ProcessFailed, match=r"sh exited with status 7\. Log: .* Its end: out of tea"
    ):
        process.run(["sh", "-c", "echo out of tea >&2; exit 7"], log=tmp_path / "log")


def test_output_is_no_shell(tmp_path: Path) -> None:
    process.run(["touch", "a; touch b"], log=tmp_path / "log")
    try:
        assert Path("a; touch b").is_file()
        assert not Path("b").exists()
    finally:
        Path("a; touch b").unlink(missing_ok=True)


def test_a_result_arrives_though_the_library_prints(tmp_path: Path) -> None:
    assert process.call(
        "tests.helpers.processes:print_much_and_return", log=tmp_path / "log", n=3
    ) == {"n": 3}
    assert "noise" in (tmp_path / "log").read_text()


def test_an_abort_in_native_code_is_an_error_here(tmp_path: Path) -> None:
    with pytest.raises(
        ProcessFailed, match="tests.helpers.processes:abort was ended by signal SIGABRT"
    ):
        process.call("tests.helpers.processes:abort", log=tmp_path / "log")


def test_a_full_disk_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="no space left on the disk: .*/some/file.*Free some space and run again"
    ):
        process.call("tests.helpers.processes:raise_enospc", log=tmp_path / "log")


def test_when_one_job_fails_the_others_are_ended_with_their_children(tmp_path: Path) -> None:
    pids: list[int] = []

    def slow(children: process.Children) -> None:
        process.call(
            "tests.helpers.processes:sleep_forever", log=tmp_path / "slow", children=children
        )

    def fails(children: process.Children) -> None:
        deadline = time.monotonic() + 30
        while not pids and time.monotonic() < deadline:
            pids.extend(child.pid for child in children._alive)
            time.sleep(0.05)
        time.sleep(1)
        raise ProcessFailed("this one failed")

    before = set(threading.enumerate())
    start = time.monotonic()
    with pytest.raises(ProcessFailed, match="this one failed"):
        process.side_by_side([slow, fails], at_once=2)
    assert time.monotonic() - start < 20
    assert pids
    members = [stat for stat in Path("/proc").glob("[0-9]*/stat") if _group(stat) == pids[0]]
    assert members == [], "nobody of the worker's process group is left"
    left = {thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()}
    assert left == set(), "no thread of these jobs is left"


def _group(stat: Path) -> int:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] == "Z" else int(fields[2])


def test_programs_of_an_environment_that_was_not_activated_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch looks for ninja on the path when it compiles an extension; a notebook's kernel is
    started by its full name.
    """
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert process.call(
        "tests.helpers.processes:found_on_path", log=tmp_path / "log", name="ninja"
    ) == str(Path(sys.executable).parent / "ninja")


needs_fork = pytest.mark.skipif(not preload.usable(), reason="workers are forked on Linux only")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the test run's own preloaded process, and with one that imports next to nothing."""
    monkeypatch.delenv(preload.SHARED, raising=False)
    monkeypatch.setattr(preload, "_KEPT", preload._Kept())
    monkeypatch.setattr(preload, "MODULES", "wave")


def who(tmp_path: Path, name: str = "GIVEN", **more: Any) -> Any:
    return process.call("tests.helpers.processes:who", log=tmp_path / "log", name=name, **more)


@needs_fork
def test_workers_are_forked_from_one_process_that_has_imported(alone: None, tmp_path: Path) -> None:
    with preload.kept():
        first, second = who(tmp_path, env={"GIVEN": "one"}), who(tmp_path, env={"GIVEN": "two"})
        assert first[0] != second[0], "a process each"
        assert (first[1], second[1]) == ("one", "two"), "with variables of its own"
        assert first[2] == second[2], "the same process has forked them"
        (server,) = preload._KEPT.processes.values()
        assert first[2] == server._process.pid
        assert len(os.listdir(f"/proc/{first[2]}/task")) == 1, "a thread would be lost in a fork"
        loaded = process.call(
            "tests.helpers.processes:loaded", log=tmp_path / "log", names=["wave"]
        )
        assert loaded == ["wave"]
        assert who(tmp_path, fresh=True)[2] == os.getpid()
        with preload.kept():
            pass
        assert server.alive(), "until the outermost ends"
        who(tmp_path, env={"OMP_NUM_THREADS": "7"})
        assert len(preload._KEPT.processes) == 2, "what libraries read when imported is another's"
    assert not server.alive()
    assert who(tmp_path)[2] == os.getpid(), "started anew where none is kept"


@needs_fork
def test_where_cuda_was_touched_a_worker_begins_anew(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preload, "MODULES", "tests.fakes.touched_cuda")
    names = ["tests.fakes.touched_cuda", "torch"]
    with preload.kept():
        assert (
            process.call("tests.helpers.processes:loaded", log=tmp_path / "log", names=names) == []
        )
        assert who(tmp_path, env={"GIVEN": "it"})[1] == "it"
        (server,) = preload._KEPT.processes.values()
        assert who(tmp_path)[2] == server._process.pid, "the same process, begun anew"


@needs_fork
def test_nothing_that_is_preloaded_asks_cuda(tmp_path: Path) -> None:
    """On the first GPU that we had, torchao did: no worker could be forked."""
    said = process.call(
        "tests.helpers.processes:asked_of_cuda",
        log=tmp_path / "log",
        fresh=True,
        modules=preload.MODULES.split(","),
    )
    assert said == []


@needs_fork
def test_a_forked_worker_is_like_any_other(alone: None, tmp_path: Path) -> None:
    with preload.kept():
        with pytest.raises(InputError, match="no space left"):
            process.call("tests.helpers.processes:raise_enospc", log=tmp_path / "log")
        with pytest.raises(
            ProcessFailed, match="tests.helpers.processes:abort was ended by signal SIGABRT"
        ):
            process.call("tests.helpers.processes:abort", log=tmp_path / "log")
        noisy = process.call(
            "tests.helpers.processes:print_much_and_return", log=tmp_path / "log", n=3
        )
        assert noisy == {"n": 3}
        assert "noise noise noise" in (tmp_path / "log").read_text()

        def fails(_: process.Children) -> None:
            time.sleep(1)
            raise ProcessFailed("this one failed")

        def slow(children: process.Children) -> None:
            where = tmp_path / "slow"
            process.call("tests.helpers.processes:sleep_forever", log=where, children=children)

        with pytest.raises(ProcessFailed, match="this one failed"):
            process.side_by_side([slow, fails], at_once=2)
        (server,) = preload._KEPT.processes.values()
        assert _children(server._process.pid) == []


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in text.split()]


@needs_fork
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_whoever_asked_for_them(
    alone: None, tmp_path: Path, number: signal.Signals
) -> None:
    """However that ends, and whatever they have started."""
    code = f"""
import pathlib, sys
from autoquant.runtime import preload, process
preload.MODULES = "wave"
with preload.kept():
    log = pathlib.Path({str(tmp_path / "log")!r})
    process.call("tests.helpers.processes:sleep_forever", log=log)
"""
    asking = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        sleeping = _wait_for(lambda: _grandchildren(asking.pid, depth=3))
        asking.send_signal(number)
        asking.wait(20)
        _wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in sleeping) or None)
    finally:
        asking.kill()


def _grandchildren(pid: int, depth: int) -> list[int]:
    """The processes below one: preloaded process, worker, and what the worker has started."""
    level, every = [pid], []
    for _ in range(depth):
        level = [child for one in level for child in _children(one)]
        every += level
    return every if level else []


def _wait_for(condition: Any, seconds: float = 60) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError):
            if found := condition():
                return found
        time.sleep(0.05)
    raise AssertionError("it did not come about in time")


@needs_fork
def test_a_test_runs_commands_share_its_preloaded_process(tmp_path: Path) -> None:
    """As all of these tests do: the variable goes to every command they start, whatever a library
    has put into this process's environment.
    """
    llama_cpp.llama_backend_init()
    address, _, key = os.environ[preload.SHARED].partition("|")
    env = process.worker_environment()
    keyed = {name: value for name, value in env.items() if name.startswith(preload.KEYED)}
    assert preload.identity("", env) == key, f"a test has changed the variables of all: {keyed}"
    code = f"""
import json, pathlib
from autoquant.runtime import preload, process
log = pathlib.Path({str(tmp_path / "log")!r})
print(process.call("tests.helpers.processes:who", log=log, name="HOME"))
"""
    said = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert Path(address).exists()
    assert str(who(tmp_path, "HOME")[2]) in said
