"""Uploads that are interrupted: by a kill, a cut, a server that is gone, somebody else's commit.
Nothing is lost, and nothing that has arrived is sent again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from autoquant.core.files import sha256_of
from tests.fakes.hub import TOKEN, Hub
from tests.hub.conftest import FILES, GGUF, MODEL, OTHER, User, size, whole


def test_connections_that_break(done: User, hub: Hub) -> None:
    hub.fail("POST .*batch", drop=True)
    hub.fail("PUT /_lfs/", drop=True)
    hub.fail("GET /api/whoami", drop=True)
    done.run("upload", "tiny-GGUF", "tester/t")
    whole(done, hub)


@pytest.mark.parametrize("moment", ["PUT /_lfs/\\w+$", "POST .*/commit/", "POST .*/paths-info/"])
def test_killed(moment: str, done: User, hub: Hub) -> None:
    """In the middle of the files, at the commit, and between the commit and the comparison with the
    server.
    """
    caught: list[subprocess.Popen[str]] = []
    ready = threading.Event()

    def kill() -> None:
        ready.wait(10)
        os.kill(caught[0].pid, signal.SIGKILL)
        caught[0].wait()

    first_file = moment.startswith("PUT")
    hub.on(moment, (lambda: hub.on(moment, kill)) if first_file else kill)
    caught.append(done.start("upload", "tiny-GGUF", "tester/t"))
    ready.set()
    caught[0].communicate()
    assert caught[0].returncode == -signal.SIGKILL
    time.sleep(0.3)  # the server finishes what it was at
    puts = [request.path for request in hub.requests("PUT /_lfs/")]
    done.run("upload", "tiny-GGUF", "tester/t")
    whole(done, hub)
    paths = [request.path for request in hub.requests("PUT /_lfs/")]
    again = paths[len(puts) :]
    assert not set(again) & set(puts[:-1] if first_file else puts), (
        "what had arrived is not sent again"
    )
    assert len(hub.titles("tester/t")) == 2


@pytest.mark.slow
def test_killed_in_a_run_that_uploads_as_it_goes(user: User, hub: Hub) -> None:
    caught: list[subprocess.Popen[str]] = []
    ready = threading.Event()

    def kill() -> None:
        ready.wait(10)
        os.kill(caught[0].pid, signal.SIGKILL)

    words = (
        "quantize",
        "gguf",
        MODEL,
        "--pre-tokenizer",
        "gpt-2",
        "--types",
        "Q8_0,Q6_K,Q4_K_M,Q2_K",
        "--threads",
        "1",
        "--evaluate",
        "off",
        "--upload",
        "tester/t",
    )
    hub.on("PUT /_lfs/", lambda: hub.on("PUT /_lfs/", kill))
    caught.append(user.start(*words))
    ready.set()
    caught[0].communicate()
    assert caught[0].returncode == -signal.SIGKILL
    time.sleep(0.3)
    puts = [request.path for request in hub.requests("PUT /_lfs/")]
    user.run(*words)
    assert hub.files("tester/t") == {
        "LICENSE",
        "README.md",
        *(f"tiny-{name}.gguf" for name in ("Q8_0", "Q6_K", "Q4_K_M", "Q2_K")),
    }
    assert puts[0] not in [request.path for request in hub.requests("PUT /_lfs/")[len(puts) :]]
    assert len(hub.titles("tester/t")) == 2


def test_the_server_restarts(done: User, hub: Hub) -> None:
    def restart() -> None:
        threading.Thread(
            target=lambda: (hub.stop(), time.sleep(2), hub.start()), daemon=True
        ).start()

    hub.fail("POST .*/commit/", drop=True)
    hub.on("POST .*/commit/", restart)
    done.run("upload", "tiny-GGUF", "tester/t")
    whole(done, hub)
    assert len(hub.titles("tester/t")) == 2


def test_the_server_is_gone(done: User, hub: Hub) -> None:
    """The waits are real ones, a minute in all, so the client is told to try only twice."""
    hub.fail("POST .*/commit/", 503)
    hub.on("POST .*/commit/", hub.stop)
    code = """
import sys
from autoquant import cli
from autoquant.hub import client
client.TRIES = 2
sys.exit(cli.main(["upload", "tiny-GGUF", "tester/t"]))"""
    failed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=done.cwd,
        env=done.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1, failed.stderr
    last = failed.stderr.strip().splitlines()[-1]
    assert re.search(
        r"autoquant: error: .*tester/t: .*(refused|reset|disconnected|closed)", last, re.I
    ), last
    assert last.endswith("Run the same again: it continues, and what has arrived is not sent again")
    hub.start()
    done.run("upload", "tiny-GGUF", "tester/t")
    whole(done, hub)
    assert hub.sent() == size(done, *GGUF)


def test_the_repository_is_deleted_in_mid_run(done: User, hub: Hub) -> None:
    hub.on("POST .*/commit/", lambda: hub.repos.pop("tester/t"))
    err = done.run("upload", "tiny-GGUF", "tester/t", status=2).stderr
    assert "committing to tester/t: there is no repository tester/t" in err
    done.run("upload", "tiny-GGUF", "tester/t")
    whole(done, hub)
    assert hub.sent() == size(done, *GGUF)


def test_the_token_is_revoked_in_mid_run(done: User, hub: Hub) -> None:
    hub.on("POST .*/commit/", lambda: hub.users.pop(TOKEN))
    err = done.run("upload", "tiny-GGUF", "tester/t", status=2).stderr
    assert (
        "committing to tester/t: the Hub does not accept the token from the environment variable"
        " HF_TOKEN (expired, revoked or mistyped)" in err
    )
    assert "what is finished is kept" in err
    hub.users[OTHER] = {"name": "tester", "role": "write"}
    done.run("upload", "tiny-GGUF", "tester/t", HF_TOKEN=OTHER)
    whole(done, hub)
    assert hub.sent() == size(done, *GGUF)


def test_the_token_is_revoked_while_quantizing(user: User, hub: Hub) -> None:
    """The files are finished all the same, and the message says so."""
    hub.on("POST .*batch", lambda: hub.users.pop(TOKEN))
    err = user.quantize("--upload", "tester/t", status=2).stderr
    assert "does not accept the token" in err
    assert {path.name for path in (user.cwd / "tiny-GGUF").glob("*.gguf")} == {
        "tiny-Q8_0.gguf",
        "tiny-Q4_K_M.gguf",
    }
    hub.users[TOKEN] = {"name": "tester", "role": "write"}
    before = {
        path.name: path.stat().st_mtime_ns for path in (user.cwd / "tiny-GGUF").glob("*.gguf")
    }
    user.quantize("--upload", "tester/t")
    assert before == {
        path.name: path.stat().st_mtime_ns for path in (user.cwd / "tiny-GGUF").glob("*.gguf")
    }
    assert hub.files("tester/t") == FILES - {"imatrix.gguf"}


def test_somebody_commits_at_the_same_time(done: User, hub: Hub) -> None:
    done.run("upload", "tiny-GGUF", "tester/t")
    (done.cwd / "tiny-GGUF" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Mine")
    hub.on("POST .*/commit/", lambda: hub.seed("tester/t", {"theirs.txt": b"theirs"}))
    err = done.run("upload", "tiny-GGUF", "tester/t", status=1).stderr
    assert "somebody else has changed it meanwhile" in err
    done.run("upload", "tiny-GGUF", "tester/t")
    assert hub.files("tester/t") == FILES | {"theirs.txt"}


def test_the_server_holds_something_else_than_what_was_sent(done: User, hub: Hub) -> None:
    def spoil() -> None:
        hub.seed("tester/t", {"tiny-Q8_0.gguf": b"something else"})
        repo = hub.repos["tester/t"]
        newest, before = (
            repo.commits[repo.branches["main"]],
            repo.commits[repo.commits[repo.branches["main"]].parent],
        )
        repo.commits[before.sha] = type(before)(
            before.sha, newest.files, before.title, before.parent, before.date
        )
        repo.branches["main"] = before.sha

    hub.on("POST .*/paths-info/", spoil)
    err = done.run("upload", "tiny-GGUF", "tester/t", status=1).stderr
    assert re.search(
        r"tester/t at commit \w+ does not hold what was sent: tiny-Q8_0.gguf: other contents or"
        r" missing",
        err,
    )
    assert "receipt" not in done.journal()["upload tester/t@main"]["facts"]


def test_a_run_that_fails_keeps_the_files_and_says_how_to_go_on(user: User, hub: Hub) -> None:
    hub.fail("POST .*/commit/", 418, times=9)
    err = user.quantize("--upload", "tester/t", status=1).stderr
    assert (
        f"(the files in {user.cwd / 'tiny-GGUF'} are finished: `autoquant upload"
        f" {user.cwd / 'tiny-GGUF'} tester/t` also resumes)" in err
    )
    assert (user.cwd / "tiny-GGUF" / "README.md").is_file()
    hub._faults.clear()
    user.run("upload", "tiny-GGUF", "tester/t")
    assert hub.files("tester/t") == FILES - {"imatrix.gguf"}
    assert hub.sent() == sum(
        path.stat().st_size for path in (user.cwd / "tiny-GGUF").glob("tiny-*.gguf")
    )
    assert json.loads((user.cwd / "tiny-GGUF" / ".autoquant" / "journal.json").read_text())[
        "steps"
    ]["upload tester/t@main"]["facts"]["files"]["README.md"]
    assert sha256_of(user.cwd / "tiny-GGUF" / "LICENSE")
