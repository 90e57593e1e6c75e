"""Averages that exllamav3's own optimizer mixes of finished bitrates."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.backends.exllamav3 import optimizer
from autoquant.core.errors import InputError, OutOfMemory, ProcessFailed
from autoquant.result import Result
from tests.exl3.conftest import QUICK, REAL

GIB = 1 << 30


@pytest.fixture
def folder(made: tuple[Result, list[str]], tmp_path: Path) -> Path:
    """A run that has two bitrates, 4.0 and 2.5."""
    return Path(shutil.copytree(made[0].folder, tmp_path / "out"))


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command lines of exllamav3's programs."""
    kept: list[str] = []
    monkeypatch.setattr(
        "autoquant.runtime.process.run",
        lambda argv, **more: kept.append(" ".join(argv)) or REAL(argv, **more),
    )
    return kept


@pytest.mark.slow
def test_layers_are_those_of_the_two_and_measured_once(
    folder: Path, model: Path, gpu: None, lines: list[str]
) -> None:
    from safetensors.numpy import load_file

    asked: dict[str, Any] = {
        **QUICK,
        "bpw": [4, 2.5],
        "measurement_samples": 3,
        "eval_chunks": 4,
        "out": folder,
    }
    result = autoquant.exl3(model, **asked, optimized_bpw="3.2")
    assert [line.split()[4] for line in lines] == ["measure_model", "optimize_model"]
    assert "-cr 3 -cc 64" in lines[0], "samples are as long as those of the calibration"
    four, less, mixed = result.artifacts
    assert mixed.type == "3.2bpw-opt"
    assert less.facts["codes"] < mixed.facts["codes"] <= 3.2
    weights = {
        one.type: load_file(result.path(one.type) / "model.safetensors")
        for one in (four, less, mixed)
    }
    taken = {
        name: next(
            type
            for type in ("2.5bpw", "4.0bpw")
            if weights[type][name].tobytes() == tensor.tobytes()
        )
        for name, tensor in weights["3.2bpw-opt"].items()
        if name.endswith(".trellis") and "lm_head" not in name
    }
    assert set(taken.values()) == {"2.5bpw", "4.0bpw"}, "each byte for byte one of theirs"
    groups = {name.split(".")[3]: type for name, type in taken.items()}
    assert all(taken[name] == groups[name.split(".")[3]] for name in taken), "by groups"
    assert mixed.facts["layers"] == {
        "2.50": list(taken.values()).count("2.5bpw"),
        "4.00": list(taken.values()).count("4.0bpw"),
    }
    rows = [one.evaluation for one in (four, mixed, less)]
    assert all(row is not None for row in rows)
    assert rows[0].kl_mean < rows[1].kl_mean < rows[2].kl_mean  # type: ignore[union-attr]

    said = (folder / optimizer.NAME).read_text(encoding="utf-8")
    assert str(folder.parent) not in said + result.card()
    assert json.loads(said)["base"]["dir"] == "2.5bpw"
    for wanted in (
        "3.2bpw-opt: target 3.20, achieved ",
        "mixed by exllamav3's optimizer | 3.2bpw-opt (",
        "on 3 samples of 64 tokens of the text that comes with exllamav3",
    ):
        assert wanted in result.card()

    lines.clear()
    again = autoquant.exl3(model, **asked, optimized_bpw=["3.2", "3.9"])
    assert [line.split()[4] for line in lines] == ["optimize_model"], "from the same measurement"
    assert again.artifacts[2] == mixed
    with pytest.raises(InputError, match=r"within 2.51 bits exllamav3's optimizer found no layers"):
        autoquant.exl3(model, **asked, optimized_bpw="2.51")
    assert (folder / "2.5bpw" / "config.json").is_file()
    assert not (folder / "2.51bpw-opt").exists()


@pytest.mark.parametrize(
    ("does", "kind", "said"),
    [
        ("print(' !! Error: no')", ProcessFailed, "status 0 but did not finish. Log: .* no"),
        ("raise RuntimeError('CUDA out of memory.')", OutOfMemory, "out of memory on the GPU in"),
        (
            "import sys; open(sys.argv[1], 'w').write('{\"groups\": []}')",
            ProcessFailed,
            "measure_model exited with status 0 but did not finish",
        ),
    ],
)
def test_a_measurement_that_is_none_is_not_kept(
    does: str, kind: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "autoquant.runtime.process.run",
        lambda argv, **more: REAL([sys.executable, "-c", does, argv[argv.index("-o") + 1]], **more),
    )
    with pytest.raises(kind, match=said):
        optimizer.measure(
            [tmp_path / "2", tmp_path / "4"],
            ["2.0bpw", "4.0bpw"],
            reference=tmp_path,
            target=tmp_path / optimizer.NAME,
            samples=1,
            length=1,
            states=1.0,
            modules=3,
            python="",
            logs=tmp_path / "log",
            progress=lambda *_: None,
        )
    assert not (tmp_path / optimizer.NAME).exists()


def test_states_of_several_bitrates_stay_within_half_of_the_memory() -> None:
    """exllamav3 counts the states that it keeps as if there were one bitrate beside the least."""
    state = GIB // 4
    for candidates in (1, 2, 5):
        told, held = optimizer.room(candidates, 100, state, 6 * GIB)
        kept = candidates * (told * GIB - 2 * state)  # what it then keeps
        assert kept == pytest.approx(3 * GIB, rel=0.01)
        assert held == 3 * GIB + 4 * state
    assert optimizer.room(1, 100, state, 100 * GIB)[1] == 8 * GIB + 4 * state
    assert optimizer.room(2, 4, state, 100 * GIB)[1] == 12 * state, "no more than there can be"
    assert optimizer.room(1, 100, state, 0)[0] > 2 * state / GIB, "less it refuses"


def test_groups_without_a_gain_are_counted() -> None:
    groups = [
        {"candidates": [{"dkld": one} for one in gains]} for gains in ([0.1, -0.1], [0.1], [0])
    ]
    assert optimizer.unhelpful({"groups": groups}) == 2
