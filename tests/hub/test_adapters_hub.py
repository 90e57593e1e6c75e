"""A LoRA adapter from its name on the Hub to a measured, uploaded repository, in one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.hub import Hub
from tests.hub.conftest import MODEL, User
from tests.hub.test_streaming import weights
from tests.workers import in_worker


@pytest.fixture
def tuned(hub: Hub, tmp_path: Path) -> str:
    """An adapter of the model on the Hub."""
    folder = tmp_path / "adapter"
    in_worker(
        "tests.helpers.adapters:make",
        tmp_path,
        folder=str(folder),
        merged=str(tmp_path / "by-peft"),
        options={},
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = MODEL
    (folder / "adapter_config.json").write_text(json.dumps(config))
    hub.seed("maker/tuned", {path.name: path for path in folder.iterdir()})
    return "maker/tuned"


def test_the_adapter_alone_needs_no_weight_of_its_model(user: User, hub: Hub, tuned: str) -> None:
    words = ("--adapter-only", "--pre-tokenizer", "gpt-2", "--upload", "acme/tuned-LoRA")
    user.run("quantize", "gguf", tuned, *words)
    assert hub.served < 1_000_000
    assert {"README.md", "tuned-LoRA-F32.gguf"} <= set(hub.files("acme/tuned-LoRA"))
    card = hub.content("acme/tuned-LoRA", "README.md").decode()
    assert f"base_model: {MODEL}\n" in card
    assert "base_model_relation: adapter\n" in card
    assert f"of [{MODEL}](https://huggingface.co/{MODEL})" in card
    said = user.run("quantize", "gguf", MODEL, "--adapter-only", status=2).stderr
    assert "adapter_only: maker/tiny is no LoRA adapter" in said


def test_merged_while_the_models_files_come_and_go(user: User, hub: Hub, tuned: str) -> None:
    words = ("quantize", "gguf", tuned, "--pre-tokenizer", "gpt-2", "--types", "Q8_0,Q3_K_M")
    user.run(*words, "--evaluate", "off", "--out", "streamed", "--download", "stream")
    assert weights(user.home) == []
    user.run(*words, "--evaluate", "on", "--eval-chunks", "1", "--out", "whole")
    for name in ("tuned-Q8_0.gguf", "tuned-Q3_K_M.gguf"):
        streamed, whole = (user.cwd / one / name for one in ("streamed", "whole"))
        assert streamed.read_bytes() == whole.read_bytes()
    assert len(weights(user.home)) == 1, "the base's; it was measured as it was merged"


def test_from_an_adapters_name_to_an_upload(user: User, hub: Hub, tuned: str) -> None:
    words = ("gguf", tuned, "--pre-tokenizer", "gpt-2", "--types", "Q8_0")
    planned = user.run("plan", *words).stdout
    assert "a LoRA adapter, merged into maker/tiny" in planned
    assert "to download: 8." in planned, "the base and the adapter"
    user.run(
        "quantize", *words, "--evaluate", "on", "--eval-chunks", "1", "--upload", "acme/tuned-GGUF"
    )
    card = (user.cwd / "tuned-GGUF" / "README.md").read_text()
    assert "maker/tuned" in card
    assert "maker/tiny" in card
    assert (user.cwd / "tuned-GGUF" / "tuned-Q8_0.gguf").is_file()
    refused = user.run("plan", "gguf", MODEL, "--base", "a/b", status=2).stderr
    assert "base: maker/tiny is a whole model" in refused
