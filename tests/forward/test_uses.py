"""What uses models run block by block beside measuring."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.bundled import MODEL
from autoquant.core.errors import CheckFailed, ProcessFailed
from autoquant.result import Result
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


@pytest.fixture(scope="module")
def w8a8(tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("w8a8") / "out"
    return autoquant.w8a8("demo", out=out, evaluate="off")


GB = 10**9


@pytest.mark.parametrize(
    ("free", "fails", "said", "on"),
    [
        # there is room, and nothing fails
        (100 * GB, "", "tokens with transformers", []),
        # the GPU has none for the model, nor for a block; for a block, which fails there
        (2 * GB, "", "needs 2.2 GB, 2.0 GB are free", ["cpu"]),
        (int(2.151 * GB), "", "needs 2.2 GB, 2.2 GB are free", ["cuda", "cpu"]),
        # it has room, which somebody else takes meanwhile
        (100 * GB, "loading on the GPU", "out of memory on the GPU (100.0 GB)", ["cuda", "cpu"]),
        (100 * GB, "generating on the GPU", "out of memory on the GPU (100.0 GB)", ["cuda", "cpu"]),
        (0, "loading on the CPU", "with transformers, it did not run: out of memory", ["cpu"]),
    ],
)
def test_a_check_without_memory_goes_block_by_block(
    free: int, fails: str, said: str, on: list[str], w8a8: Result, tmp_path: Path
) -> None:
    """It ends no run. The GPU is a stand-in."""
    layer = "model.layers.0.mlp.up_proj"
    seen = in_worker(
        "tests.helpers.places:verified",
        tmp_path,
        free=free,
        fails=fails,
        folder=str(w8a8.folder),
        source=str(MODEL),
        layers={layer: {"name": layer, "tensor": f"{layer}.weight", "shape": [768, 256]}},
        wanted={},
        scaled=False,
        bits=8,
        advice="",
        parameters=4_196_608,
    )
    assert said in seen["checks"]["generates"]
    assert ("block by block" in seen["checks"]["generates"]) == bool(on)
    assert seen["on"] == on


def test_a_check_that_the_system_ends_is_made_once_more_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the memory of a machine it is the system that ends the process, without a word."""
    real, checks = process.call, list[str]()

    def call(target: str, /, **more: Any) -> Any:
        if target.endswith("checks:verify"):
            checks.append(more["failed"])
            if not more["failed"]:
                killed = ProcessFailed("verify was killed")
                killed.signal = signal.SIGKILL
                raise killed
        return real(target, **more)

    monkeypatch.setattr("autoquant.runtime.process.call", call)
    made = autoquant.w8a8("demo", out=tmp_path / "out", evaluate="off")
    generates = {one.name: one.seen for one in made.artifacts[0].checks}["generates"]
    assert "with transformers, it did not run: the process was killed" in generates
    assert "the check of int8-dynamic: the process was killed (SIGKILL)" in caplog.text
    assert [bool(one) for one in checks] == [False, True]


def test_inputs_are_looked_at_on_the_cpu_where_the_gpu_is_full(tmp_path: Path) -> None:
    """As W8A8's static scheme does."""
    ids = [[5, 6, 7]] * 2
    seen = in_worker("tests.helpers.places:largest_inputs", tmp_path, source=str(MODEL), ids=ids)
    assert seen == {"on": ["cuda", "cpu"], "layers": 28}
