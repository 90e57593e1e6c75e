"""How long measuring takes, and what is done where that is too long or memory too short."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.bundled import MODEL
from autoquant.core.errors import InputError
from autoquant.core.options import MethodOptions
from autoquant.evaluate import planning
from autoquant.evaluate.evaluator import Evaluator
from autoquant.forward import cost
from autoquant.result import Result
from autoquant.source import resolve
from tests.workers import in_worker


def options(**values: Any) -> MethodOptions:
    return MethodOptions(**values)


def test_as_many_chunks_are_taken_as_there_are_minutes_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute a chunk and run: the unquantized model and three files."""
    source = resolve("demo")
    monkeypatch.setattr(cost.Cost, "seconds", lambda self, chunks, length: 60.0 * chunks)
    assert planning.of(source, options(eval_minutes=80), 3).chunks == 20
    fewer = planning.of(source, options(eval_minutes=30), 3)
    assert (fewer.chunks, fewer.minutes, fewer.why_not) == (7, 28, "")
    assert "measured on 7 chunks of text instead of 20, for 20 would take about 80" in fewer.note
    assert planning.of(source, options(eval_minutes=90), 3, begun=5).chunks == 5, "as begun"
    none = planning.of(source, options(eval_minutes=7), 3)
    assert "about 8 minutes on 2 chunks of text, more than 7 (eval_minutes)" in none.why_not
    asked = planning.of(source, options(evaluate="on", eval_chunks=9), 3)
    assert (asked.chunks, asked.why_not) == (9, "")
    one = planning.of(source, options(eval_minutes=3, eval_chunks=1), 3)
    assert "about 4 minutes on 1 chunk of text" in one.why_not


def test_what_is_read_from_the_hub_once_more_counts_where_its_speed_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A minute a chunk and run, and ten gigabytes."""
    source, known = resolve("demo"), dict[str, float]()
    monkeypatch.setattr(cost.Cost, "seconds", lambda self, chunks, length: 60.0 * chunks)
    monkeypatch.setattr("autoquant.core.rates.known", lambda: known)
    size = 10_000_000_000
    found = planning.of(source, options(eval_minutes=80), 3, again=size)
    assert (found.chunks, found.minutes, found.reading) == (20, 80, 0)
    assert "10.00 GB are read from the Hub once more, how fast is not known" in found.read
    known["download"] = size / 60 / 20
    found = planning.of(source, options(eval_minutes=80), 3, again=size)
    assert (found.chunks, found.minutes, found.reading) == (15, 80, 20)
    assert found.read.endswith("once more, which takes about 20 minutes")
    none = planning.of(source, options(eval_minutes=21), 3, again=size)
    assert (
        "about 28 minutes (20 minutes of it to read the model from the Hub) on 2 chunks of text,"
        " more than 21 (eval_minutes)"
    ) in none.why_not
    assert planning.of(source, options(eval_minutes=21), 3).why_not == ""


def test_what_was_decided_holds_until_other_options_are_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cost.Cost, "seconds", lambda self, chunks, length: 60.0 * chunks)

    def chunks(**more: Any) -> int:
        made = autoquant.gguf("demo", types=["Q8_0"], out=tmp_path / "out", **more)
        assert made.reference is not None
        return made.reference.tokens // 127

    assert chunks(eval_minutes=8) == 4
    monkeypatch.setattr(cost.Cost, "seconds", lambda self, chunks, length: 30.0 * chunks)
    assert chunks(eval_minutes=8) == 4, "whatever the machine is found to do now"
    assert chunks(eval_minutes=10) == 10
    monkeypatch.setattr(cost.Cost, "seconds", lambda self, chunks, length: 9000.0)
    assert chunks(eval_minutes=10) == 10, "what was measured stays"
    made = autoquant.gguf("demo", types=["Q6_K"], eval_minutes=11, out=tmp_path / "other")
    assert made.reference is None
    assert made.artifacts[0].evaluation is None


def test_a_gguf_file_that_llama_cpp_runs_is_bounded_too(
    monkeypatch: pytest.MonkeyPatch, demo: Result
) -> None:
    monkeypatch.setattr(cost, "rate", lambda gpu: 3e10)  # 61 minutes, on whatever machine
    source = resolve(demo.path("Q8_0"))
    large = dataclasses.replace(source, parameters=70_000_000_000)
    assert planning.of(source, options(), 1).why_not == ""
    assert (
        "on 2 chunks of text, more than 30 (eval_minutes)"
        in planning.of(large, options(), 1).why_not
    )


def test_less_memory_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = cost.of(resolve("demo"))
    plenty = found.how(20, 256, 1 << 40)
    assert plenty == {"ahead": True, "single": False, "part": 2}
    assert found.how(20, 256, found.least(20, 256) - 1) is None
    monkeypatch.setattr("autoquant.evaluate.planning.memory_available", lambda: 300_000_000)
    with pytest.raises(InputError, match=r"evaluate: measuring needs 0\.\d GB of memory for a bl"):
        autoquant.gguf("demo", types=["Q8_0"], evaluate="on", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_block_of_experts_is_cut_where_it_is_too_large(tmp_path: Path) -> None:
    folder = tmp_path / "moe"
    in_worker("bench.cases.architectures:make", tmp_path, name="qwen3_moe", folder=str(folder))
    found = cost.of(resolve(folder))
    assert found.expert < found.block
    large = dataclasses.replace(found, block=10**9, expert=10**8)
    whole = large.memory(4, 256, ahead=False, single=False, part=1)
    assert large.how(4, 256, whole) == {"ahead": False, "single": False, "part": 1}
    assert large.how(4, 256, whole - 1) == {"ahead": False, "single": True, "part": 4}
    used = json.loads((folder / "config.json").read_text())["num_experts_per_tok"]
    experts = json.loads((folder / "config.json").read_text())["num_local_experts"]
    assert found.multiplied < found.weights * (used + 1) / experts + found.weights / 2


def test_a_plan_says_how_long_measuring_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost.Cost, "seconds", lambda self, chunks, length: 60.0 * chunks)
    plan = autoquant.plan("bitsandbytes", "demo", eval_minutes=20)
    assert plan.seconds["measure"] == 20 * 60
    assert "20 minutes to measure" in str(plan)
    assert "measured on 10 chunks of text instead of 20" in str(plan)


def evaluator(tmp_path: Path, sha256: str = "a") -> Evaluator:
    from autoquant.evaluate.sources import evaluator_of
    from autoquant.source import fetch

    snapshot = fetch(resolve("demo"))
    found = evaluator_of(snapshot, tmp_path / "log", "builtin", 2, {})
    found.cache = tmp_path / "references"
    return found


def test_a_wrong_reference_cannot_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key covers what computes it; what is damaged is not used."""
    first = evaluator(tmp_path)
    kept = first.reference()
    key = first.key()
    known = {"transformers": "1", "torch": "2"}
    monkeypatch.setattr(
        "autoquant.evaluate.evaluator.environments.version", lambda name: known.get(name, "3")
    )
    assert first.key() != key
    before = first.key()
    known["torch"] = "2.1"
    assert first.key() != before
    monkeypatch.undo()
    values = bytearray(kept.path.read_bytes())
    values[-1] ^= 1
    kept.path.write_bytes(values)
    file = {"folder": str(MODEL), "states": str(tmp_path / "states.npy")}
    with pytest.raises(InputError, match="is damaged: remove it"):
        first.measure([file], first.reference())
