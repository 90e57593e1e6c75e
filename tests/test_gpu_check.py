"""The GPU check as a program: its table, JSON and exit status. What its real stages see needs a GPU
(tests/gpu).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.append(str(TOOLS))  # its stages' package, gpu

from gpu import extension, making, probes  # noqa: E402

STAGES = """
import time

from gpu.results import Seen


def good(stage):
    stage.check("a figure", lambda: Seen(True, "0.5", "1"))
    stage.keep("figure", 0.5)


def bad(stage):
    stage.check("off", lambda: Seen(False, "2.0", "1"))
    stage.check("raises", lambda: [][0])
    stage.check("after it", lambda: Seen(stage.expected("known") == 7, "7", "7"))


def dies(stage):
    stage.check("before", lambda: Seen(True, "1"))
    import os
    os._exit(3)


def cuda(stage):
    stage.check("only there", lambda: Seen(True, "1"), needs_cuda=True)
    stage.check("here too", lambda: Seen(True, "1"), needs_cuda=True, cpu_too=True)
    stage.check("here, broken", lambda: Seen(False, "1"), needs_cuda=True, cpu_too=True)


def late(stage):
    stage.check("before", lambda: Seen(True, "1"))
    time.sleep(60)


def idle(stage):
    pass
"""
RUN = """
import sys
sys.path.insert(0, {tools!r})
import gpu_check
limits = {stages!r}
stages = {{name: gpu_check.Entry(f"made:{{name}}", "", limit) for name, limit in limits.items()}}
sys.exit(gpu_check.main(sys.argv[1:], stages))
"""


def check(place: Path, stages: dict[str, int], *more: str) -> tuple[int, str, dict[str, Any]]:
    (place / "made.py").write_text(STAGES)
    (place / "reference.json").write_text(json.dumps({"figures": {"known": 7}}))
    words = [
        sys.executable,
        "-c",
        RUN.format(tools=str(TOOLS), stages=stages),
        "--stages",
        ",".join(stages),
        "--out",
        str(place / "out"),
        "--reference",
        str(place / "reference.json"),
        *more,
    ]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(place), "PATH": "/usr/bin:/bin", "HOME": str(place)},
        timeout=120,
    )
    seen = place / "out" / "gpu_check.json"
    return (
        done.returncode,
        done.stdout + done.stderr,
        json.loads(seen.read_text()) if seen.is_file() else {},
    )


def test_what_fails_is_told_and_does_not_stop_the_rest(tmp_path: Path) -> None:
    status, said, seen = check(
        tmp_path,
        {"bad": 60, "dies": 60, "late": 1, "idle": 60, "cuda": 60, "good": 60},
        "--rehearse",
        "--keep-reference",
        "--at-once",
        "2",
    )
    assert status == 1, said
    results = {(row["stage"], row["check"]): (row["result"], row["figure"]) for row in seen["rows"]}
    assert results["bad", "off"] == ("failed", "2.0")
    assert results["bad", "raises"] == ("failed", "IndexError: list index out of range")
    assert results["bad", "after it"] == ("passed", "7"), "and the reference figures are there"
    assert results["dies", "before"][0] == "passed"
    assert results["dies", "the stage's end"][0] == "failed"
    assert "status 3" in results["dies", "the stage's end"][1]
    assert results["late", "before"][0] == "passed"
    assert results["late", "the stage's end"] == ("failed", "cut off after 6 s"), (
        "a rehearsal has six times the limit"
    )
    assert results["idle", "the stage's end"] == ("failed", "the stage did no check")
    assert results["cuda", "only there"] == ("not rehearsed", "needs a CUDA GPU"), (
        "what was not done is not passed"
    )
    assert results["cuda", "here too"] == ("not rehearsed", "on the CPU: 1")
    assert results["cuda", "here, broken"][0] == "failed"
    assert results["good", "a figure"] == ("passed", "0.5")
    assert [row["stage"] for row in seen["rows"] if row["stage"] in ("bad", "good")] == [
        "bad",
        "bad",
        "bad",
        "good",
    ], "in order, though two run at a time"
    lines = said.splitlines()
    assert [line.split()[:4] for line in lines if line.startswith("bad")] == [
        ["bad", "off", "failed", "0.0"],
        ["bad", "raises", "failed", "0.0"],
        ["bad", "after", "it", "passed"],
    ]
    assert lines[-1].startswith("4 passed, 6 failed, 2 not rehearsed; ")
    kept = json.loads((tmp_path / "reference.json").read_text())
    assert kept["figures"] == {"known": 7, "figure": 0.5}
    assert kept["versions"]["python"]
    assert "| bad | off | failed |" in (tmp_path / "out" / "gpu_check.md").read_text()
    assert "IndexError" in (tmp_path / "out" / "gpu_check.log").read_text()


def test_without_failures_the_status_is_0(tmp_path: Path) -> None:
    status, said, seen = check(tmp_path, {"good": 60}, "--rehearse")
    assert status == 0, said
    assert said.splitlines()[-1].startswith("1 passed; results in ")
    assert seen["rehearsal"] is True


def test_only_some_checks_of_the_stages(tmp_path: Path) -> None:
    status, said, seen = check(
        tmp_path, {"bad": 60, "good": 60}, "--rehearse", "--only", "figure,after"
    )
    assert status == 0, said
    assert [row["check"] for row in seen["rows"]] == ["after it", "a figure"]
    status, _, seen = check(tmp_path, {"good": 60}, "--rehearse", "--only", "figrue")
    assert status == 1
    assert [row["figure"] for row in seen["rows"]] == ["the stage did no check called 'figrue'"]


def test_without_a_gpu_it_does_not_start(tmp_path: Path) -> None:
    status, said, seen = check(tmp_path, {"good": 60})
    if "torch finds no CUDA GPU" not in said:
        pytest.skip("there is a GPU")
    assert (status, seen) == (2, {})


def test_unknown_stages_and_empty_folders_of_wheels_are_refused(tmp_path: Path) -> None:
    assert check(tmp_path, {"good": 60}, "--stages", "exl3")[0] == 2
    status, said, _ = check(tmp_path, {"good": 60}, "--rehearse", "--wheels", str(tmp_path))
    assert status == 2
    assert "there are no wheels in" in said


def test_steps_of_float16() -> None:
    ones = np.ones(3, np.float32)
    assert probes.ulps(ones, ones) == 0
    assert probes.ulps(ones, np.array([1, 1 + 2**-10, 1], np.float32)) == 1
    assert probes.ulps(ones, np.array([1, 1 - 2**-10, 1], np.float32)) == 2, (
        "below a power of two the steps are half as wide"
    )
    assert probes.ulps(np.array([2.0**-24], np.float32), np.array([-(2.0**-24)], np.float32)) == 2


def test_seconds_of_two_layers_are_scaled_to_8_billion_weights() -> None:
    assert making.weights(making.BILLION) == 60_817_408  # a block of Llama-3.2-1B
    assert making.scale(making.BILLION) == pytest.approx(57.4, abs=0.1)
    assert making.scaled(90, 30, making.BILLION) == ", 8B 57 to 86 min"
    assert making.scaled(20, 30, making.BILLION) == ", 8B 0 to 19 min"
    assert making.scaled(90, 30, making.SMALL) == ""


def test_headers_are_looked_for_only_where_the_toolkit_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, toolkit = (
        tmp_path / "packages" / "nvidia" / "cu13" / "include",
        tmp_path / "toolkit" / "include",
    )
    for folder in (packages, toolkit):
        folder.mkdir(parents=True)
    (packages / "cublas_v2.h").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    assert extension.headers(str(toolkit.parent)) == [str(packages)]
    (toolkit / "cublas_v2.h").touch()
    assert extension.headers(str(toolkit.parent)) == []


def test_a_compiled_extension_comes_back_and_is_found_again(tmp_path: Path) -> None:
    built = extension.place(tmp_path / "work")
    built.parent.mkdir(parents=True)
    built.write_bytes(b"not ELF, so nothing is stripped" * 9)
    for folder in ("out", "site"):
        (tmp_path / folder).mkdir()
    extension.bring_back(tmp_path / "work", tmp_path / "out", most=10)
    assert list((tmp_path / "out").iterdir()) == [], "too large to be kept"
    extension.bring_back(tmp_path / "work", tmp_path / "out")
    extension.unpack(tmp_path / "out", tmp_path / "site")
    assert (tmp_path / "site" / "exllamav2_ext.so").read_bytes() == built.read_bytes()
