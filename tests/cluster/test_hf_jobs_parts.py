"""Which machine a job gets, for how long and how much; the wheel that is shipped; what is kept of a
job that is stopped.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import autoquant
from autoquant.cluster import keeping
from autoquant.cluster.hf_jobs import duration, flavors, hardware, lines, shipping
from autoquant.cluster.hf_jobs.hardware import GB, TABLE, Flavor
from autoquant.cluster.work import Outcome
from autoquant.core.errors import InputError
from autoquant.core.options import build
from autoquant.core.plans import Plan
from autoquant.hub.client import Client, Token
from autoquant.methods import METHODS
from autoquant.result import Result
from tests.fakes.hub import TOKEN, Hub
from tests.fakes.hub.jobs import HARDWARE


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    out = tmp_path_factory.mktemp("plan") / "out"
    return autoquant.plan("w8a8", "demo", out=out, evaluate="off")


def planned(
    small: Plan, method: str, billions: float, memory: int, disk: int, core_hours: float = 0
) -> Plan:
    """A plan of a larger model, with memory and disk in GB."""
    source = dataclasses.replace(small.source, parameters=int(billions * 1e9))
    seconds = {"quantize": 3600 * core_hours / duration.cores()} if core_hours else {}
    return dataclasses.replace(
        small,
        method=method,
        source=source,
        memory_needed=memory * GB,
        disk_needed=disk * GB,
        seconds=seconds,
    )


@pytest.mark.parametrize(
    ("method", "billions", "memory", "disk", "core_hours", "chosen", "why"),
    [
        ("gguf", 0.1, 2, 2, 0.01, "cpu-upgrade", ""),  # done sooner, for a cent
        ("gguf", 8, 3, 20, 2, "cpu-upgrade", ""),
        ("gguf", 70, 6, 200, 15, "cpu-xl", ""),
        ("gguf", 235, 200, 600, 60, "cpu-performance", ""),
        ("gguf", 405, 300, 900, 90, "rtx-pro-6000x4", "for its memory or disk"),
        ("hqq", 8, 6, 10, 0, "cpu-upgrade", ""),
        ("gptq", 0.135, 2, 2, 0, "cpu-upgrade", ""),
        ("gptq", 8, 12, 30, 0, "cpu-upgrade", ""),
        ("gptq", 32, 10, 100, 0, "l4x1", "a GPU is worth it"),
        ("exl2", 8, 10, 30, 0, "t4-small", "quantizes on one only"),
        ("exl2", 70, 10, 300, 0, "l4x1", "quantizes on one only"),
    ],
)
def test_the_machine_that_costs_least(
    small: Plan,
    tmp_path: Path,
    method: str,
    billions: float,
    memory: int,
    disk: int,
    core_hours: float,
    chosen: str,
    why: str,
) -> None:
    plan = planned(small, method, billions, memory, disk, core_hours)
    options = build(METHODS[method].Options, {"evaluate": "off"})
    choice = flavors.choose(plan, options, tmp_path, TABLE)
    assert choice.flavor.name == chosen, choice
    assert why in choice.why
    assert not flavors.need(plan, tmp_path).lacks(choice.flavor)
    assert choice.seconds > duration.INSTALL


def test_a_machine_that_was_asked_for_must_do(small: Plan, tmp_path: Path) -> None:
    plan = planned(small, "gguf", 70, 20, 200, 15)
    options = build(METHODS["gguf"].Options, {"evaluate": "off"})
    assert flavors.choose(plan, options, tmp_path, TABLE, "l4x1").flavor.name == "l4x1"
    with pytest.raises(InputError, match=r"too little of memory: 21.0 GB.*disk: 228.0 GB.*cpu-xl"):
        flavors.choose(plan, options, tmp_path, TABLE, "cpu-basic")
    with pytest.raises(InputError, match="no machine of Hugging Face Jobs suffices"):
        flavors.choose(planned(small, "gguf", 1, 9000, 1), options, tmp_path, TABLE)
    options = build(METHODS["exl2"].Options, {"evaluate": "off"})
    with pytest.raises(InputError, match="an NVIDIA GPU"):
        flavors.choose(planned(small, "exl2", 1, 2, 2), options, tmp_path, TABLE, "cpu-xl")


@pytest.mark.parametrize(
    ("seconds", "timeout"), [(0, 1800), (899, 1800), (901, 2100), (7200, 14400), (7201, 14700)]
)
def test_the_timeout_is_twice_the_planned_time(seconds: float, timeout: int) -> None:
    assert duration.timeout(seconds) == timeout


def test_times_as_they_are_written() -> None:
    assert [duration.given(one) for one in ("90m", "6h", "1.5d", "120", 90.5, "2 H")] == [
        5400,
        21600,
        129600,
        120,
        91,
        7200,
    ]
    for wrong in ("", "soon", "-5m", "10s", "5x"):
        with pytest.raises(InputError, match="timeout: "):
            duration.given(wrong)


def test_measuring_takes_no_longer_than_it_may(small: Plan) -> None:
    options = build(METHODS["w8a8"].Options, {})
    todo = duration.work(dataclasses.replace(small, seconds={}), options)
    assert todo.longest_measuring == 1800
    machine = Flavor("m", 2, GB, GB, 0.01)
    assert math.isfinite(todo.seconds(machine))
    assert todo.seconds(machine) >= duration.INSTALL + 1800


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    running = Hub(tmp_path / "hub").start()
    yield running
    running.stop()


@pytest.fixture
def client(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Client:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return Client(HfApi(endpoint=hub.url, token=TOKEN), Token(TOKEN, "a test"), hub.url)


def test_machines_and_prices_are_the_hubs_own(hub: Hub, client: Client) -> None:
    hub.running.hardware = [
        *HARDWARE,
        {
            **HARDWARE[3],
            "name": "tpu",
            "accelerator": {**HARDWARE[3]["accelerator"], "type": "tpu"},
        },
        {**HARDWARE[0], "name": "hourly", "unitLabel": "hour", "unitCostUSD": 6.0},
        {**HARDWARE[0], "name": "large", "ephemeralStorage": "1.5 TB"},
    ]
    machines, source = hardware.listed(client)
    assert "the Hub's own list" in source
    assert [one.name for one in machines][-3:] == ["a100-large", "hourly", "large"]
    assert hardware.named("t4-small", machines) == Flavor(
        "t4-small", 4, 15 * GB, 50 * GB, 0.42 / 60, "T4", 1, 16 * GB
    )
    assert machines[-2].minute == 0.1
    assert machines[-1].disk == 1500 * GB


def test_without_the_hubs_list_the_table_is_used_and_that_is_said(hub: Hub, client: Client) -> None:
    hub.fail("hardware", 404, times=9)
    machines, source = hardware.listed(client)
    assert machines == TABLE
    assert "could not be read" in source
    assert "2026-11-28" in source


def test_the_table_has_the_librarys_names() -> None:
    from huggingface_hub import _jobs_api

    names = {one.value for one in getattr(_jobs_api, "JobHardware", [])}
    assert not names or {one.name for one in TABLE} <= names


def test_the_wheel_is_this_package(tmp_path: Path) -> None:
    made = shipping.wheel()
    assert made == shipping.wheel()  # the same contents, the same hash
    path = tmp_path / made.name
    path.write_bytes(made.content)
    where = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(where), str(path)], check=True)
    here = Path(autoquant.__file__).parent
    for name in ("cli.py", "sizing/devices.json", "demo/austen_calibration.txt", "py.typed"):
        assert (where / "autoquant" / name).read_bytes() == (here / name).read_bytes()
    (found,) = importlib.metadata.distributions(name="autoquant-notebooks", path=[str(where)])
    assert found.version == autoquant.__version__
    assert "gguf" in (found.metadata.get_all("Provides-Extra") or [])
    assert (where / "bin" / "autoquant").is_file()
    assert not [name for name in zipfile.ZipFile(path).namelist() if "__pycache__" in name]


def test_an_edited_checkout_is_another_wheel(tmp_path: Path) -> None:
    folder = tmp_path / "autoquant"
    folder.mkdir()
    (folder / "__init__.py").write_text("a = 1\n")
    first = shipping.wheel(folder)
    (folder / "__init__.py").write_text("a = 2\n")
    assert shipping.wheel(folder).path != first.path


def test_a_wheel_is_sent_once_and_to_a_private_place_only(hub: Hub, client: Client) -> None:
    made = shipping.Wheel("a.whl", b"content", "ab" * 32)
    repo = shipping.repository(client, "tester")
    assert shipping.send(client, repo, made)
    assert not shipping.send(client, repo, made)
    assert hub.content(f"datasets/{repo}", made.path) == b"content"
    hub.repos[f"datasets/{repo}"].private = False
    with pytest.raises(InputError, match="is public"):
        shipping.repository(client, "tester")


def test_a_stopped_job_goes_on_elsewhere(
    hub: Hub, client: Client, demo: Result, tmp_path: Path
) -> None:
    """What a machine had finished is what the next one has: the same run makes nothing again."""
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(demo.folder, one)
    repo = keeping.unfinished("tester", "key")
    keeper = keeping.Keeper(client, repo, one)
    assert "tiny-austen-4m-Q4_K_M.gguf" in keeper.keep()
    assert keeper.keep() == []  # nothing is new
    assert hub.repos[f"datasets/{repo}"].private
    assert keeping.JOURNAL in keeping.restore(client, repo, two)
    again = autoquant.gguf(
        "demo",
        types=["Q8_0", "Q4_K_M"],
        imatrix="builtin",
        imatrix_chunks=20,
        pre_tokenizer="gpt-2",
        evaluate="off",
        out=two,
    )
    for type in ("Q8_0", "Q4_K_M"):
        kept, before = again.path(type).stat(), demo.path(type).stat()
        assert kept.st_mtime_ns == before.st_mtime_ns  # it was not made anew
        assert kept.st_size == before.st_size
    keeper.forget()
    assert f"datasets/{repo}" not in hub.repos
    assert keeping.restore(client, repo, tmp_path / "three") == []


def test_what_another_attempt_left_is_not_taken(hub: Hub, client: Client, tmp_path: Path) -> None:
    repo = shipping.repository(client, "tester")
    (tmp_path / "run").mkdir()
    left = '{"state": "failed", "line": "no room", "attempt": "first"}'
    keeping.hand_over(client, repo, "key", tmp_path / "run", left)
    folder = tmp_path / "here" / "run"
    assert keeping.collect(client, repo, "key", folder, "second") is None
    found = keeping.collect(client, repo, "key", folder, "first")
    assert found is not None
    assert lines.of(found) == Outcome("failed", "no room")
    assert not folder.exists()
    assert keeping.collect(client, repo, "other", folder) is None


def test_jobs_that_hand_over_at_the_same_moment(hub: Hub, client: Client, tmp_path: Path) -> None:
    repo = shipping.repository(client, "tester")
    hub.fail("^POST .*commit/main", 412, message="A commit has happened since", times=2)
    keeping.hand_over(client, repo, "key", tmp_path, '{"state": "done"}')
    assert "results/key/outcome.json" in hub.files(f"datasets/{repo}")


def test_lines_are_redacted_and_foreign_ones_are_not_taken() -> None:
    said: list[str] = []
    report = lines.Reporter(said.append)
    report(f"with {TOKEN}", 0.25)
    report(f"with {TOKEN}", 0.26)  # too soon
    report("next", 1.0)
    assert [lines.read(one) for one in said] == [
        {"title": "with <token>", "share": 0.25},
        {"title": "next", "share": 1.0},
    ]
    for other in ("a line", "@autoquant {cut", '@autoquant ["list"]'):
        assert lines.read(other) is None
    ended = lines.read(lines.ended(Outcome("failed", f"token {TOKEN}", 2.0, disk_full=True)))
    assert ended is not None
    assert lines.outcome(ended) == Outcome("failed", "token <token>", 2.0, disk_full=True)
    assert lines.outcome({"title": "x"}) is None


def test_a_job_has_the_versions_that_are_here() -> None:
    here = {one.partition("==")[0]: one.partition("==")[2] for one in shipping.pins(False)}
    assert here["transformers"] == importlib.metadata.version("transformers")
    assert "+" not in here["torch"]  # of any build
    assert set(here) - {"torch"} == {one.partition("==")[0] for one in shipping.pins(True)}
    gguf = dict(shipping.prebuilt("gguf", system_torch=False))
    assert gguf[shipping.TORCH] == f"torch=={here['torch']}"
    assert gguf[shipping.LLAMA[1]] == "llama-cpp-python==0.3.36"
    assert shipping.prebuilt("exl2", system_torch=True) == []
