"""What uses models run block by block beside measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.bundled import MODEL
from autoquant.core.errors import CheckFailed
from autoquant.runtime import process
from tests.workers import in_worker

PREDICTS = "autoquant.backends.checks:predicts"
MUTED = "tests.helpers.forward:muted"


def test_a_folder_too_large_to_be_loaded_is_asked_block_by_block(tmp_path: Path) -> None:
    asked = {"source": str(MODEL), "engine": "transformers", "needed": 10**12}
    said = in_worker(PREDICTS, tmp_path, folder=str(MODEL), **asked)
    assert "block by block; loading it with transformers needs 1000.0 GB" in said
    count, different = (int(said.split(word)[0].split()[-1]) for word in (" pred", " different"))
    assert count >= different > 3
    mute = str(tmp_path / "mute")
    in_worker(MUTED, tmp_path, source=str(MODEL), folder=mute)
    with pytest.raises(CheckFailed, match="predicts nothing but token 0 after each token of"):
        in_worker(PREDICTS, tmp_path, folder=mute, **asked)
    said = in_worker(PREDICTS, tmp_path, folder=mute, **{**asked, "source": mute})
    assert f"{count} predictions, 1 different" in said, "as the source does"


def test_a_folder_is_asked_block_by_block_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks of a run, in a worker that finds so much memory free."""
    real, seen = process.call, dict[str, str]()
    mute = str(tmp_path / "mute")

    def call(target: str, /, **kwargs: Any) -> Any:
        if target != "autoquant.backends.checks:verify":
            return real(target, **kwargs)

        def verified(free: int, **other: Any) -> Any:
            found = real("tests.helpers.forward:verified", **{**kwargs, **other, "free": free})
            seen[str(free)] = dict(found["checks"])["generates"]
            return found

        verified(10**9)
        in_worker(MUTED, tmp_path, source=kwargs["folder"], folder=mute)
        with pytest.raises(CheckFailed, match="predicts nothing but token 0 after each token of"):
            verified(10**9, folder=mute)
        return verified(10**10)

    monkeypatch.setattr("autoquant.runtime.process.call", call)
    made = autoquant.w8a8("demo", evaluate="off", out=tmp_path / "out")
    short, enough = (seen[str(free)] for free in (10**9, 10**10))
    assert " predictions, " in short
    assert ", block by block; loading it with " in short
    assert " GB, 1.0 GB are free" in short
    assert " tokens with " in enough
    assert enough in {one.seen for one in made.artifacts[0].checks}


def test_a_mapped_model_is_the_loaded_one(tmp_path: Path) -> None:
    """Experts that are joined, and parts that see, among them."""
    folder = str(tmp_path / "model")
    for name in ("llama", "mixtral_old", "gemma3_vision"):
        seen = in_worker("tests.helpers.forward:mapped", tmp_path, folder=folder, name=name)
        assert seen["far"] == 0, name
        assert seen["parameters"] == seen["wanted"], name
