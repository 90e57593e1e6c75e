"""What a model takes of memory, against the sizes of buffers that llama.cpp logs on loading it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import autoquant
from autoquant.core.errors import InputError
from autoquant.runtime import preload
from autoquant.sizing import asked, memory
from autoquant.source import resolve
from tests.workers import in_llama_worker, in_worker

MIB = 1 << 20
ARCHITECTURES = [
    "llama",
    "falcon",  # one head of keys and values
    "gemma2",  # every second layer has a sliding window
    "gemma3n_text",  # layers that take other layers' keys and values
    "gemma4_text",  # heads of another size in layers that see everything
    "gpt_oss",
    "deepseek_v3",  # latent attention
    "qwen3_next",  # linear attention, experts
    "qwen35_text",
    "lfm2",  # short convolutions
    "mamba",
    "mamba2",
]
Made = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A tiny random model, and its Q8_0 file."""
    work = tmp_path_factory.mktemp("models")

    def make(name: str) -> tuple[Path, Path]:
        folder = work / name
        if not folder.is_dir():
            in_worker("bench.cases.architectures:make", work, name=name, folder=str(folder))
            options = {"types": ["Q8_0"], "evaluate": "off", "pre_tokenizer": "gpt-2"}
            autoquant.gguf(folder, out=work / f"{name}-GGUF", **options)
        return folder, next((work / f"{name}-GGUF").glob("*.gguf"))

    return make


def near(value: int, logged: float) -> bool:
    """Within 5 %, and the hundredth of a MiB to which llama.cpp's log is rounded."""
    return abs(value / MIB - logged) <= max(0.05 * logged, 0.015)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_header_says_what_llama_cpp_takes_on_loading(
    name: str, made: Made, tmp_path: Path
) -> None:
    folder, file = made(name)
    source, config = resolve(folder), json.loads((folder / "config.json").read_text())
    for context, kv_type in ((512, "f16"), (4096, "f16"), (4096, "q8_0")):
        logged = in_llama_worker(
            "tests.helpers.buffers:logged",
            tmp_path,
            path=str(file),
            context=context,
            kv_type=kv_type,
        )
        with preload.kept():
            said = asked.ask(source, context, kv_type, ["Q8_0"], "gpt-2")
        assert said.beside.asked
        assert near(said.beside.cache, logged["KV"])
        assert near(said.beside.state, logged["RS"])
        assert near(said.beside.compute, logged["compute"])
        (planned,) = said.files
        assert planned.bytes == file.stat().st_size
        assert near(planned.bytes, logged["model"])
        # without llama.cpp the cache is as exact; the compute buffer is an estimate
        reckoned = memory.beside(config, context, kv_type)
        assert near(reckoned.cache, logged["KV"])
        assert near(reckoned.state, logged["RS"])
        assert not reckoned.asked


def config(**more: object) -> dict[str, object]:
    """Llama-3.1-8B's."""
    return {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        **more,
    }


def test_figures_of_published_models() -> None:
    """As people know them: a GiB for Llama-3.1-8B at 8192 tokens, 17 times less for DeepSeek-V3."""
    assert memory.beside(config(), 8192).cache == 1 << 30
    assert memory.beside(config(), 8192, "q8_0").cache == (1 << 30) * 17 // 32
    assert memory.beside(config(), 8100).cache == 1 << 30, "cells come by 256"
    # llama.cpp says 124.5 and 236.6 MiB for these shapes
    assert memory.beside(config(), 8192).compute == pytest.approx(124.5 * MIB, rel=0.1)
    assert memory.beside(config(), 131072).compute == pytest.approx(236.6 * MIB, rel=0.1)
    gemma2 = config(model_type="gemma2", num_hidden_layers=2, head_dim=256, sliding_window=4096)
    assert memory.beside(gemma2, 8192).cache == (8192 + 4096 + 512) * 2 * 2 * 8 * 256
    latent = config(num_hidden_layers=61, kv_lora_rank=512, qk_rope_head_dim=64)
    assert memory.beside(latent, 4096).cache == 61 * 4096 * (512 + 64) * 2
    seen = memory.beside({"text_config": config()}, 8192)
    assert seen == memory.beside(config(), 8192), "a model that sees"
    mamba = memory.beside({**config(), "model_type": "mamba", "state_size": 16}, 8192)
    assert mamba.cache == 0
    assert mamba == memory.beside({**config(), "model_type": "mamba", "state_size": 16}, 512)


def test_a_config_without_sizes_is_refused() -> None:
    with pytest.raises(InputError, match=r"no number of layers \(num_hidden_layers, "):
        memory.beside({"hidden_size": 64}, 512)
