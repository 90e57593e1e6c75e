"""From a finished run to a repository that was compared with it: nothing unchecked, nothing twice,
nothing overwritten unasked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import threading

import pytest

from autoquant.core import licenses
from autoquant.publish.card import at, metadata
from tests.fakes.hub import TOKEN, Hub
from tests.hub.conftest import MODEL, User, checkpoint

FILES = {"tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf", "imatrix.gguf", "LICENSE", "README.md"}
WRITES = r"^(POST|PUT|DELETE) "
OTHER = "hf_" + "OtherOtherOtherOtherOtherOtherOthe"


def changing(hub: Hub) -> list[str]:
    """The requests that change something on the Hub."""
    return [
        f"{r.method} {r.path}"
        for r in hub.requests(WRITES)
        if not re.search(r"validate-yaml|paths-info|preupload|objects/batch|agent", r.path)
    ]


def test_one_command_from_a_model_to_a_verified_repository(user: User, hub: Hub) -> None:
    """And repeated it sends and commits nothing."""
    words = ("--imatrix", "builtin", "--imatrix-chunks", "4", "--upload", "tester/tiny-GGUF")
    out = user.quantize(*words).stdout
    commit = hub.repos["tester/tiny-GGUF"].branches["main"]
    assert (
        re.sub(r"\s+", " ", out)
        .strip()
        .endswith(
            f"uploaded and compared with the server: {hub.url}/tester/tiny-GGUF (commit"
            f" {commit[:10]}, 5 files)"
        )
    )
    assert hub.files("tester/tiny-GGUF") == FILES
    for name in FILES - {"README.md"}:
        assert hub.content("tester/tiny-GGUF", name) == (user.cwd / "tiny-GGUF" / name).read_bytes()
    here, there = (
        (user.cwd / "tiny-GGUF" / "README.md").read_text(),
        hub.content("tester/tiny-GGUF", "README.md").decode(),
    )
    assert "for `MODEL`" in here
    assert "llama-cli -hf MODEL:Q4_K_M" in here
    assert "llama-cli -hf tester/tiny-GGUF:Q4_K_M" in there, "to be copied as it stands"
    assert "MODEL" not in there.partition("## How to run")[2]
    assert set(there.splitlines()) - set(here.splitlines()) == {
        line for line in there.splitlines() if "tester/tiny-GGUF:Q4_K_M" in line
    }, "nothing else is changed"
    assert not hub.repos["tester/tiny-GGUF"].private
    card = metadata(hub.content("tester/tiny-GGUF", "README.md").decode())
    assert card | {"tags": 0} == {
        "base_model": MODEL,
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "language": ["en"],
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "quantized_by": "AutoQuant",
        "tags": 0,
    }
    receipt = user.journal()["upload tester/tiny-GGUF@main"]["facts"]["receipt"]
    assert receipt["commit"] == hub.repos["tester/tiny-GGUF"].branches["main"]
    assert {f["name"]: f["sha256"] for f in receipt["files"]} == {
        name: hashlib.sha256(hub.content("tester/tiny-GGUF", name)).hexdigest() for name in FILES
    }
    sent, commits = hub.sent(), len(hub.requests("POST .*/commit/"))
    assert sent == sum(
        (user.cwd / "tiny-GGUF" / name).stat().st_size for name in FILES if name.endswith(".gguf")
    )
    user.quantize(*words)
    user.run("upload", "tiny-GGUF", "tester/tiny-GGUF")
    assert (hub.sent(), len(hub.requests("POST .*/commit/"))) == (sent, commits)


@pytest.mark.slow
def test_a_folder_is_uploaded_as_the_model_it_is(user: User, hub: Hub) -> None:
    """And transformers loads it from there."""
    user.run(
        "quantize",
        "gptq",
        MODEL,
        "--calibration-samples",
        "8",
        "--calibration-length",
        "128",
        "--evaluate",
        "off",
        "--upload",
        "tester/tiny-GPTQ",
    )
    assert hub.files("tester/tiny-GPTQ") == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "quantize_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "LICENSE",
    }
    assert "vllm serve tester/tiny-GPTQ " in hub.content("tester/tiny-GPTQ", "README.md").decode()
    card = metadata(hub.content("tester/tiny-GPTQ", "README.md").decode())
    assert (card["base_model"], card["library_name"]) == (MODEL, "transformers")
    loaded = user.python(
        """
import contextlib, io, json
with contextlib.redirect_stdout(io.StringIO()):
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("tester/tiny-GPTQ", device_map="cpu")
print(json.dumps(type(model.model.layers[0].mlp.up_proj).__name__))""",
        GPTQMODEL_CPU_WORKERS="2",
    )
    assert loaded != "Linear"


def test_files_go_up_while_others_are_being_made(user: User, hub: Hub) -> None:
    """The first file arrives before the last one exists."""
    seen: list[set[str]] = []
    hub.on(
        "PUT /_lfs/",
        lambda: seen.append({path.name for path in (user.cwd / "tiny-GGUF").glob("tiny-*.gguf")}),
    )
    user.run(
        "quantize",
        "gguf",
        MODEL,
        "--pre-tokenizer",
        "gpt-2",
        "--types",
        "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M,Q2_K",
        "--threads",
        "1",
        "--evaluate",
        "off",
        "--upload",
        "tester/six",
    )
    assert len(hub.files("tester/six")) == 8
    assert len(seen[0]) < 6


@pytest.mark.parametrize("layout", ["one-repo", "repo-per-type", "branch-per-type"])
def test_layouts(layout: str, done: User, hub: Hub) -> None:
    out = done.run("upload", "tiny-GGUF", "acme/t", "--layout", layout, "--private", "yes").stdout
    each = {
        "one-repo": {("acme/t", "main"): FILES},
        "repo-per-type": {
            (f"acme/t-{name}", "main"): FILES - {f"tiny-{other}.gguf"}
            for name, other in (("Q8_0", "Q4_K_M"), ("Q4_K_M", "Q8_0"))
        },
        "branch-per-type": {
            ("acme/t", "Q8_0"): FILES - {"tiny-Q4_K_M.gguf"},
            ("acme/t", "Q4_K_M"): FILES - {"tiny-Q8_0.gguf"},
            ("acme/t", "main"): FILES - {"tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf"},
        },
    }[layout]
    assert {
        (repo.id, branch): hub.files(repo.id, branch)
        for repo in hub.repos.values()
        if repo.id != MODEL
        for branch in repo.branches
    } == each
    assert all(repo.private for repo in hub.repos.values() if repo.id != MODEL)
    assert out.count("sizes and hashes compared with the server's") == len(each)
    for repo, branch in each:
        card = hub.content(repo, "README.md", branch).decode()
        assert licenses.card_problems(metadata(card)) == []
        assert ("-hf MODEL:" if layout == "branch-per-type" else f"-hf {repo}:") in card, (
            "a branch is not what a repository's name leads to"
        )
        shown = {name for name in ("tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf") if f"[{name}](" in card}
        assert shown == (
            {name for name in each[repo, branch] if name.startswith("tiny-")}
            or {"tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf"}
        )
    if layout == "branch-per-type":
        assert (
            f"({hub.url}/acme/t/blob/Q8_0/tiny-Q8_0.gguf)"
            in hub.content("acme/t", "README.md").decode()
        )
    sent = hub.sent()
    assert (
        done.run("upload", "tiny-GGUF", "acme/t", "--layout", layout, "--dry-run").stdout.count(
            "to send: 0 files"
        )
        == 1
    )
    done.run("upload", "tiny-GGUF", "acme/t", "--layout", layout)
    assert hub.sent() == sent


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
        "tester/open is there already and public, but you ask for a private one"
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


def test_a_type_added_later_goes_to_the_same_repository(user: User, hub: Hub) -> None:
    user.quantize("--upload", "tester/t")
    sent = hub.sent()
    user.run(
        "quantize",
        "gguf",
        MODEL,
        "--pre-tokenizer",
        "gpt-2",
        "--types",
        "Q8_0,Q4_K_M,Q2_K",
        "--evaluate",
        "off",
        "--upload",
        "tester/t",
    )
    assert hub.files("tester/t") == {
        "tiny-Q8_0.gguf",
        "tiny-Q4_K_M.gguf",
        "tiny-Q2_K.gguf",
        "LICENSE",
        "README.md",
    }
    assert hub.sent() - sent == (user.cwd / "tiny-GGUF" / "tiny-Q2_K.gguf").stat().st_size
    assert "tiny-Q2_K.gguf" in hub.content("tester/t", "README.md").decode()
    err = user.run(
        "quantize",
        "gguf",
        MODEL,
        "--pre-tokenizer",
        "gpt-2",
        "--types",
        "Q2_K",
        "--evaluate",
        "off",
        "--upload",
        "tester/t",
    ).stderr
    assert (
        "from earlier runs there are also tiny-Q4_K_M.gguf, tiny-Q8_0.gguf, which stay, but this"
        " run's card does not list them" in err
    )
    assert hub.titles("tester/t")[1:] == [
        "Q2_K: maker/tiny quantized by AutoQuant",
        "Q8_0, Q4_K_M: maker/tiny quantized by AutoQuant",
        "initial commit",
    ]


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


def test_a_card_the_hub_would_refuse_is_refused_before(done: User, hub: Hub) -> None:
    card = done.cwd / "tiny-GGUF" / "README.md"
    card.write_text(
        card.read_text()
        .replace("license: apache-2.0", "license: my-own")
        .replace("base_model: maker/tiny", "base_model: tiny")
    )
    err = done.run("upload", "tiny-GGUF", "tester/t", status=2).stderr
    assert "license: 'my-own' is none of the Hub's identifiers" in err
    assert "base_model: 'tiny' is no Hub repository" in err
    assert changing(hub) == []
    card.write_text("---\nlicense: foo: bar\n---\n# My words")
    assert "cannot be read as YAML" in done.run("upload", "tiny-GGUF", "tester/t", status=2).stderr
    card.write_text("---\nlicense: apache-2.0\n---\n# My words")
    done.run("upload", "tiny-GGUF", "tester/t")
    assert hub.content("tester/t", "README.md") == card.read_bytes(), (
        "a card edited by hand is taken as it is"
    )


def test_a_gated_source_makes_a_private_repository_and_its_terms_are_pointed_out(
    user: User, hub: Hub
) -> None:
    readme = (
        b"---\nlicense: other\nlicense_name: my-terms\nlicense_link:"
        b" https://example.org/terms\nlanguage: tr\n---\n"
    )
    hub.seed(
        "maker/gated",
        {
            **checkpoint(),
            "README.md": readme,
            "USE_POLICY.md": b"be kind",
            "NOTICE": b"Built with tiny",
        },
        gated=True,
    )
    hub.repos["maker/gated"].allowed.add("tester")
    err = user.quantize("--upload", "tester/g", model="maker/gated").stderr
    assert "the source is gated" in err
    assert "licence my-terms (other): has conditions" in err
    assert "a new repository will be private, because the source is gated" in err
    assert hub.repos["tester/g"].private
    assert {"LICENSE", "USE_POLICY.md", "NOTICE"} < hub.files("tester/g")
    card = metadata(hub.content("tester/g", "README.md").decode())
    assert (card["license"], card["license_name"], card["license_link"], card["language"]) == (
        "other",
        "my-terms",
        "https://example.org/terms",
        ["tr"],
    )
    user.run("upload", "gated-GGUF", "tester/open", "--private", "no")
    assert not hub.repos["tester/open"].private


def test_a_folder_says_what_it_is_quantized_from(user: User, hub: Hub) -> None:
    err = user.quantize("--upload", "tester/d", model="demo").stderr
    assert "the card will name no base model" in err
    assert "base_model" not in metadata(hub.content("tester/d", "README.md").decode())
    err = user.run("upload", "tiny-austen-4m-GGUF", "tester/d", "--base-model", "maker/tiny").stderr
    assert "no base model" not in err
    card = metadata(hub.content("tester/d", "README.md").decode())
    assert (card["base_model"], card["base_model_relation"]) == ("maker/tiny", "quantized")
    readme = user.cwd / "tiny-austen-4m-GGUF" / "README.md"
    readme.write_text(readme.read_text() + "\nMy own words.\n")
    user.run("upload", "tiny-austen-4m-GGUF", "tester/d", "--base-model", "maker/other")
    text = hub.content("tester/d", "README.md").decode()
    assert "base_model: maker/other" in text
    assert "My own words." in text


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


def test_an_edited_card_survives_the_same_run(done: User, hub: Hub) -> None:
    words = (
        "quantize",
        "gguf",
        MODEL,
        "--pre-tokenizer",
        "gpt-2",
        "--types",
        "Q8_0,Q4_K_M",
        "--evaluate",
        "off",
        "--imatrix",
        "builtin",
        "--imatrix-chunks",
        "4",
    )
    readme = done.cwd / "tiny-GGUF" / "README.md"
    readme.write_text(readme.read_text() + "\nMy own introduction.\n")
    done.run(*words, "--upload", "tester/t")
    assert "My own introduction." in readme.read_text()
    assert "My own introduction." in hub.content("tester/t", "README.md").decode()
    done.run(*("Q8_0" if word == "Q8_0,Q4_K_M" else word for word in words))
    assert "My own introduction." not in readme.read_text()
    assert "My own introduction." in (done.cwd / "tiny-GGUF" / "README.edited.md").read_text()
    readme.write_text(readme.read_text() + "\nMy second introduction.\n")
    done.run(*words)
    assert "My own introduction." in (done.cwd / "tiny-GGUF" / "README.edited.md").read_text(), (
        "the first one is not overwritten"
    )
    assert "My second introduction." in (done.cwd / "tiny-GGUF" / "README.edited-2.md").read_text()


def test_a_dry_run_with_a_base_model_shows_the_card_that_is_sent(user: User, hub: Hub) -> None:
    user.quantize(model="demo")
    shown = user.run(
        "upload", "tiny-austen-4m-GGUF", "tester/b", "--base-model", "maker/tiny", "--dry-run"
    ).stdout
    user.run("upload", "tiny-austen-4m-GGUF", "tester/b", "--base-model", "maker/tiny")
    assert hashlib.sha256(hub.content("tester/b", "README.md")).hexdigest()[:12] in shown
    (user.cwd / "tiny-austen-4m-GGUF" / "README.md").unlink()
    assert (
        "has no README.md any more"
        in user.run("upload", "tiny-austen-4m-GGUF", "tester/b", status=2).stderr
    )


def test_from_python(done: User, hub: Hub) -> None:
    shown = done.python("""
import json, autoquant
result = autoquant.load("tiny-GGUF")
plan = str(result.upload("tester/p", dry_run=True))
receipts = result.upload("tester/p", private=True)
again = autoquant.load("tiny-GGUF")
types = [a.type for a in result.artifacts]
print(json.dumps([types, "would be created, public" in plan, receipts[0].commit,
                  [r.commit for r in again.receipts], "compared with the server" in str(again)]))
""")
    commit = hub.repos["tester/p"].branches["main"]
    assert shown == [["Q8_0", "Q4_K_M"], True, commit, [commit], True]
    assert hub.repos["tester/p"].private


def test_a_loaded_result_is_measured_again_after_the_cache_was_emptied(
    done: User, hub: Hub
) -> None:
    """The model is fetched anew, at the commit the files were made from, though the repository has
    moved on.
    """
    commit = done.journal()["result"]["facts"]["source"]["revision"]
    hub.repos[MODEL].commits[commit] = dataclasses.replace(hub.repos[MODEL].at("main"), sha=commit)
    hub.seed(MODEL, {"config.json": b"{}"})
    shutil.rmtree(done.home / "hf")
    seen = done.python("""
import json, autoquant
again = autoquant.load("tiny-GGUF").evaluate(chunks=2)
small = [a.evaluation.kl_mean < 0.02 for a in again.artifacts]
loaded = autoquant.load("tiny-GGUF")
print(json.dumps([again.reference.tokens, small, loaded.reference.tokens]))""")
    assert seen == [254, [True, True], 254]


def test_two_runs_into_one_folder(user: User, hub: Hub) -> None:
    """The second is refused with who holds it, and changes nothing on the Hub."""
    reached = threading.Event()

    def begun() -> None:
        hub.bandwidth = 2e5  # from here on it takes longer than the others take to start
        reached.set()

    hub.on("PUT /_lfs/", begun)
    first = user.start(
        "quantize",
        "gguf",
        MODEL,
        "--pre-tokenizer",
        "gpt-2",
        "--types",
        "Q8_0",
        "--evaluate",
        "off",
        "--upload",
        "tester/t",
    )
    assert reached.wait(60)
    err = user.run("upload", "tiny-GGUF", "tester/other", status=2).stderr
    assert (
        "holds no finished run" in err
        or f"another run is writing into {user.cwd / 'tiny-GGUF'}: process {first.pid} on " in err
    )
    err = user.quantize("--upload", "tester/t", status=2).stderr
    assert f"another run is writing into {user.cwd / 'tiny-GGUF'}: process {first.pid} on " in err
    hub.bandwidth = 0
    assert first.wait(60) == 0
    first.communicate()
    assert "tester/other" not in hub.repos


def test_xet(done: User, hub: Hub) -> None:
    """Through the storage that the Hub prefers; hf_xet's local store stands for its servers."""
    hub.xet = True
    done.run("upload", "tiny-GGUF", "tester/x", HF_HUB_DISABLE_XET="")
    assert hub.files("tester/x") == FILES
    assert hub.requests("PUT /_lfs/") == []
    assert (
        hub.content("tester/x", "tiny-Q8_0.gguf")
        == (done.cwd / "tiny-GGUF" / "tiny-Q8_0.gguf").read_bytes()
    )
    assert len(hub.requests("POST .*/commit/")) == 1
    done.run("upload", "tiny-GGUF", "tester/x", HF_HUB_DISABLE_XET="")
    assert len(hub.requests("POST .*/commit/")) == 1


def test_the_token_of_the_fixture_is_redacted() -> None:
    from autoquant.core.redact import redact

    assert redact(f"x {TOKEN} y") == "x <token> y"
