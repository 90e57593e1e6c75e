"""Importance matrices: llama.cpp's layout, the activations that transformers computes, mixtures of
experts too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import autoquant
from autoquant.core.errors import InputError
from autoquant.core.files import sha256_of
from autoquant.result import Result
from tests.gguf.conftest import QUICK
from tests.workers import in_llama_worker


def test_imatrix_is_reusable_and_belongs_to_its_model(
    demo: Result, tmp_path: Path, model: Callable[..., Path]
) -> None:
    again = autoquant.gguf(
        "demo",
        types=["IQ3_XXS"],
        imatrix=str(demo.folder / "imatrix.gguf"),
        out=tmp_path / "again",
        **QUICK,
    )
    assert sha256_of(again.path("IQ3_XXS")) == sha256_of(demo.path("IQ3_XXS"))
    other = in_llama_worker(
        "tests.helpers.models:random_model",
        tmp_path,
        folder=str(tmp_path / "wide"),
        hidden_size=512,
    )
    with pytest.raises(InputError, match="made for another model"):
        autoquant.gguf(
            other,
            types=["IQ3_XXS"],
            imatrix=str(demo.folder / "imatrix.gguf"),
            out=tmp_path / "other",
            **QUICK,
        )
    with pytest.raises(InputError, match="no importance matrix"):
        autoquant.gguf(
            "demo",
            types=["Q4_K_M"],
            imatrix=str(demo.path("Q8_0")),
            out=tmp_path / "notone",
            **QUICK,
        )


def test_given_matrices_are_told_by_content_and_looked_at_before_work(
    demo: Result, tmp_path: Path
) -> None:
    """llama.cpp's older format gives the same file to the last bit; a name says nothing."""
    own = demo.folder / "imatrix.gguf"
    made = in_llama_worker(
        "tests.helpers.gguf:imatrices", tmp_path, path=str(own), folder=str(tmp_path / "given")
    )

    def quantized(name: str, type: str = "IQ3_XXS") -> Result:
        out = tmp_path / f"{name}-{type}"
        return autoquant.gguf("demo", types=[type], imatrix=made[name], out=out, **QUICK)

    for name in ("legacy.dat", "gguf.dat", "model.imatrix"):
        assert sha256_of(quantized(name).path("IQ3_XXS")) == sha256_of(demo.path("IQ3_XXS"))
    with pytest.raises(InputError, match=r"has nothing for 6 of 28 matrices, such as blk\.3"):
        quantized("partial.gguf")
    some = quantized("partial.gguf", "Q4_K_M").artifacts[0]
    assert "the importance matrix has nothing for 7 of the matrices" in str(some.notes)
    with pytest.raises(InputError, match=r"made for another model: it has blk\.4\.attn_q"):
        quantized("absent.gguf")
    with pytest.raises(InputError, match=r"has NaN or Inf values for blk\."):
        quantized("nan.gguf")
    with pytest.raises(InputError, match="is damaged: the file ends at byte"):
        quantized("cut.dat")
    assert (
        sorted(path.name for path in tmp_path.glob("*-IQ3_XXS/*.gguf"))
        == ["tiny-austen-4m-IQ3_XXS.gguf"] * 3
    )


def test_imatrix_has_llama_cpps_layout(demo: Result, tmp_path: Path) -> None:
    seen = in_llama_worker(
        "tests.helpers.gguf:imatrix_layout", tmp_path, path=str(demo.folder / "imatrix.gguf")
    )
    assert seen["type"] == "imatrix"
    assert seen["chunks"] == 20
    assert seen["chunk_size"] == 256
    assert seen["datasets"] == ["the built-in text (English novels)"]
    assert len(seen["tensors"]) == 2 * 7 * 4
    assert seen["tensors"]["blk.0.ffn_down.weight.in_sum2"] == [768, 1]
    assert seen["counts"]["blk.0.ffn_down.weight.counts"] == [20 * 256]


def test_imatrix_equals_the_activations_transformers_computes(demo: Result, tmp_path: Path) -> None:
    """The sums of squares, recomputed with forward hooks on the source model."""
    error = in_llama_worker(
        "tests.helpers.gguf:imatrix_against_transformers",
        tmp_path,
        imatrix=str(demo.folder / "imatrix.gguf"),
        chunks=20,
    )
    assert error["tensors"] == 28
    assert error["worst"] < 0.01


def test_mixture_of_experts(tmp_path: Path) -> None:
    """Experts get a row of sums each; a quantized mixture loads and runs."""
    folder = in_llama_worker(
        "tests.helpers.models:random_mixture", tmp_path, folder=str(tmp_path / "moe")
    )
    result = autoquant.gguf(
        folder,
        types=["Q4_K_M", "IQ3_XXS"],
        imatrix="builtin",
        imatrix_chunks=3,
        out=tmp_path / "out",
        **QUICK,
    )
    seen = in_llama_worker(
        "tests.helpers.gguf:imatrix_layout", tmp_path, path=str(result.folder / "imatrix.gguf")
    )
    assert seen["tensors"]["blk.0.ffn_down_exps.weight.in_sum2"] == [512, 4]
    assert sum(seen["counts"]["blk.0.ffn_down_exps.weight.counts"]) == 3 * 256 * 2
    assert {a.type for a in result.artifacts} == {"Q4_K_M", "IQ3_XXS"}
