"""Running other processes: status and files checked, everything ended on interrupt."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from autoquant.core.errors import InputError, ProcessFailed
from autoquant.runtime import process


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
    assert process.call("tests.helpers:print_much_and_return", log=tmp_path / "log", n=3) == {
        "n": 3
    }
    assert "noise" in (tmp_path / "log").read_text()


def test_an_abort_in_native_code_is_an_error_here(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="tests.helpers:abort was ended by signal SIGABRT"):
        process.call("tests.helpers:abort", log=tmp_path / "log")


def test_a_full_disk_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="no space left on the disk: .*/some/file.*Free some space and run again"
    ):
        process.call("tests.helpers:raise_enospc", log=tmp_path / "log")


def test_when_one_job_fails_the_others_are_ended_with_their_children(tmp_path: Path) -> None:
    pids: list[int] = []

    def slow(children: process.Children) -> None:
        process.call("tests.helpers:sleep_forever", log=tmp_path / "slow", children=children)

    def fails(children: process.Children) -> None:
        deadline = time.monotonic() + 30
        while not pids and time.monotonic() < deadline:
            pids.extend(child.pid for child in children._alive)
            time.sleep(0.05)
        time.sleep(1)
        raise ProcessFailed("this one failed")

    start = time.monotonic()
    with pytest.raises(ProcessFailed, match="this one failed"):
        process.side_by_side([slow, fails], at_once=2)
    assert time.monotonic() - start < 20
    assert pids
    members = [stat for stat in Path("/proc").glob("[0-9]*/stat") if _group(stat) == pids[0]]
    assert members == [], "nobody of the worker's process group is left"
    assert threading.active_count() < 10


def _group(stat: Path) -> int:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] == "Z" else int(fields[2])


def test_a_worker_started_ahead_has_imported_when_it_is_called(tmp_path: Path) -> None:
    with process.Ahead(["no_such_module", "wave"], log=tmp_path / "log") as ahead:
        ahead.start()
        ahead.start()  # once
        child = ahead._child
        assert child is not None
        assert process.call(
            "tests.helpers:loaded",
            log=tmp_path / "log",
            ahead=ahead,
            names=["wave", "no_such_module", "aifc"],
        ) == ["wave"]
        assert child.poll() == 0
        assert (
            process.call("tests.helpers:loaded", log=tmp_path / "log", ahead=ahead, names=["wave"])
            == []
        ), "another process, when it has been used"


def test_a_worker_started_ahead_and_not_called_is_ended(tmp_path: Path) -> None:
    with process.Ahead([], log=tmp_path / "log") as ahead:
        ahead.start()
        child = ahead._child
        assert child is not None
        assert child.poll() is None
    assert child.poll() is not None
    with process.Ahead([], log=tmp_path / "log"):
        pass  # never started: nothing to end


def test_programs_of_an_environment_that_was_not_activated_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch looks for ninja on the path when it compiles an extension; a notebook's kernel is
    started by its full name.
    """
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert process.call("tests.helpers:found_on_path", log=tmp_path / "log", name="ninja") == str(
        Path(sys.executable).parent / "ninja"
    )


def test_a_pool_keeps_its_workers_until_its_end(tmp_path: Path) -> None:
    with process.Pool(log=tmp_path / "log", env={"GIVEN": "to all"}) as pool:
        first = process.call("tests.helpers:who", log=tmp_path / "log", pool=pool, name="GIVEN")
        assert (
            process.call("tests.helpers:who", log=tmp_path / "log", pool=pool, name="GIVEN")
            == first
        ), "the same process"
        assert first[1] == "to all"
        both = process.side_by_side(
            [
                lambda children: process.call(
                    "tests.helpers:who",
                    log=tmp_path / "log",
                    pool=pool,
                    children=children,
                    name="GIVEN",
                )
            ]
            * 2,
            at_once=2,
        )
        assert first in both, "the one that is kept serves other threads"
        assert [child.pid for child in pool.idle] == [first[0]], (
            "what another thread has started ends with it"
        )
        with pytest.raises(InputError, match="no space left"):
            process.call("tests.helpers:raise_enospc", log=tmp_path / "log", pool=pool)
        with pytest.raises(ProcessFailed, match="tests.helpers:abort was ended by signal SIGABRT"):
            process.call("tests.helpers:abort", log=tmp_path / "log", pool=pool)
        pid, _ = process.call("tests.helpers:who", log=tmp_path / "log", pool=pool, name="GIVEN")
        (child,) = [one for one in pool.idle if one.pid == pid]
        child.kill()
        child.wait()
        assert (
            process.call("tests.helpers:who", log=tmp_path / "log", pool=pool, name="GIVEN")[0]
            != pid
        ), "one that died while nobody looked is replaced"
        alive = list(pool.idle)
        assert alive
    assert all(child.poll() is not None for child in alive)
    assert pool.idle == []


def test_a_pools_worker_is_ended_with_the_work_it_does(tmp_path: Path) -> None:
    with process.Pool(log=tmp_path / "log") as pool:
        process.call("tests.helpers:who", log=tmp_path / "log", pool=pool, name="HOME")
        (child,) = pool.idle

        def fails(_: process.Children) -> None:
            time.sleep(1)
            raise ProcessFailed("this one failed")

        with pytest.raises(ProcessFailed, match="this one failed"):
            process.side_by_side(
                [
                    lambda children: process.call(
                        "tests.helpers:sleep_forever",
                        log=tmp_path / "log",
                        pool=pool,
                        children=children,
                    ),
                    fails,
                ],
                at_once=2,
            )
        assert child.poll() is not None
        assert pool.idle == []
