"""Hugging Face Jobs against the loopback Hub: from the command to the fetched card; clients that go
away, jobs that are stopped, accounts that may not.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import autoquant
from autoquant.cluster.hf_jobs import submit
from autoquant.core.bundled import MODEL
from tests.cluster.jobs import BATCH, ONE, WAITING, online, running, stand_in, typed
from tests.fakes.hub import TOKEN, Hub
from tests.hub.conftest import User, checkpoint

FOLDER = "demo-W8A8-int8-dynamic-job"
Typed = Callable[..., tuple[int, str]]


@pytest.fixture
def there(tmp_path: Path) -> Iterator[tuple[Hub, User]]:
    with running(tmp_path) as both:
        yield both


@pytest.fixture
def type(
    there: tuple[Hub, User],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Typed:
    """Types a command."""
    return typed(*there, monkeypatch, capsys)


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, User, str]]:
    """Two jobs, really run, from the shipped wheel: of a bundled model, and of the other one as a
    private repository, which only the job's secret opens.
    """
    with running(tmp_path_factory.mktemp("jobs")) as (hub, user):
        hub.seed("tester/tiny", checkpoint(), private=True)
        (user.cwd / "two.toml").write_text(BATCH)
        done = user.run("batch", "two.toml", "--on", "hf-jobs", "--yes")
        yield hub, user, done.stdout + done.stderr


def test_a_batch_is_made_uploaded_and_fetched(batch: tuple[Hub, User, str]) -> None:
    hub, user, said = batch
    assert "2 done" in said
    assert "@autoquant" not in said
    for name in ("demo-small", "tiny"):
        run = f"{name}-W8A8-int8-dynamic"
        assert {"README.md", "config.json", "model.safetensors"} <= hub.files(f"tester/{run}")
        made = autoquant.load(user.cwd / "two-output" / run)
        assert made.receipts[0].repo == f"tester/{run}"
        assert made.artifacts[0].evaluation is not None
        assert "int8-dynamic" in made.card()
        with pytest.raises(autoquant.InputError, match=f"download it from tester/{run}"):
            made.path("int8-dynamic")
    assert made.source.revision == hub.repos["tester/tiny"].branches["main"]
    assert hub.repos["tester/tiny-W8A8-int8-dynamic"].private
    page = (user.cwd / "two-output" / "summary.md").read_text()
    assert page.count("[on the Hub](<http") == 2
    assert not [repo for repo in hub.repos if "unfinished" in repo]


def test_a_job_runs_the_package_that_was_shipped(batch: tuple[Hub, User, str]) -> None:
    hub, _, _ = batch
    wheels = [name for name in hub.files("datasets/tester/autoquant-jobs") if "wheels/" in name]
    assert len(wheels) == 1
    assert hub.repos["datasets/tester/autoquant-jobs"].private
    for job in hub.running.jobs.values():
        line = next(line for _, line in job.lines if line.startswith("autoquant 0"))
        assert f"{job.folder}/autoquant-job/environment/lib" in line
        assert wheels[0].split("/")[1] in line
        assert job.spec["timeoutSeconds"] >= 1800  # the platform's own default kills real jobs
        assert job.spec["labels"]["autoquant"] == "job"
    assert len(hub.running.jobs) == 2


def test_what_is_done_is_not_started_again(batch: tuple[Hub, User, str]) -> None:
    hub, user, _ = batch
    again = user.run("batch", "two.toml", "--on", "hf-jobs", "--yes")
    assert "nothing is to be started" in again.stdout
    assert len(hub.running.jobs) == 2
    listed = user.run("jobs").stdout
    for id in hub.running.jobs:
        assert id in listed
        read = user.run("jobs", "logs", id).stdout
        assert "uploaded and compared" in read
        assert "@autoquant" not in read


def test_the_token_is_nowhere_but_in_the_secret(batch: tuple[Hub, User, str]) -> None:
    hub, user, said = batch
    assert TOKEN not in said
    for job in hub.running.jobs.values():
        assert job.spec["secrets"] == {"HF_TOKEN": TOKEN}
        assert TOKEN not in json.dumps({**job.spec, "secrets": None})
        assert not [line for _, line in job.lines if TOKEN in line]
        _nowhere(job.folder)
    _nowhere(user.home)
    _nowhere(hub.root / "blobs")


def _nowhere(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 30_000_000:
            assert TOKEN.encode() not in path.read_bytes(), path


def test_clients_come_and_go(there: tuple[Hub, User], type: Typed, tmp_path: Path) -> None:
    """One is killed, the next one interrupted; the third sees the end."""
    hub, user = there
    stand_in(hub, WAITING.replace("{go}", str(tmp_path / "go")))
    first = user.start(*ONE, "--yes")
    until(lambda: hub.requests("logs$"))
    first.kill()
    first.communicate()
    (job,) = hub.running.jobs.values()
    assert job.stage == "RUNNING"
    notes = user.cwd / FOLDER / ".autoquant-batch" / "hf-jobs.json"
    assert job.id in notes.read_text()
    notes.unlink()  # as if it had been killed before it wrote that down
    second = user.start(*ONE)  # nothing is spent, so nothing is asked
    until(lambda: len(hub.requests("logs$")) == 2)
    second.send_signal(signal.SIGINT)
    _, err = second.communicate(timeout=30)
    assert second.returncode == 130
    assert job.stage == "RUNNING"
    assert f"1 jobs go on at Hugging Face, and are billed: {job.id}" in err
    assert "autoquant quantize w8a8 demo --upload tester/demo-W8A8 --on hf-jobs" in err
    hub.on("logs$", (tmp_path / "go").touch)
    status, said = type(*ONE)
    assert status == 0, said
    assert f"runs already: job {job.id}" in said
    assert "made" in said
    assert len(hub.running.jobs) == 1
    log = user.cwd / FOLDER / ".autoquant-batch" / "logs" / "demo-W8A8-int8-dynamic.txt"
    assert log.read_text() == "a line\n"


def test_a_job_is_cancelled(there: tuple[Hub, User], type: Typed) -> None:
    hub, _ = there
    stand_in(hub, WAITING.replace("{go}", "/nowhere"))

    def cancel() -> None:
        until(lambda: hub.requests("logs$"))
        submit.cancel(submit.account(), next(iter(hub.running.jobs)))

    other = threading.Thread(target=cancel)
    other.start()
    status, said = type(*ONE, "--yes")
    other.join()
    (job,) = hub.running.jobs.values()
    assert status == 1
    assert f"job {job.id} was cancelled. What it had finished is kept" in said
    for words, refusal in (
        (("cancel", job.id), "has ended already"),
        (("logs", "none"), "has no job 'none'"),
    ):
        status, said = type("jobs", *words)
        assert status == 2
        assert refusal in said


@pytest.mark.parametrize(
    ("script", "speed", "said"),
    [
        ("sleep 60", 6000.0, "reached its timeout of 60 minutes"),
        (
            'echo \'@autoquant {"title": "x"}\'; exit 137',
            1.0,
            "was stopped (the Hub says: exit code 137)",
        ),
        (
            "echo ERROR: no torch; echo more; exit 1",
            1.0,
            "could not be prepared (the Hub says: exit code 1): ERROR: no torch",
        ),
        (
            'echo \'@autoquant {"ended": "failed", "line": "no room"}\'; exit 1',
            1.0,
            "failed  no room",
        ),
    ],
)
def test_how_a_job_ended_is_said(
    there: tuple[Hub, User], type: Typed, script: str, speed: float, said: str
) -> None:
    hub, _ = there
    stand_in(hub, script)
    hub.running.speed = speed
    status, out = type(*ONE, "--yes", "--timeout", "1h")
    assert status == 1
    assert said in out
    if "timeout" in said:
        assert "autoquant quantize w8a8 demo" in out
        assert "hf-jobs --timeout 120m" in out


@pytest.mark.parametrize(
    ("status", "said"),
    [(402, "no credit for Hugging Face Jobs"), (403, "start and manage jobs of tester")],
)
def test_an_account_that_may_not(
    there: tuple[Hub, User], type: Typed, status: int, said: str
) -> None:
    hub, _ = there
    hub.fail("^POST /api/jobs/", status, message="pay first", times=9)
    ended, err = type(*ONE, "--yes")
    assert ended == 2
    assert said in err
    assert "(the Hub says: pay first)" in err
    assert not hub.running.jobs


def test_one_job_that_is_refused_does_not_stop_those_before(
    there: tuple[Hub, User], type: Typed
) -> None:
    hub, user = there
    hub.seed("tester/tiny", checkpoint())
    (user.cwd / "two.toml").write_text(BATCH)
    stand_in(hub, 'echo \'@autoquant {"ended": "done", "line": "made"}\'')
    hub.fail("^POST /api/jobs/", 402, skip=1, times=9)
    status, said = type("batch", "two.toml", "--on", "hf-jobs", "--yes")
    assert status == 1
    assert "1 failed, 1 done" in said
    assert "no credit" in said


def test_what_cannot_be_done_elsewhere_is_refused(
    there: tuple[Hub, User], type: Typed, tmp_path: Path
) -> None:
    hub, user = there
    text = user.cwd / "own.txt"
    text.write_text("A text of one's own. " * 2000)
    shutil.copytree(MODEL, user.cwd / "mine")
    for words, said in (
        (("demo", "--on", "hf-jobs"), "so its files must be uploaded"),
        (("mine", *ONE[3:]), "is on this machine, and a Hugging Face Job cannot see it"),
        (("demo", *ONE[3:], "--eval-text", str(text)), "is a file or folder of this machine"),
    ):
        status, out = type("quantize", "w8a8", *words, "--yes")
        assert status == 1
        assert said in " ".join(out.split())
    for words, said in (
        (("--flavor", "tpu"), "there is no 'tpu'; there are: cpu-basic"),
        (("--timeout", "soon"), "write a time of at least a minute"),
        ((), "starts 1 jobs, $0.03 at most"),  # nobody can be asked
    ):
        status, out = type(*ONE, *words)
        assert status == 2
        assert said in out
    assert "only with --on hf-jobs" in type(*ONE[:5], "--flavor", "t4-small")[1]
    hub.users[TOKEN]["role"] = "read"
    assert "may only read" in type(*ONE)[1]
    assert not hub.running.jobs


def test_python_names_the_cost_and_asks_for_agreement(
    there: tuple[Hub, User], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, user = there
    online(monkeypatch, hub)
    jobs = [{"model": "demo", "method": "w8a8", "upload": "tester/demo-W8A8"}]
    out = user.cwd / "out"
    offers = autoquant.batch(jobs, out=out, on="hf-jobs", dry_run=True, flavor="t4-small")
    assert offers.most == pytest.approx(0.42 * 35 / 60, abs=0.05)
    assert "t4-small" in str(offers)
    with pytest.raises(autoquant.InputError, match=r"\$0.10 at most.*yes=True"):
        autoquant.batch(jobs, out=out, on="hf-jobs", timeout="2h")
    with pytest.raises(autoquant.InputError, match="flavor has an effect only with on='hf-jobs'"):
        autoquant.batch(jobs, out=out, flavor="t4-small")
    with pytest.raises(autoquant.InputError, match="'moon' is not allowed"):
        autoquant.batch(jobs, out=out, on="moon")  # type: ignore[call-overload]
    assert not hub.running.jobs
    assert not out.exists()


def test_somebody_at_a_terminal_is_asked(
    there: tuple[Hub, User], type: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, _ = there
    stand_in(hub, 'echo \'@autoquant {"ended": "done", "line": "made"}\'')
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    asked: list[str] = []
    for answer, status, started in (("n", 2, 0), ("y", 0, 1)):
        monkeypatch.setattr("builtins.input", lambda text, a=answer: asked.append(text) or a)
        assert type(*ONE)[0] == status
        assert len(hub.running.jobs) == started
    assert asked[0] == "Start 1 jobs, $0.03 at most? [y/N] "
