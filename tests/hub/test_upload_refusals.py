"""What is not uploaded: nothing unchecked, nothing over somebody else's work, nothing unasked."""

from __future__ import annotations

import hashlib
import re

import pytest

from autoquant.publish.card import at
from tests.fakes.hub import TOKEN, Hub
from tests.hub.conftest import FILES, MODEL, OTHER, User, changing, checkpoint


def test_a_dry_run_says_exactly_what_would_be_sent_and_sends_nothing(done: User, hub: Hub) -> None:
    before = (done.cwd / "tiny-GGUF" / ".autoquant" / "journal.json").read_bytes()
    out = done.run("upload", "tiny-GGUF", "tester/x", "--dry-run").stdout
    assert "tester/x (would be created, public)" in out
    content = {name: (done.cwd / "tiny-GGUF" / name).read_bytes() for name in FILES}
    content["README.md"] = at(content["README.md"].decode(), "tester/x").encode()
    assert f"to send: 5 files, {sum(map(len, content.values())) / 1e6:.2f} MB" in out
    for name, data in content.items():
        assert re.search(
            rf"{re.escape(name)} +added .* {hashlib.sha256(data).hexdigest()[:12]}", out
        )
    assert changing(hub) == []
    assert (done.cwd / "tiny-GGUF" / ".autoquant" / "journal.json").read_bytes() == before


def test_a_repository_of_somebody_elses_work_is_not_touched_unasked(done: User, hub: Hub) -> None:
    hub.seed("tester/old", {"README.md": b"my own words", "other.gguf": b"x" * 100})
    for words in (
        ("upload", "tiny-GGUF", "tester/old"),
        ("upload", "tiny-GGUF", "tester/old", "--dry-run"),
        ("quantize", "gguf", MODEL, "--upload", "tester/old", "--out", "new"),
    ):
        err = done.run(*words, status=2).stderr
        assert (
            "tester/old already exists and holds files (README.md, other.gguf) that were not"
            " uploaded from this folder" in err
        )
        assert "--overwrite" in err
    assert changing(hub) == []
    assert (
        "replaced"
        in done.run("upload", "tiny-GGUF", "tester/old", "--overwrite", "--dry-run").stdout
    )
    done.run("upload", "tiny-GGUF", "tester/old", "--overwrite")
    assert hub.files("tester/old") == FILES | {"other.gguf"}, "a file of another name stays"
    assert hub.content("tester/old", "README.md") != b"my own words"


def test_every_repository_and_branch_is_looked_at_before_the_run(done: User, hub: Hub) -> None:
    hub.seed("tester/t-Q4_K_M", {"theirs.gguf": b"x"})
    for words in (
        ("upload", "tiny-GGUF", "tester/t"),
        (
            "quantize",
            "gguf",
            MODEL,
            "--types",
            "Q8_0,Q4_K_M",
            "--out",
            "new",
            "--upload",
            "tester/t",
        ),
    ):
        err = done.run(*words, "--layout", "repo-per-type", status=2).stderr
        assert "tester/t-Q4_K_M already exists and holds files (theirs.gguf)" in err
    hub.seed("tester/b", {}, branch="Q8_0")
    hub.seed("tester/b", {"theirs.gguf": b"x"}, branch="Q8_0")
    assert (
        "branch Q8_0 of tester/b already exists"
        in done.run(
            "upload", "tiny-GGUF", "tester/b", "--layout", "branch-per-type", status=2
        ).stderr
    )
    assert changing(hub) == []
    fine = {
        "scoped": [
            {"entity": {"name": f"tester/u-{name}"}, "permissions": ["repo.write"]}
            for name in ("Q8_0", "Q4_K_M")
        ]
    }
    hub.users[OTHER] = {"name": "tester", "role": "fineGrained", "fineGrained": fine}
    done.run("upload", "tiny-GGUF", "tester/u", "--layout", "repo-per-type", HF_TOKEN=OTHER)
    assert "tester/u-Q8_0" in hub.repos


def test_what_would_be_private_is_not_put_into_a_public_repository(
    user: User, done: User, hub: Hub
) -> None:
    hub.seed("tester/open", {".gitattributes": b"*.gguf filter=lfs"})
    assert (
        "tester/open already exists and is public, but you ask for a private one"
        in done.run("upload", "tiny-GGUF", "tester/open", "--private", "yes", status=2).stderr
    )
    hub.seed("maker/gated", checkpoint(), gated=True)
    hub.repos["maker/gated"].allowed.add("tester")
    err = user.run("quantize", "gguf", "maker/gated", "--upload", "tester/open", status=2).stderr
    assert "public, but the source is gated" in err
    assert changing(hub) == []
    user.quantize("--upload", "tester/g", model="maker/gated")
    (snapshot,) = (user.home / "hf" / "hub" / "models--maker--gated" / "snapshots").iterdir()
    user.quantize("--upload", "tester/h", "--out", "from-cache", model=str(snapshot))
    assert hub.repos["tester/h"].private, "the cache's folder is known to be of a gated model"


def test_what_somebody_changed_since_is_not_replaced_unasked(done: User, hub: Hub) -> None:
    done.run("upload", "tiny-GGUF", "tester/t")
    hub.seed("tester/t", {"README.md": b"improved by hand"})
    err = done.run("upload", "tiny-GGUF", "tester/t", status=2).stderr
    assert (
        "1 file on the Hub would be replaced that were not uploaded from this folder: README.md in"
        " tester/t" in err
    )
    assert hub.content("tester/t", "README.md") == b"improved by hand"
    done.run("upload", "tiny-GGUF", "tester/t", "--overwrite")


@pytest.mark.parametrize(
    ("repo", "user_of_token", "said"),
    [
        ("tester/x", None, "upload: no token. Make one with write access at"),
        (
            "tester/x",
            {},
            (
                "the Hub does not accept the token from the environment variable HF_TOKEN (expired,"
                " revoked or mistyped)"
            ),
        ),
        ("tester/x", {"name": "tester", "role": "read"}, "may only read"),
        (
            "tester/x",
            {
                "name": "tester",
                "role": "fineGrained",
                "fineGrained": {
                    "scoped": [{"entity": {"name": "tester"}, "permissions": ["repo.content.read"]}]
                },
            },
            "is fine-grained and has no write access to tester",
        ),
        (
            "google/x",
            {"name": "tester", "role": "write", "orgs": ["acme"]},
            "cannot write to 'google'; allowed: tester, acme",
        ),
        (
            "just-a-name",
            {"name": "tester", "role": "write"},
            "upload: 'just-a-name' is not a repository name; write owner/name",
        ),
        ("tester/hidden", {"name": "tester", "role": "read"}, "may only read"),
    ],
)
def test_access_is_tested_before_anything_is_downloaded(
    repo: str, user_of_token: dict[str, object] | None, said: str, user: User, hub: Hub
) -> None:
    hub.users.clear()
    if user_of_token:
        hub.users[OTHER] = user_of_token
    err = user.quantize(
        "--upload", repo, status=2, HF_TOKEN="" if user_of_token is None else OTHER
    ).stderr
    assert said in err
    assert OTHER not in err
    assert changing(hub) == []
    assert not list(user.cwd.iterdir())
    assert not [
        r
        for r in hub.requests("GET /_cdn/")
        if not r.range and hub.repos[MODEL].at("main").files["model.safetensors"].sha256 in r.path
    ]


def test_a_fine_grained_token_with_write_access_is_enough(done: User, hub: Hub) -> None:
    hub.users[OTHER] = {
        "name": "tester",
        "role": "fineGrained",
        "fineGrained": {"scoped": [{"entity": {"name": "tester"}, "permissions": ["repo.write"]}]},
    }
    done.run("upload", "tiny-GGUF", "tester/t", HF_TOKEN=OTHER)
    assert hub.files("tester/t") == FILES


def test_a_file_changed_after_its_checks_is_not_committed(done: User, hub: Hub) -> None:
    path = done.cwd / "tiny-GGUF" / "tiny-Q8_0.gguf"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert (
        "tiny-Q8_0.gguf has changed since it was checked"
        in done.run("upload", "tiny-GGUF", "tester/t", status=1).stderr
    )
    path.write_bytes(whole[:-1])
    assert (
        "is gone or has another size than when it was checked"
        in done.run("upload", "tiny-GGUF", "tester/t", status=1).stderr
    )
    assert hub.requests("POST .*/commit/") == []
    path.write_bytes(whole)
    done.run("upload", "tiny-GGUF", "tester/t")


@pytest.mark.parametrize(
    "words",
    [
        ("nowhere", "tester/x"),
        (".", "tester/x"),
        ("tiny-GGUF", "tester/x", "--layout", "pile"),
        ("tiny-GGUF", "no repo"),
    ],
)
def test_bad_input(words: tuple[str, ...], done: User, hub: Hub) -> None:
    done.run("upload", *words, status=2)
    assert changing(hub) == []


def test_the_token_of_the_fixture_is_redacted() -> None:
    from autoquant.core.redact import redact

    assert redact(f"x {TOKEN} y") == "x <token> y"
