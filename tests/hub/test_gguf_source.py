"""Repositories of GGUF files only: which file is taken, what is fetched of it, what goes up."""

from __future__ import annotations

from pathlib import Path

import pytest

import autoquant
from tests.fakes.hub import Hub
from tests.hub.conftest import User

REPO = "maker/tiny-GGUF"
CARD = b"---\nlicense: mit\nbase_model: maker/tiny\n---\n# tiny\n"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published") / "run"
    return autoquant.gguf(
        "demo", types="F16,Q8_0,Q4_K_M", pre_tokenizer="gpt-2", evaluate="off", out=out
    ).folder


@pytest.fixture
def repo(hub: Hub, published: Path) -> str:
    files: dict[str, bytes | Path] = {
        f"{'full/' if 'F16' in path.name else ''}{path.name}": path
        for path in published.glob("*.gguf")
    }
    # stands for what a model sees with: it is copied, whatever is in it
    tower = published / "tiny-austen-4m-Q4_K_M.gguf"
    towers = {f"mmproj-tiny-{kind}.gguf": tower for kind in ("BF16", "F16", "F32")}
    hub.seed(REPO, {**files, "README.md": CARD, **towers})
    return REPO


def test_a_plan_fetches_the_head_alone(user: User, hub: Hub, repo: str, published: Path) -> None:
    out = user.run("plan", "gguf", f"{repo}:Q8_0", "--types", "Q4_K_M,Q3_K_M").stdout
    assert "maker/tiny-GGUF: llama, 4.2 million parameters, Q8_0, 4.53 MB" in out
    size = sum((published / f"tiny-austen-4m-{k}.gguf").stat().st_size for k in ("Q8_0", "Q4_K_M"))
    assert f"to download: {(size + len(CARD)) / 1e6:.2f} MB" in out
    assert "mmproj-tiny-F16.gguf, what it sees or hears with, goes along (0.003 GB)" in out
    assert "what that has lost stays lost" in out
    assert hub.served < 2_200_000, "a mebibyte of each file"
    best = user.run("plan", "gguf", repo, "--types", "Q4_K_M,Q3_K_M").stdout
    assert "4.2 million parameters, F16, 8.46 MB" in best
    url = f"{hub.url}/{repo}/tree/main/full"
    assert "parameters, F16," in user.run("plan", "gguf", url, "--types", "Q4_K_M").stdout
    sizes = [line for line in out.splitlines() if line.startswith("Q")]
    assert sizes == [line for line in best.splitlines() if line.startswith("Q")]


def test_from_a_name_to_a_measured_repository(
    user: User, hub: Hub, repo: str, published: Path
) -> None:
    words = ("--types", "Q4_K_M", "--eval-chunks", "1", "--upload", "acme/tiny")
    user.run("quantize", "gguf", f"{repo}:Q8_0", *words)
    fetched = {
        request.path.split("/")[-1].split("?")[0]
        for request in hub.requests(rf"(GET|HEAD) /{repo}/resolve")
    }
    assert fetched == {"README.md", "tiny-austen-4m-Q8_0.gguf", "mmproj-tiny-F16.gguf"}
    assert {"README.md", "tiny-Q4_K_M.gguf", "mmproj-tiny-F16.gguf"} <= set(hub.files("acme/tiny"))
    card = hub.content("acme/tiny", "README.md").decode()
    commit = hub.repos[repo].branches["main"]
    for said in (
        "license: mit",
        f"base_model: {repo}",
        "| made of | tiny-austen-4m-Q8_0.gguf (Q8_0; what that has lost stays lost) |",
        f"autoquant quantize gguf {repo}@{commit}:Q8_0 ",
        "against the Q8_0 file it is made of",
    ):
        assert said in card
    # without a connection, and the files measured against it by its name
    words = ("--reference", f"{repo}:Q8_0", "--chunks", "2")
    again = user.run("evaluate", "tiny-GGUF/tiny-Q4_K_M.gguf", *words, HF_HUB_OFFLINE="1")
    assert f"{repo} (source, Q8_0)" in again.stdout


def test_what_is_not_there_is_said_with_what_is(user: User, repo: str) -> None:
    said = user.run("plan", "gguf", f"{repo}:Q5_K_M", status=2).stderr
    assert "has no GGUF file called Q5_K_M, nor one of that type; it has: full/" in said
    assert "Name one: maker/tiny-GGUF:" in said
    said = user.run("quantize", "hqq", repo, status=2).stderr
    assert "HQQ begins with a checkpoint of transformers" in said
    assert "the model that it was made of, maker/tiny" in said
    said = user.run("quantize", "gguf", f"{repo}:Q4_K_M", "--types", "Q3_K_M", status=2).stderr
    assert "--allow-requantize" in said
