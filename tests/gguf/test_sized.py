"""Files of a size: never larger, better than llama.cpp's types, as predicted, and said to be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core import gguf_head
from autoquant.core.errors import InputError
from autoquant.core.options import build
from autoquant.core.records import COMPARED, PREDICTED
from autoquant.display import gains
from autoquant.fisher import table
from autoquant.methods.gguf.choosing import Model
from autoquant.methods.gguf.options import GgufOptions
from autoquant.methods.size import Size
from autoquant.result import Result
from tests.workers import in_llama_worker

SIZES = {"Q4_K_M": 2_686_016, "2.2MB": 2_200_000, "Q2_K": 1_827_392}
QUICK: dict[str, Any] = {"sensitivity_samples": 6, "evaluate": "off"}


@pytest.fixture(scope="module", autouse=True)
def some_rows() -> Iterator[None]:
    """A quarter of the rows is quantized to each type: it is what is done with large tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autoquant.methods.gguf.sensitivity.SAMPLE", 1 << 15)
        yield


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory, some_rows: None) -> Result:
    out = tmp_path_factory.mktemp("sized") / "run"
    return autoquant.gguf(
        "demo", size=tuple(SIZES), sensitivity_samples=12, eval_chunks=30, out=out
    )


def chosen(result: Result) -> list[Any]:
    return list(result.offered)


def test_no_file_is_larger_than_asked_and_none_much_smaller(sized: Result) -> None:
    assert len(chosen(sized)) == 3
    for artifact, budget in zip(chosen(sized), SIZES.values(), strict=True):
        size = sized.path(artifact.type).stat().st_size
        assert 0.99 * budget <= size <= budget
        assert size == artifact.bytes


def test_they_lose_much_less_than_llama_cpps_types_of_their_size(sized: Result) -> None:
    found = {gain.stock.type: gain for gain in gains.of(sized)}
    assert found.keys() == {"Q4_K_M", "Q3_K_M", "Q2_K"}
    assert found["Q4_K_M"].less >= 0.3
    assert found["Q3_K_M"].less >= 0.35, "in 2 % fewer bytes"
    assert found["Q2_K"].less >= 0.5
    assert not any(gain.is_none for gain in found.values())
    assert "less KL divergence than Q2_K" in str(sized)
    assert all(str(gain) in sized.card() for gain in found.values())


def test_what_is_lost_was_predicted(sized: Result) -> None:
    for artifact in chosen(sized):
        measured = artifact.evaluation.kl_mean
        assert artifact.facts[PREDICTED] == pytest.approx(measured, rel=0.3)


def test_the_name_and_the_header_say_what_it_is(sized: Result) -> None:
    for artifact, asked in zip(chosen(sized), SIZES, strict=True):
        kind, _, bits = artifact.type.removesuffix("bpw").partition("_AQ-")
        assert float(bits) == pytest.approx(artifact.bits_per_weight, abs=0.006)
        assert sized.path(artifact.type).name == f"tiny-austen-4m-{artifact.type}.gguf"
        head = gguf_head.read(sized.path(artifact.type))
        weights: dict[str, int] = {}
        for one in head.tensors.values():
            weights[one.type] = weights.get(one.type, 0) + one.elements
        assert max(weights, key=lambda name: weights[name]) == kind
        assert head.values["autoquant.size"] == asked
        recipe = dict(
            line.split("=") for line in head.values["autoquant.tensor_types"].splitlines()
        )
        assert recipe == {n: one.type for n, one in head.tensors.items() if one.type != "F32"}


def test_small_files_may_have_slow_types_and_large_ones_may_not(sized: Result) -> None:
    large, _, small = (
        {one.type for one in gguf_head.read(sized.path(a.type)).tensors.values()}
        for a in chosen(sized)
    )
    assert not {kind for kind in large if kind.startswith(("IQ1", "IQ2", "IQ3"))}
    assert {kind for kind in small if kind.startswith(("IQ1", "IQ2", "IQ3"))}


def test_its_file_is_what_its_recipe_makes(sized: Result, tmp_path: Path) -> None:
    """llama.cpp's own quantizer, told the same types and importance, makes the same tensors."""
    artifact = chosen(sized)[1]
    rules = []
    for name, one in gguf_head.read(sized.path(artifact.type)).tensors.items():
        if one.type != "F32":
            rules.append(f"^{name.replace('.', chr(92) + '.')}$={one.type}")
    again = autoquant.gguf(
        "demo",
        types=["Q4_K_M"],
        tensor_types=rules,
        imatrix=sized.folder / "imatrix.gguf",
        evaluate="off",
        out=tmp_path / "again",
    )
    same = in_llama_worker(
        "tests.helpers.gguf:same_tensors",
        tmp_path,
        one=str(sized.path(artifact.type)),
        other=str(again.path("Q4_K_M")),
    )
    assert same == []


def test_what_it_is_compared_with_stays_here(sized: Result) -> None:
    compared = [one for one in sized.artifacts if COMPARED in one.facts]
    assert [one.type for one in compared] == ["Q4_K_M", "Q3_K_M", "Q2_K"]
    assert all(sized.path(one.type).is_file() for one in compared)
    assert sized.card().count("(not here: made to compare with)") == 3
    assert {"sensitivity.json", "imatrix.gguf"} <= set(sized.extras)


def test_the_same_again_measures_and_makes_nothing(
    sized: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoquant.methods.gguf.sensitivity.measure", None)
    monkeypatch.setattr("autoquant.methods.gguf.convert.convert", None)
    again = autoquant.gguf(
        "demo", size=tuple(SIZES), sensitivity_samples=12, eval_chunks=30, out=sized.folder
    )
    assert again.artifacts == sized.artifacts


def test_a_table_serves_other_sizes(sized: Result, tmp_path: Path) -> None:
    """With its importance matrix; and not if that is gone, or it is another model's."""
    made = autoquant.gguf(
        "demo", bpw=[3.5], sensitivity=sized.folder, against="none", evaluate="off", out=tmp_path
    )
    assert made.artifacts[0].bits_per_weight == pytest.approx(3.5, rel=0.01)
    assert len(made.artifacts) == 1
    alone = tmp_path / "alone.json"
    shutil.copy(sized.folder / "sensitivity.json", alone)
    with pytest.raises(InputError, match=r"beside .*alone.json is no imatrix.gguf"):
        autoquant.gguf("demo", size="2MB", sensitivity=alone, out=tmp_path / "no")
    with pytest.raises(InputError, match="whose weights are not those of tiny-austen-2m"):
        autoquant.gguf("demo-small", size="1MB", sensitivity=sized.folder, out=tmp_path / "no")
    data = json.loads(alone.read_text())
    data["tensors"]["blk.0.attn_q.weight"]["types"]["Q4_K"]["nats"] = float("nan")
    alone.write_text(json.dumps(data))
    with pytest.raises(InputError, match="is damaged"):
        autoquant.gguf("demo", size="2MB", sensitivity=alone, imatrix="builtin", out=tmp_path / "n")
    assert not (tmp_path / "no").exists()


def test_an_interrupted_measurement_goes_on_with_what_it_has(tmp_path: Path) -> None:
    """The table of a run that was killed has nearly the values of one that was not."""
    out = tmp_path / "run"
    asked: dict[str, Any] = {**QUICK, "size": "1.2MB", "against": "none", "out": out}
    whole = table.read(autoquant.gguf("demo-small", **asked).folder / table.FILE)
    journal = json.loads((out / ".autoquant" / "journal.json").read_text())
    key = journal["steps"].pop("sensitivity")["key"]
    del journal["steps"]["choice"]
    (out / ".autoquant" / "journal.json").write_text(json.dumps(journal))
    half = list(whole.tensors)[:5]
    lines = [
        {"tensor": name, "nats": {"Q4_K": 1.0, "Q8_0": 0.5, "F16": 0.0}, "quantized": 1, "rows": 1}
        for name in half
    ]
    begun = out / ".autoquant" / "sensitivity.jsonl"
    begun.write_text("\n".join([key, *map(json.dumps, lines), '{"tensor": "cut o']))
    found = table.read(autoquant.gguf("demo-small", **asked).folder / table.FILE)
    assert all(found.tensors[name].nats["Q4_K"] == 1.0 for name in half), "not measured again"
    others = [name for name in whole.tensors if name not in half]
    assert others
    for name in others:
        # a sum that is rounded otherwise may draw another row or label
        assert found.tensors[name].nats == pytest.approx(whole.tensors[name].nats, rel=0.2)
    assert not begun.exists()


def test_an_importance_matrix_of_gradients_alone(tmp_path: Path) -> None:
    made = autoquant.gguf("demo", types=["IQ2_XXS"], imatrix="fisher", **QUICK, out=tmp_path)
    assert made.extras.count("imatrix.gguf") == 1
    assert not (tmp_path / "sensitivity.json").exists()
    assert "gradients (Fisher information)" in made.card()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": "2.2"}, "'2.2' is no size; write a number with GB"),
        ({"bpw": "4.5MB"}, "bpw: '4.5MB' is no number of bits; write one such as 4.5"),
        ({"size": "0MB"}, "'0MB' is no size"),
        ({"size": "2MB", "types": ["Q8_0"]}, "with size the types are chosen"),
        ({"size": "0.3MB"}, r"the smallest file that can be made of this model has 0.89 MB"),
        ({"size": "9MB"}, "the unquantized file has no more than 8.46 MB"),
        ({"size": "2MB", "pure": True}, "tensor_types and pure cannot apply"),
        ({"against": "Q4_K_M"}, "has an effect only with size"),
        ({"size": "2MB", "against": "Q9"}, "against: 'Q9' is no GGUF type; nearest: Q8_0"),
        ({"size": "2MB", "candidates": "Q9"}, "'Q9' is no tensor type; nearest"),
        ({"size": "2MB", "sensitivity": "none.json"}, "sensitivity: no such file: none.json"),
        ({"sensitivity_samples": 5}, "sensitivities are not measured in this run"),
        ({"size": "2MB", "sensitivity_samples": 1}, "1 is not allowed; allowed: 2 to"),
        ({"context": 100}, "context: 100 has an effect only with fits"),
        ({"fits": "T5"}, "'T5' is no device that is known; nearest: T4"),
        ({"fits": "T4", "context": 999}, "999 tokens are more than tiny-austen-4m was made for"),
        ({"fits": "0.0085GB", "types": ["Q8_0"]}, r"Q8_0 is 4.53 MB, and 0.0085GB has 4\.4"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        autoquant.gguf("demo", **options, out=tmp_path / "out")
    left = {one.name for one in (tmp_path / "out").glob("*")} - {".autoquant"}
    assert not left


def test_memory_for_gradients_is_looked_at_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("autoquant.methods.gradients.memory_available", lambda: 700_000_000)
    with pytest.raises(InputError, match=r"gradients on 200 chunks need .* Take at most \d+ sens"):
        autoquant.gguf("demo", size="2MB", sensitivity_samples=200, out=tmp_path / "out")


def test_a_device_is_a_size(tmp_path: Path, sized: Result) -> None:
    made = autoquant.gguf(
        "demo",
        fits="0.0063GB",
        sensitivity=sized.folder,
        against="none",
        evaluate="off",
        out=tmp_path / "out",
    )
    beside = 4_080_000  # of keys, values and buffers, at 256 tokens
    assert made.artifacts[0].bytes + beside == pytest.approx(6.3e6, rel=0.01)
    plenty = autoquant.plan("gguf", "demo", fits="8GB laptop")
    assert [item.type for item in plenty.items] == ["Q8_0"]


def test_a_plan_of_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoquant.forward.cost.rate", lambda *, gpu=True: 1e9)
    planned = autoquant.plan("gguf", "demo", size=["2.2MB", "4.5bpw"])
    assert [item.type for item in planned.items][:2] == ["size 2.2MB", "size 4.5bpw"]
    assert {item.type for item in planned.items[2:]} == {"Q3_K_M", "IQ4_XS"}
    assert planned.seconds["measure sensitivities"] > 1
    refused = autoquant.plan("gguf", "demo", size="0.3MB").refused
    assert "the smallest file that can be made" in refused


def test_a_type_is_compared_with_in_one_run_and_asked_for_in_another(
    sized: Result, tmp_path: Path
) -> None:
    """In the same folder, either first."""
    out = tmp_path / "run"
    asked: dict[str, Any] = {"size": "2.5MB", "against": "Q8_0", "sensitivity": sized.folder}
    both = autoquant.gguf("demo", **asked, evaluate="off", out=out)
    assert [one.type for one in both.offered] == [one.type for one in both.artifacts[:1]]
    alone = autoquant.gguf("demo", types=["Q8_0"], evaluate="off", out=out)
    assert [one.type for one in alone.offered] == ["Q8_0"]
    assert "(stock)" not in str(alone)
    again = autoquant.gguf("demo", **asked, evaluate="off", out=out)
    assert again.artifacts == both.artifacts


def test_a_given_table_needs_no_gradients(
    sized: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoquant.methods.gradients.memory_available", lambda: 1000)
    planned = autoquant.plan("gguf", "demo", size="2MB", sensitivity=sized.folder)
    assert "measure sensitivities" not in planned.seconds
    made = autoquant.gguf(
        "demo", size="2MB", sensitivity=sized.folder, evaluate="off", out=tmp_path / "out"
    )
    assert len(made.artifacts) == 1
    file = sized.path("Q2_K")
    with pytest.raises(InputError, match="is a GGUF file"):
        autoquant.gguf(file, size="1MB", allow_requantize=True, sensitivity=sized.folder)


@pytest.mark.parametrize("split", ["", "100K", "300K"])
def test_shards_are_counted(split: str, sized: Result) -> None:
    """Of any size, however the types that are chosen are cut into shards."""
    found = table.read(sized.folder / table.FILE)
    head = gguf_head.read(sized.folder / ".autoquant" / "header.gguf")
    stock = [
        {"type": name, "bytes": size, "tensors": types, "order": list(types)}
        for name, size, types in (
            ("Q2_K", 1_827_392, tensors(sized, "Q2_K")),
            ("Q3_K_M", 2_245_184, tensors(sized, "Q3_K_M")),
        )
    ]
    model = Model.of(head, stock, "F16")
    options = build(GgufOptions, {"size": "2MB", **({"split_size": split} if split else {})})
    for size in range(1_500_000, 3_000_000, 71_003):
        plan = model.chosen(options, found, Size(size, "B"))
        laid = gguf_head.quantized(
            head, plan["tensors"], plan["order"], 0, options.split_bytes, plan["keys"]
        )
        assert sum(one.size for one in laid) == plan["bytes"] <= size


def tensors(result: Result, type: str) -> dict[str, str]:
    head = gguf_head.read(result.path(type))
    return {name: one.type for name, one in head.tensors.items()}


def test_two_sizes_that_are_one_file(
    sized: Result, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = autoquant.gguf(
        "demo",
        size=["2MB", "2.0001MB"],
        sensitivity=sized.folder,
        evaluate="off",
        out=tmp_path / "out",
    )
    assert len(made.artifacts) == 1
    assert "size 2.0001MB: nearly the file of another size" in caplog.text
