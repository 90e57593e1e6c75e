"""How long measuring takes, and what is done where that is too long or memory too short."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.bundled import MODEL
from autoquant.core.errors import CheckFailed, InputError
from autoquant.core.files import key_of
from autoquant.core.options import MethodOptions
from autoquant.evaluate import planning
from autoquant.evaluate.evaluator import Evaluator
from autoquant.forward import cost
from autoquant.result import Result
from autoquant.runtime import environments, process
from autoquant.source import resolve
from autoquant.source.adapter import merged
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


def test_what_llama_cpp_takes_to_measure_is_in_the_plan(
    monkeypatch: pytest.MonkeyPatch, demo: Result
) -> None:
    """The whole model in memory, and log-probabilities of its vocabulary on the disk."""
    monkeypatch.setattr(cost, "rate", lambda **_: 1e18)
    found = resolve(demo.path("Q8_0"))
    source = dataclasses.replace(found, bytes=16_000_000_000, vocab_size=128_000, context=8192)
    monkeypatch.setattr(planning, "memory_available", lambda: 20_000_000_000)
    monkeypatch.setattr(planning, "free_bytes", lambda place: 3_000_000_000)
    planned = planning.of(source, options(), 1)
    assert (planned.note, planned.why_not) == ("", "")
    assert "llama.cpp, which runs the whole model: 17.1 GB of memory, and 2.6 GB" in planned.needs
    monkeypatch.setattr(planning, "memory_available", lambda: 10_000_000_000)
    assert "of 17.1 GB of memory 10.0 GB are free, so" in planning.of(source, options(), 1).note
    monkeypatch.setattr(planning, "free_bytes", lambda place: 2_000_000_000)
    assert "measuring needs 2.62 GB in " in planning.of(source, options(), 1).why_not
    fewer = planning.of(source, options(eval_chunks=10), 1)
    assert fewer.why_not == ""
    # whatever transformers runs keeps hidden states, and needs no such sentence
    assert planning.of(resolve("demo"), options(), 1).needs == ""
    notes = " ".join(autoquant.plan("gguf", demo.path("Q8_0"), types=["Q2_K"]).notes)
    assert "it is measured by llama.cpp, which runs the whole model" in notes


def test_a_plan_counts_the_file_that_stands_for_the_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the disk, while it is measured; where there is no room for that one, it is not."""
    made: dict[str, Any] = {"types": ["Q8_0"], "out": tmp_path / "out", "imatrix": "none"}
    without = autoquant.plan("gguf", "demo", evaluate="off", **made).disk_needed
    assert autoquant.plan("gguf", "demo", **made).disk_needed == without
    monkeypatch.setattr(planning, "known", lambda source: False)
    assert autoquant.plan("gguf", "demo", evaluate="off", **made).disk_needed == without
    whole = autoquant.plan("gguf", "demo", **made)
    assert whole.disk_needed > without + 8_000_000, "4 million parameters in 16 bits"
    monkeypatch.setattr(
        "autoquant.methods.gguf.sizes.room", lambda *_: (without + whole.disk_needed) // 2
    )
    less = autoquant.plan("gguf", "demo", **made)
    assert less.disk_needed == without
    assert "measuring needs the unquantized model, and there is no room" in " ".join(less.notes)
    assert "measure" not in less.seconds


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


def evaluator(
    tmp_path: Path, model: str | Path = "demo", text: str = "builtin", chunks: int = 2
) -> Evaluator:
    from autoquant.evaluate.sources import evaluator_of
    from autoquant.source import fetch

    found = evaluator_of(fetch(resolve(model)), tmp_path / "log", text, chunks, {})
    found.cache = tmp_path / "references"
    return found


FILES = sorted(path.name for path in MODEL.iterdir() if path.suffix in (".json", ".safetensors"))
VERSIONS = (
    "transformers", "tokenizers", "sentencepiece", "jinja2", "torch", "peft", "llama-cpp-python",
)  # fmt: skip


@pytest.mark.parametrize(
    "ingredient", [*FILES, *VERSIONS, "autoquant", "text", "chunks", "context", "made with"]
)
def test_a_reference_is_of_all_that_it_depends_on(
    ingredient: str, model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model()
    before = evaluator(tmp_path, folder).key()
    assert evaluator(tmp_path, folder).key() == before
    if ingredient in FILES:
        changed = bytearray((folder / ingredient).read_bytes())
        # one bit of a weight; in JSON a space
        changed = changed[:-1] + bytes([changed[-1] ^ 1] if ingredient[-1] == "s" else b" \n")
        (folder / ingredient).write_bytes(changed)
    elif ingredient in VERSIONS:
        real = environments.version
        monkeypatch.setattr(
            environments, "version", lambda name: "9" if name == ingredient else real(name)
        )
    elif ingredient == "autoquant":
        monkeypatch.setattr("autoquant.evaluate.evaluator.__version__", "9")
    more: dict[str, Any] = {"text": "prose"} if ingredient == "text" else {}
    more |= {"chunks": 3} if ingredient == "chunks" else {}
    after = evaluator(tmp_path, folder, **more)
    after.context -= ingredient == "context"
    after.stand_in = "another" if ingredient == "made with" else ""
    assert after.key() != before


def test_a_reference_by_llama_cpp_is_of_the_file_and_what_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that transformers does not know a GGUF file stands for the source. Each run makes
    one anew, and goes on in the same folder.
    """
    monkeypatch.setenv("AUTOQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(planning, "known", lambda source: False)
    real, ran = process.call, list[str]()
    monkeypatch.setattr(
        "autoquant.runtime.process.call",
        lambda target, /, **more: ran.append(target.rpartition(":")[2]) or real(target, **more),
    )

    def references(**options: Any) -> int:
        ran.clear()
        made = autoquant.gguf(
            "demo", types=["Q8_0"], eval_chunks=2, out=tmp_path / "out", **options
        )
        assert made.reference is not None
        assert made.reference.engine == "llama.cpp"
        return ran.count("log_probabilities")

    assert references(precision="f16") == 1
    assert references(precision="f16") == 0
    assert references(precision="f32") == 1
    assert references(precision="f32", pre_tokenizer="smollm") == 1
    monkeypatch.setattr(
        "autoquant.methods.gguf.work.llama.installed_version", lambda: "another converter"
    )
    assert references(precision="f32", pre_tokenizer="smollm") == 1


def test_a_changed_file_is_another_reference(
    demo: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the key says of how it was made."""
    stand_in, asked = tmp_path / "whole.gguf", evaluator(tmp_path)
    shutil.copy(demo.path("Q8_0"), stand_in)
    first = asked.reference(gguf=stand_in)
    assert asked.reference(gguf=stand_in) == first
    shutil.copy(demo.path("Q4_K_M"), stand_in)
    other = asked.reference(gguf=stand_in)
    assert other.path != first.path
    assert other.row.perplexity != first.row.perplexity


def test_what_another_peft_has_merged_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOQUANT_CACHE", str(tmp_path))
    monkeypatch.setattr(environments, "version", lambda name: "1")
    source = dataclasses.replace(resolve("demo"), adapter=tmp_path)
    monkeypatch.setattr("autoquant.source.adapter.free_bytes", lambda path: 0)
    place = tmp_path / "sources" / f"{key_of('sha', '1')}-merged"
    place.mkdir(parents=True)
    (place / "config.json").touch()
    assert merged(source, MODEL, "sha") == place
    monkeypatch.setattr(environments, "version", lambda name: "2")
    with pytest.raises(InputError, match="the merged model needs"):  # it would be made anew
        merged(source, MODEL, "sha")


def test_a_damaged_reference_is_not_used(tmp_path: Path) -> None:
    first = evaluator(tmp_path)
    kept = first.reference()
    values = bytearray(kept.path.read_bytes())
    values[-1] ^= 1
    kept.path.write_bytes(values)
    file = {"folder": str(MODEL), "states": str(tmp_path / "states.npy")}
    with pytest.raises(InputError, match="is damaged: remove it"):
        first.measure([file], first.reference())


@pytest.mark.parametrize(
    ("tensor", "spoil", "said"),
    [
        ("lm_head.weight", "nan", r"lm_head\.weight has NaN or Inf values"),
        # each value is finite, and what the head makes of them is not
        ("lm_head.weight", "large", "predictions on this text are not finite"),
    ],
)
def test_no_reference_is_kept_of_a_model_that_computes_none(
    tensor: str, spoil: str, said: str, model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = model()
    in_worker("tests.helpers.forward:with_one", tmp_path, folder=str(folder), name=tensor, to=spoil)
    asked = evaluator(tmp_path, folder)
    with pytest.raises(CheckFailed, match=said):
        asked.reference()
    assert list(asked.cache.glob("*.npy")) == []
