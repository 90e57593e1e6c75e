"""Faults while uploading, as answers of the Hub: nothing is lost, nothing that has arrived is sent
again, and no token is told.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from autoquant.core.errors import InputError
from tests.fakes.hub import TOKEN, Hub
from tests.hub.conftest import FILES, GGUF, MODEL, User, size, whole


@pytest.mark.parametrize(
    ("where", "status", "headers", "least"),
    [
        ("POST .*/commit/", 429, {"Retry-After": "2"}, 2),
        ("POST .*/commit/", 429, {"ratelimit": '"api";r=0;t=2'}, 2),
        ("POST .*/commit/", 503, {}, 1),
        ("POST .*/preupload/", 429, {"Retry-After": "1"}, 1),
        ("PUT /_lfs/", 500, {}, 0),
        ("POST .*/paths-info/", 502, {}, 0),
        ("POST /api/repos/create", 503, {}, 1),
    ],
)
def test_what_may_pass_is_waited_out(
    where: str, status: int, headers: dict[str, str], least: float, done: User, hub: Hub
) -> None:
    hub.fail(where, status, headers=headers)
    start = time.monotonic()
    done.run("upload", "tiny-GGUF", "tester/t")
    assert time.monotonic() - start > least
    whole(done, hub)
    assert len(hub.titles("tester/t")) == 2


def test_a_storm_of_rate_limits(done: User, hub: Hub) -> None:
    for where in ("GET /api/", "POST /api/", "POST .*/commit/", "POST .*batch"):
        hub.fail(where, 429, times=2, headers={"Retry-After": "0", "ratelimit": '"api";r=0;t=0'})
    done.run("upload", "tiny-GGUF", "tester/t")
    whole(done, hub)
    assert hub.sent() == size(done, *GGUF)


def test_an_endless_storm_ends_with_one_line_and_continues_later(done: User, hub: Hub) -> None:
    hub.fail("POST .*/commit/", 429, times=99, headers={"Retry-After": "0"})
    err = done.run("upload", "tiny-GGUF", "tester/t", status=1).stderr
    assert (
        err.strip().splitlines()[-1]
        == "autoquant: error: committing to tester/t: the Hub still limits the rate of requests."
        " Run the same again later; what has arrived is not sent again"
    )
    hub._faults.clear()
    done.run("upload", "tiny-GGUF", "tester/t")
    whole(done, hub)
    assert hub.sent() == size(done, *GGUF)


def test_the_answer_to_the_commit_is_lost(done: User, hub: Hub) -> None:
    """The connection breaks after the server has committed: no second commit."""
    hub.fail("POST .*/commit/", drop=True)
    done.run("upload", "tiny-GGUF", "tester/t")
    whole(done, hub)
    assert len(hub.titles("tester/t")) == 2
    assert len(hub.requests("POST .*/commit/")) == 1


def test_the_server_commits_only_after_a_time_out(done: User, hub: Hub) -> None:
    """504, then the commit appears, then the repeated commit gets 412 for a parent that is no
    longer the newest: it is ours all the same.
    """
    import shutil

    done.run("upload", "tiny-GGUF", "tester/t")
    shutil.copytree(done.cwd / "tiny-GGUF", done.cwd / "copy")
    (done.cwd / "tiny-GGUF" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Mine")
    content = (done.cwd / "tiny-GGUF" / "README.md").read_bytes()
    hub.fail("POST .*/commit/", 504)
    hub.on(
        "POST .*/commit/",
        lambda: hub.on("POST .*/commit/", lambda: hub.seed("tester/t", {"README.md": content})),
    )
    done.run("upload", "tiny-GGUF", "tester/t")
    assert hub.content("tester/t", "README.md") == content
    assert hub.titles("tester/t")[0] == "seed"


def test_the_hub_refuses_the_card_or_answers_nonsense(done: User, hub: Hub) -> None:
    hub.fail("POST /api/validate-yaml", 400, message="nonsense")
    err = done.run("upload", "tiny-GGUF", "tester/t", status=2).stderr
    assert "committing to tester/t: " in err
    hub.garble("POST /api/validate-yaml")
    done.run("upload", "tiny-GGUF", "tester/t")
    whole(done, hub)


def test_a_bad_hour_in_the_background_is_made_good_at_the_end(user: User, hub: Hub) -> None:
    """Uploading gives up while the types are being made, and everything is sent at the end."""
    hub.fail("POST /api/repos/create", 503, times=2)
    code = f"""
import sys
from autoquant import cli
from autoquant.hub import client
client.TRIES = 2
words = "--pre-tokenizer gpt-2 --types Q8_0 --evaluate off --upload tester/t"
sys.exit(cli.main(["quantize", "gguf", "{MODEL}", *words.split()]))"""
    process = user.start_python(code)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert hub.files("tester/t") == FILES - {"imatrix.gguf", "tiny-Q4_K_M.gguf"}


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (
            401,
            {"X-Error-Message": 'User Access Token "x" is expired'},
            "the Hub does not accept the token from a test (expired, revoked or mistyped)",
        ),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            "the Hub does not accept the token from a test",
        ),
        (
            403,
            {
                "X-Error-Code": "GatedRepo",
                "X-Error-Message": (
                    "Please enable access to public gated repositories in your fine-grained token"
                    " settings"
                ),
            },
            (
                "me/x is gated, and the token from a test has no access to it (the Hub says: Please"
                " enable access to public gated repositories"
            ),
        ),
        (403, {"X-Error-Message": "no"}, "Make a token with read access to me"),
        (
            404,
            {"X-Error-Code": "RepoNotFound"},
            "there is no repository me/x at https://huggingface.co",
        ),
    ],
)
def test_what_is_said_of_huggingface_cos_own_answers(
    status: int, headers: dict[str, str], said: str
) -> None:
    """huggingface_hub makes other errors of https addresses than of the loopback Hub's: here with
    answers made by hand.
    """
    import importlib

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import hf_raise_for_status

    from autoquant.hub import client

    http = importlib.import_module(client.transport_error().__module__.split(".")[0])
    response = http.Response(
        status,
        headers=headers,
        request=http.Request("GET", "https://huggingface.co/api/models/me/x"),
    )
    with pytest.raises(HfHubHTTPError) as raised:
        hf_raise_for_status(response)
    somebody = client.Client(
        HfApi(token=False), client.Token("secret-secret", "a test"), "https://huggingface.co"
    )
    assert said in str(client.explain(raised.value, "looking at me/x", somebody, "me/x"))


def test_an_authentication_error_of_xet_is_told_as_what_it_is() -> None:
    import hf_xet
    from huggingface_hub import HfApi

    from autoquant.hub import client

    def fail() -> None:
        raise RuntimeError("Error while uploading") from hf_xet.XetAuthenticationError(
            "Unauthorized"
        )

    somebody = client.Client(
        HfApi(token=False), client.Token("secret-secret", "a test"), "https://huggingface.co"
    )
    with pytest.raises(InputError, match="the Hub does not accept the token from a test"):
        client.with_retries(fail, "sending x to me/x", somebody, "me/x")


@pytest.mark.parametrize("origin", ["environment", "login"])
def test_a_token_appears_nowhere(origin: str, user: User, hub: Hub) -> None:
    """Everything a failing and a verbose run print and leave is searched: output, log, journal,
    card, cache. Only the login's own file has it.
    """
    more = {"HF_TOKEN": TOKEN if origin == "environment" else ""}
    if origin == "login":
        (user.home / "hf").mkdir(parents=True)
        (user.home / "hf" / "token").write_text(TOKEN)
    said = ""
    hub.fail("POST .*/commit/", 400, message=f"bad request from {TOKEN}", times=1)
    for status, words in ((1, ()), (0, ("--upload", "tester/t"))):
        ran = user.run(
            "quantize",
            "gguf",
            MODEL,
            "-v",
            "--pre-tokenizer",
            "gpt-2",
            "--types",
            "Q2_K",
            "--evaluate",
            "off",
            "--upload",
            "tester/t",
            *words,
            status=status,
            HF_DEBUG="1",
            HF_HUB_VERBOSITY="debug",
            **more,
        )
        said += ran.stdout + ran.stderr
    assert "committing to tester/t" in said
    assert "(it says: bad request from <token>)" in said
    assert TOKEN not in said
    for path in user.home.rglob("*"):
        if path.is_file() and path != user.home / "hf" / "token":
            assert TOKEN.encode() not in path.read_bytes(), path


def test_workers_get_no_token(user: User) -> None:
    code = """
import json, os, tempfile
from pathlib import Path
from autoquant.runtime import process
os.environ["HUGGING_FACE_HUB_TOKEN"] = "x" * 20
log = Path(tempfile.mkdtemp()) / "log"
print(json.dumps(process.call("tests.helpers.processes:environment", log=log)))"""
    names = user.python(code, PYTHONPATH=str(Path(__file__).parents[2]))
    assert "HF_TOKEN" not in names
    assert "HUGGING_FACE_HUB_TOKEN" not in names
    assert "PATH" in names
