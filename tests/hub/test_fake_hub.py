"""The loopback Hub is good enough for the real client's own commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.fakes.hub import Hub
from tests.hub.conftest import MODEL, User

READER = "hf_" + "ReaderReaderReaderReaderReaderRead"


def hf(user: User, *words: str) -> str:
    """huggingface_hub's own command."""
    user.cwd.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hf")), *words],
        env=user.environment(),
        cwd=user.cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_transformers_loads_a_model_from_it(user: User) -> None:
    assert user.python(
        f"""
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("{MODEL}")
ids = AutoTokenizer.from_pretrained("{MODEL}")("Emma Woodhouse").input_ids
print(json.dumps([sum(p.numel() for p in model.parameters()), len(ids) > 0]))"""
    ) == [4196608, True]


def test_hf_download_and_hf_upload(user: User, hub: Hub) -> None:
    hf(user, "download", MODEL, "config.json", "model.safetensors", "--local-dir", "here")
    assert (user.cwd / "here" / "model.safetensors").read_bytes() == hub.content(
        MODEL, "model.safetensors"
    )
    large = user.cwd / "folder" / "large.safetensors"
    large.parent.mkdir()
    large.write_bytes(bytes(range(256)) * 50_000)
    (user.cwd / "folder" / "note.txt").write_text("small")
    hf(user, "upload", "tester/copy", "folder")
    assert hub.files("tester/copy") == {"large.safetensors", "note.txt"}
    assert hub.content("tester/copy", "large.safetensors") == large.read_bytes()
    assert len(hub.requests(r"PUT /_lfs/\w+/part/")) == 3, "12.8 MB went in parts of 5 MiB"


def test_the_clients_calls(user: User, hub: Hub) -> None:
    """Create, branches, commits, and the statuses that matter: 401 to 412, 429, 500."""
    hub.users[READER] = {"name": "reader", "role": "read"}
    hub.seed("maker/gated", {"config.json": b"{}"}, gated=True)
    hub.seed("maker/hidden", {"config.json": b"{}"}, private=True)
    hub.fail("POST .*/preupload/", 429, headers={"Retry-After": "0"})
    hub.fail("GET /api/models/maker/broken", 500, times=9)
    seen = user.python(f"""
import json, io
from huggingface_hub import HfApi, CommitOperationAdd, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError, HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError,
    RevisionNotFoundError)
api, reader, out = HfApi(), HfApi(token="{READER}"), {{}}
def status(call, kind=HfHubHTTPError):
    try: call()
    except kind as error: return error.response.status_code
    return 0
out["role"] = [one.whoami()["auth"]["accessToken"]["role"] for one in (api, reader)]
api.create_repo("tester/a", private=True)
api.create_repo("tester/a", exist_ok=True)
api.create_repo("acme/b")
out["again"] = status(lambda: api.create_repo("tester/a"))
out["foreign"] = status(lambda: api.create_repo("google/x"))
out["read token"] = status(lambda: reader.create_repo("reader/x"))
out["bad token"] = status(lambda: HfApi(token="hf_bad").whoami())
out["private"] = [
    status(lambda: reader.model_info("tester/a"), RepositoryNotFoundError),
    status(lambda: api.model_info("tester/a", token=False), RepositoryNotFoundError)]
out["none"] = status(lambda: api.model_info("tester/none"), RepositoryNotFoundError)
out["no revision"] = status(
    lambda: api.model_info("{MODEL}", revision="none"), RevisionNotFoundError)
out["no file"] = status(lambda: hf_hub_download("{MODEL}", "none.txt"), RemoteEntryNotFoundError)
out["gated"] = [
    status(lambda: reader.auth_check("maker/gated"), GatedRepoError),
    status(lambda: hf_hub_download("maker/gated", "config.json", token=False), GatedRepoError)]
out["write check"] = [
    status(lambda: api.auth_check("tester/a", write=True)),
    status(lambda: reader.auth_check("{MODEL}", write=True))]
first = api.create_commit("tester/a", [CommitOperationAdd("x.txt", b"x")], commit_message="one")
second = dict(commit_message="two", parent_commit="0" * 40)
out["conflict"] = status(
    lambda: api.create_commit("tester/a", [CommitOperationAdd("y.txt", b"y")], **second))
api.create_branch("tester/a", branch="dev")
api.upload_file(
    path_or_fileobj=b"z", path_in_repo="z.txt", repo_id="tester/a", revision="dev")
out["files"] = [
    sorted(api.list_repo_files("tester/a", revision=branch)) for branch in ("main", "dev")]
out["branches"] = sorted(b.name for b in api.list_repo_refs("tester/a").branches)
out["commits"] = [c.title for c in api.list_repo_commits("tester/a")]
out["paths"] = [
    [p.path, p.size, p.lfs.sha256[:6] if p.lfs else None]
    for p in api.get_paths_info("{MODEL}", ["model.safetensors", "config.json", "none"])]
out["broken"] = status(lambda: api.model_info("maker/broken"))
api.delete_repo("acme/b")
out["deleted"] = api.repo_exists("acme/b")
print(json.dumps(out))""")
    assert seen.pop("paths")[0][:2] in (["model.safetensors", 8397360], ["config.json", 719])
    assert seen == {
        "role": ["write", "read"],
        "again": 409,
        "foreign": 403,
        "read token": 403,
        "bad token": 401,
        "private": [404, 401],
        "none": 404,
        "no revision": 404,
        "no file": 404,
        "gated": [403, 401],
        "write check": [0, 403],
        "conflict": 412,
        "files": [["x.txt"], ["x.txt", "z.txt"]],
        "branches": ["dev", "main"],
        "commits": ["one", "initial commit"],
        "broken": 500,
        "deleted": False,
    }


def test_latency_and_bandwidth(user: User, hub: Hub) -> None:
    import time

    hub.bandwidth, hub.latency = 20e6, 0.05
    start = time.monotonic()
    hf(user, "download", MODEL, "model.safetensors")
    assert time.monotonic() - start > 8.4e6 / 20e6 + 0.1
