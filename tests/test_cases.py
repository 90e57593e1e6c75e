"""Models and files as people have them: what is refused before any work, and in which words; what
is left out; what is read as if it were in order.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest

import autoquant
from autoquant.backends.llamacpp import converter
from autoquant.core.errors import InputError
from autoquant.methods import METHODS
from autoquant.methods.base import AnyMethod
from autoquant.runtime import process
from autoquant.source import fetch, resolve, structure
from bench.cases import altered, configured, sources

ORDINARY = METHODS["hqq"]
REFUSED = {
    "head_missing": r"lacks 1 tensor that its architecture needs: lm_head\.weight",
    "tensor_missing": r"lacks 1 tensor .* model\.layers\.2\.mlp\.up_proj\.weight",
    "classifier": r"\(LlamaForCausalLM\) lacks 1 tensor .* lm_head\.weight",
    "shape_wrong": r"up_proj\.weight has shape \[512, 256\], but by config\.json .* \[768, 256\]",
    "vocabulary_stale": r"\[2112, 256\], but by config\.json it is \[2048, 256\] \(and 1 more\)",
    "adapter_inside": "has an adapter that is not merged into the model's own weights",
    "wrapped": "the model was saved from within peft's wrapper",
    "adapter_alone": "is an adapter of somebody/something, which cannot be had: .*base=",
    "shard_missing": r"lacks 1 of its 2 shards: model-00002-of-00002\.safetensors",
    "two_checkpoints": r"several weight files, but neither .* ema\.safetensors, last\.safetensors",
    "consolidated": "in Mistral's own layout only",
    "gguf_only": r"model-Q8_0\.gguf is no whole GGUF file: it ends within its own head",
    "context_text": 'max_position_embeddings is "256", where a whole number belongs',
    "context_null": "max_position_embeddings is null, where a whole number belongs",
    "tokenizer_missing": "has no tokenizer",
    "tokenizer_of_its_own": "Tokenizers that need the model's own code are not offered",
    "own_code_unknown": "does not know the architecture 'fancyllama'; nearest of",
    "encoder": "is a BertModel, which is no causal language model",
}
NOTED = {
    "head_tied": r"lm_head\.weight: not read, for config\.json ties the output head",
    "draft_block": r"left out: 9 tensors of a draft block .* \(mtp\.layers\.0",
    "pruned": r"left out: 9 tensors of 1 block beyond the 3 that config\.json counts",
    "rotary_frequencies": "left out: 1 tensor of rotary frequencies",
    "token_without_row": r"token '\[PAD\]' has id 2048, and the embeddings have 2048 rows",
}
IN_ORDER = (
    "prefix_missing",
    "adapter_beside",
    "double_precision",
    "index_without_metadata",
    "index_null_metadata",
    "index_missing",
    "named_otherwise",
    "one_shard",
    "subfolder",
    "dtype_auto",
    "config_marked",
    "tokenizer_config_marked",
    "own_code_known",
    "several_templates",
    "several_ends",
)
LATER = ("not_finite", "beyond_float16")  # found when the values are read


def looked_at(name: str, folder: Path, method: AnyMethod = ORDINARY) -> list[str]:
    """What a look at a case says before any work."""
    source = resolve(sources.make(name, folder))
    options = method.resolve_defaults(source, method.Options())
    method.check(source, options)
    assert len(structure.structure(source).layers) >= 3 * 7
    return structure.notes_on(source)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=REFUSED[name]):
        looked_at(name, tmp_path / name)
    assert not Path("CODE_RAN").exists()


@pytest.mark.parametrize("name", NOTED)
def test_what_is_no_part_of_the_model_is_named(name: str, tmp_path: Path) -> None:
    (note,) = looked_at(name, tmp_path / name)
    assert re.search(NOTED[name], note), note


@pytest.mark.parametrize("name", IN_ORDER)
def test_read_as_if_it_were_in_order(name: str, tmp_path: Path) -> None:
    assert looked_at(name, tmp_path / name) == []
    assert not Path("CODE_RAN").exists()


def test_values_are_looked_at_before_any_file_is_made(tmp_path: Path) -> None:
    """In rows that hardly matter, too; by every method, and GGUF for what its types can hold."""
    folder, out = sources.make("not_finite", tmp_path / "nan"), tmp_path / "out"
    gguf = functools.partial(autoquant.gguf, pre_tokenizer="gpt-2")
    for make in (gguf, autoquant.hqq, autoquant.w8a8, autoquant.gptq):
        with pytest.raises(InputError, match=r"embed_tokens\.weight has NaN or Inf.*in row 2001"):
            make(folder, out=out)
    large = sources.make("beyond_float16", tmp_path / "large")
    with pytest.raises(InputError, match=r"the value 100000 \(first in row 2001.*precision bf16"):
        autoquant.gguf(large, types="F16,Q8_0", pre_tokenizer="gpt-2", out=out)
    assert not list(tmp_path.glob("out*/*.gguf"))
    made = autoquant.gguf(
        large, types="Q4_K_M", pre_tokenizer="gpt-2", evaluate="off", out=tmp_path / "made"
    )
    assert made.artifacts[0].type == "Q4_K_M"


def test_what_lies_beside_the_weights_is_kept(tmp_path: Path) -> None:
    """Every chat template and processor file in the folder that is written; every template and
    every token that ends generation in a GGUF file.
    """
    folder = sources.make("several_templates", tmp_path / "model")
    configured.several_ends(folder)
    altered.config(folder, "preprocessor_config.json", image_size=32)
    made = autoquant.hqq(folder, evaluate="off", out=tmp_path / "hqq")
    names = {stored.name for stored in made.artifacts[0].files}
    assert {"additional_chat_templates/tool_use.jinja", "preprocessor_config.json"} <= names
    kept = tmp_path / "hqq" / "additional_chat_templates" / "tool_use.jinja"
    beside = folder / "additional_chat_templates" / "tool_use.jinja"
    assert kept.read_bytes() == beside.read_bytes()
    autoquant.gguf(
        folder, types="Q8_0", pre_tokenizer="gpt-2", evaluate="off", out=tmp_path / "gguf"
    )
    for key, kind, wanted in (
        ("chat_template.tool_use", "str", beside.read_text(encoding="utf-8")),
        ("ggml.eos_token_id", "u32", 2),
        ("ggml.eot_token_id", "u32", 5),
    ):
        found = process.call(
            "tests.helpers.gguf:value",
            log=tmp_path / "log",
            env=converter.environment(converter.locate()),
            path=str(tmp_path / "gguf" / "model-Q8_0.gguf"),
            key=f"tokenizer.{key}",
            kind=kind,
        )
        assert found == wanted, key


def test_every_case_has_its_outcome() -> None:
    assert sorted([*REFUSED, *NOTED, *IN_ORDER, *LATER]) == sorted(sources.CASES)


def test_gguf_has_a_row_for_every_token(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"token '\[PAD\]' has id 2048.* resize the embeddings"):
        looked_at("token_without_row", tmp_path / "model", METHODS["gguf"])


def test_what_stands_for_a_folder_has_its_files_and_none_of_its_trouble(tmp_path: Path) -> None:
    """Links to the weights; the small files without mark, code and adapter."""
    folder = sources.make("adapter_beside", tmp_path / "model")
    configured.several_templates(folder)
    configured.own_code_known(folder)
    altered.mark(folder / "tokenizer_config.json")
    found = resolve(folder)
    assert found.given == folder
    assert found.folder != folder
    assert not list(found.folder.glob("adapter*"))
    assert (found.folder / "model.safetensors").resolve() == folder / "model.safetensors"
    assert "auto_map" not in json.loads((found.folder / "config.json").read_text())
    json.loads((found.folder / "tokenizer_config.json").read_text())
    snapshot = fetch(found)
    assert "additional_chat_templates/tool_use.jinja" in snapshot.files
    assert resolve(folder).folder == found.folder, "made once"
    with pytest.raises(InputError, match="inside the model's own folder"):
        autoquant.hqq(folder, out=folder / "out")
