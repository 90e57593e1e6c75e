"""What is refused on the way to a GGUF file, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.errors import InputError
from tests.gguf.conftest import QUICK
from tests.workers import in_llama_worker


def test_bad_types_are_refused_with_the_nearest_names() -> None:
    with pytest.raises(InputError, match=r"'Q4_KM' is no GGUF type; nearest: .*Q4_K_M"):
        autoquant.gguf("demo", types=["Q4_KM"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"types": ["IQ2_M"]}, "IQ2_M needs an importance matrix"),
        ({"types": []}, "types"),
        ({"tensor_types": ["attn_v"]}, "is no rule"),
        ({"tensor_types": ["attn_(=Q8_0"]}, "no regular expression"),
        ({"output_type": "Q9_K"}, "no tensor type; nearest"),
        ({"split_size": "lots"}, "is no size"),
        ({"precision": "f8"}, "allowed: auto, f16, bf16, f32"),
        ({"types": ["F16"], "pure": True}, "unquantized"),
        ({"imatrix": "/nowhere/text.txt"}, "no such file"),
        ({"imatrix": "/nowhere/im.gguf"}, "no such file"),
        ({"eval_text": "/nowhere/text.txt"}, "no such file"),
        ({"converter": "/nowhere"}, "no such file or folder"),
    ],
)
def test_bad_options_leave_nothing_behind(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        autoquant.gguf(
            "demo", out=tmp_path / "deep" / "out", **{"pre_tokenizer": "gpt-2", **values}
        )
    assert list(tmp_path.iterdir()) == []


def test_unknown_pre_tokenizer_is_refused_with_a_way_on(
    model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(
        InputError,
        match=r"pre-tokenizer of own \(its tokenizer.json says: ByteLevel\).*--pre-tokenizer gpt-2",
    ):
        autoquant.gguf(model("own"), out=tmp_path / "out", evaluate="off")
    with pytest.raises(InputError, match=r"has none called 'gpt2x'"):
        autoquant.gguf("demo", out=tmp_path / "out", evaluate="off", pre_tokenizer="gpt2x")
    assert not (tmp_path / "out").exists()


def test_the_bundled_model_needs_no_pre_tokenizer(tmp_path: Path) -> None:
    result = autoquant.gguf("demo", types=["Q8_0"], evaluate="off", out=tmp_path / "out")
    assert "--pre-tokenizer gpt-2" in result.card(), "the card says what was assumed"


def test_a_wrong_pre_tokenizer_is_found_by_comparing_token_ids(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="token ids differ from the source tokenizer's at token"):
        autoquant.gguf("demo", out=tmp_path / "out", evaluate="off", pre_tokenizer="bloom")
    assert list(tmp_path.iterdir()) == []


def test_unknown_architecture_names_near_ones(model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"'LlamaForCausalLMX'; nearest of the \d+ it knows: .*LlamaForCausalLM"
    ):
        autoquant.gguf(model(architectures=["LlamaForCausalLMX"]), out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_nan_in_the_source_is_found_and_named(model: Callable[..., Path], tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = model()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"up_proj\.weight has NaN or Inf values \(first in row 3"):
        autoquant.gguf(folder, types=["Q4_K_M"], out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_a_rule_for_tensors_that_are_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"tensor_types: 'nosuchtensor' matches none of the model's tensors; some of them:"
            r" .*token_embd.weight"
        ),
    ):
        autoquant.gguf(
            "demo",
            types=["Q4_K_M"],
            tensor_types=["attn_v=Q6_K", "nosuchtensor=Q8_0"],
            out=tmp_path / "out",
            **QUICK,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_will_not_fit_is_refused_before_converting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=2_000_000))
    with pytest.raises(
        InputError, match=r"not enough room on the disk: 0\.003 GB are needed .*0\.002 GB are free"
    ):
        autoquant.gguf("demo", types=["Q4_K_M"], out=tmp_path / "out", **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_pickle_checkpoint_is_refused_and_works_when_opted_in(
    model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = model()
    in_llama_worker("tests.helpers.models:to_pickle", tmp_path, folder=str(folder))
    with pytest.raises(
        InputError, match=r"only pickle weights.*allow_pickle=True \(--allow-pickle\)"
    ):
        autoquant.gguf(folder, out=tmp_path / "out", **QUICK)
    result = autoquant.gguf(
        folder,
        types=["Q8_0"],
        allow_pickle=True,
        pre_tokenizer="gpt-2",
        evaluate="on",
        eval_chunks=2,
        out=tmp_path / "out",
    )
    assert result.artifacts[0].evaluation is not None
    assert result.artifacts[0].evaluation.kl_mean < 0.01
