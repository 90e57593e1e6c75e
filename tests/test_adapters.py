"""LoRA adapters as sources: merged as peft merges them, then quantized like any model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.errors import InputError
from autoquant.source import fetch, resolve
from tests.workers import in_llama_worker, in_worker

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "fraction": {"lora_alpha": 5.5},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"modules_to_save": ["lm_head"]},
    "resized": {"resize": 2060, "modules_to_save": ["lm_head", "embed_tokens"]},
}


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """An adapter of the bundled model, made by peft, with what peft merges it to beside it."""

    def make(**options: Any) -> Path:
        folder = tmp_path / "adapter"
        in_worker(
            "tests.helpers.adapters:make",
            tmp_path,
            folder=str(folder),
            merged=str(tmp_path / "by-peft"),
            options=options,
        )
        return folder

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_merged_as_peft_merges(kind: str, adapter: Callable[..., Path], tmp_path: Path) -> None:
    snapshot = fetch(resolve(adapter(**KINDS[kind])))
    difference = in_worker(
        "tests.helpers.adapters:difference",
        tmp_path,
        one=str(snapshot.folder),
        other=str(tmp_path / "by-peft"),
    )
    assert difference["largest"] <= difference["step"], "a rounding of float16 at most"
    assert difference["changed"] > 0


def test_an_adapter_goes_through_any_method(adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter()
    plan = autoquant.plan("gguf", folder, types="Q8_0", pre_tokenizer="gpt-2")
    assert "a LoRA adapter, merged into tiny-austen-4m" in str(plan.notes)
    assert plan.source.parameters == 4_196_608
    made = autoquant.gguf(
        folder,
        types="Q8_0",
        pre_tokenizer="gpt-2",
        evaluate="on",
        eval_chunks=1,
        out=tmp_path / "out",
    )
    assert made.artifacts[0].name == "adapter-Q8_0.gguf"
    evaluation = made.artifacts[0].evaluation
    assert evaluation is not None
    assert evaluation.kl_mean < 0.01
    assert "merged" in made.card()


def test_what_cannot_be_merged_is_said_at_once(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapter()
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())

    def spoiled(**changes: Any) -> Path:
        path.write_text(json.dumps({**config, **changes}))
        return folder

    for changes, said in (
        ({"base_model_name_or_path": "~gone/model"}, "which cannot be had: .*base='"),
        ({"base_model_name_or_path": None}, "does not name its model; name it: base="),
        ({"peft_type": "LOHA"}, "adapter of the kind LOHA; LoRA adapters are merged"),
        (
            {"base_model_name_or_path": "demo-small"},
            "in .* it has 128: .* another size|another model",
        ),
    ):
        with pytest.raises(InputError, match=said):
            resolve(spoiled(**changes))
    again = resolve(spoiled(base_model_name_or_path="nobody/nothing"), base="demo")
    assert again.base_model == "demo"


@pytest.mark.parametrize("kind", ["plain", "rslora", "fraction", "patterns"])
def test_the_adapter_alone_makes_of_the_model_what_merging_does(
    kind: str, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """By llama.cpp: the base's file with the adapter beside it, and the merged model's."""
    folder = adapter(**KINDS[kind])
    base = autoquant.gguf("demo", types="F16", evaluate="off", out=tmp_path / "base")
    merged = autoquant.gguf(
        folder, types="F16", pre_tokenizer="gpt-2", evaluate="off", out=tmp_path / "merged"
    )
    alone = autoquant.gguf(folder, adapter_only=True, pre_tokenizer="gpt-2", out=tmp_path / "alone")
    assert alone.artifacts[0].name == "adapter-LoRA-F32.gguf"
    assert alone.artifacts[0].checks[0].seen == "8 matrices of the model, each of its shape"
    seen = in_llama_worker(
        "tests.helpers.adapters:with_adapter",
        tmp_path,
        base=str(base.path("F16")),
        adapter=str(alone.path("LoRA")),
        merged=str(merged.path("F16")),
    )
    assert seen["without"] > 0.02, "the adapter changes something"
    assert seen["with"] < 1e-3, "float16, to which the merged weights are rounded"
    if kind == "plain":
        card = alone.card()
        assert "The LoRA adapter **adapter** of **tiny-austen-4m**" in card
        assert "--lora adapter-LoRA-F32.gguf" in card
        assert "| adapter of | tiny-austen-4m |" in card
        planned = autoquant.plan("gguf", folder, adapter_only=True)
        assert 0.8 * alone.artifacts[0].bytes < planned.items[0].bytes < alone.artifacts[0].bytes
        with pytest.raises(InputError, match="an adapter alone cannot be run"):
            alone.evaluate()


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("dora", {}, "DoRA's magnitudes of .*q_proj, which is not written into adapter files"),
        ("head", {}, "the whole weight of lm_head, which .* Merge it: leave adapter_only out"),
        ("embedding", {}, r"the whole weight of model\.embed_tokens, which"),
        ("plain", {"types": "Q8_0"}, "types: an adapter alone has none; leave types out"),
        ("plain", {"evaluate": "on"}, "an adapter alone cannot be run"),
    ],
)
def test_what_an_adapter_file_cannot_hold_is_said_at_once(
    kind: str, values: dict[str, Any], said: str, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapter(**KINDS[kind])
    with pytest.raises(InputError, match=said):
        autoquant.gguf(folder, adapter_only=True, out=tmp_path / "out", **values)
    with pytest.raises(InputError, match="is no LoRA adapter"):
        autoquant.gguf("demo", adapter_only=True, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
