"""From a finished run to a repository that was compared with it: layouts, what is added later, what
Python gets.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import threading

import pytest

from autoquant.core import licenses
from autoquant.publish.card import metadata
from tests.fakes.hub import Hub
from tests.hub.conftest import FILES, MODEL, User


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
    assert "Replace `MODEL`" in here
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
