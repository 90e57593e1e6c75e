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
from tests.workers import in_worker

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
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
