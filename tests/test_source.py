"""What can be known and refused from a model folder's headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from autoquant import source
from autoquant.core import bundled
from autoquant.core.errors import InputError
from autoquant.source import headers


def test_the_bundled_model() -> None:
    found = source.resolve("demo")
    assert (found.id, found.architecture, found.dtype, found.license, found.language) == (
        "tiny-austen-4m",
        "LlamaForCausalLM",
        "F16",
        "apache-2.0",
        ("en",),
    )
    assert found.parameters == 4_196_608
    assert found.bytes == (bundled.MODEL / "model.safetensors").stat().st_size
    assert (
        found.vocab_size,
        found.context,
        found.chat_template,
        found.pickle,
        found.quantized,
    ) == (2048, 256, False, False, None)


def test_the_hub_is_asked_only_where_it_may_be() -> None:
    """The tests set HF_HUB_OFFLINE; tests/hub has the rest."""
    with pytest.raises(
        InputError,
        match=r"cannot be reached \(HF_HUB_OFFLINE is set\), and owner/model is not in the cache",
    ):
        source.resolve("owner/model")


def test_damage_is_found_without_reading_the_weights(
    model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no such folder"):
        source.resolve(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="not a model folder: it has no config.json"):
        source.resolve(empty)
    (empty / "config.json").write_text('{"architectures": ["X"]}')
    with pytest.raises(InputError, match="no weights"):
        source.resolve(empty)
    broken = model("broken")
    (broken / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        source.resolve(broken)
    with pytest.raises(InputError, match="names no architecture"):
        source.resolve(model("nameless", architectures=[]))
    cut = model("cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged or cut short"):
        source.resolve(cut.parent)
    garbled = model("garbled") / "model.safetensors"
    garbled.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="damaged"):
        source.resolve(garbled.parent)


def test_shards(model: Callable[..., Path]) -> None:
    folder = model("sharded")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = headers.safetensors_header(folder / "model-00001-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match=r"lacks 1 of its 2 shards: model-00002-of-00002\.safe"):
        source.resolve(folder)
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert source.resolve(folder).parameters == 4_196_608
    index.write_text(
        json.dumps(
            {"weight_map": {**weight_map, "lost.weight": "model-00002-of-00002.safetensors"}}
        )
    )
    with pytest.raises(
        InputError, match="lacks 1 of its 2 shards: model-00002-of-00002.safetensors"
    ):
        source.resolve(folder)
    index.write_text(
        json.dumps(
            {"weight_map": {**weight_map, "lost.weight": "model-00001-of-00002.safetensors"}}
        )
    )
    with pytest.raises(InputError, match="lacks the tensor lost.weight"):
        source.resolve(folder)


def test_the_snapshot_hash_covers_every_file(model: Callable[..., Path]) -> None:
    folder = model("one")
    before = source.fetch(source.resolve(folder)).sha256
    (folder / "notes.py").write_text("print('code is not read')")
    assert source.fetch(source.resolve(folder)).sha256 == before
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    assert source.fetch(source.resolve(folder)).sha256 != before


def test_no_licence_is_invented(model: Callable[..., Path]) -> None:
    folder = model("bare")
    (folder / "README.md").unlink()
    found = source.resolve(folder)
    assert found.license is None
    assert found.language == ()
