"""GGUF files by their weights, and importance matrices by transformers, beside llama.cpp's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant import pipeline
from autoquant.backends.llamacpp import converter
from autoquant.backends.llamacpp.taking import taking
from autoquant.core.bundled import MODEL
from autoquant.core.errors import CheckFailed, InputError, ProcessFailed
from autoquant.display import engines, tables
from autoquant.evaluate import planning
from autoquant.evaluate.evaluator import Evaluator
from autoquant.result import Result
from autoquant.runtime import process
from autoquant.source import resolve
from bench import importance
from tests.gguf.conftest import QUICK
from tests.workers import in_llama_worker

# permuted rows, experts stacked and fused, transposed matrices, norms with 1 added
ARCHITECTURES = (
    "gemma3_text",
    "llama",
    "mixtral_old",
    "gpt_oss",
    "gpt2",
    "falcon",
    "phi3",
    "qwen35_text",
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_the_converter_does_is_undone(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    in_llama_worker("tests.helpers.gguf_weights:make", tmp_path, name=name, folder=str(folder))
    made = autoquant.gguf(folder, types=["F32", "Q8_0"], out=tmp_path / "out", **QUICK)
    seen = in_llama_worker(
        "tests.helpers.gguf_weights:read_back",
        tmp_path,
        folder=str(folder),
        files={one.type: str(made.path(one.type)) for one in made.artifacts},
        converter=str(converter.locate()),
        taking=taking(resolve(folder)),
    )
    assert seen["F32"]["worst"] == 0, seen["F32"]["name"]
    assert 0 < seen["Q8_0"]["worst"] < 0.01, seen["Q8_0"]["name"]
    for one in seen.values():
        assert one["matrices"] == one["of"], "no matrix is the source's own"
        assert one["in rows"] >= 2, "embeddings and heads are read in pieces"


def test_the_engine_is_one_for_all_files_of_a_table(
    demo: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What llama.cpp computes differs a little: it rounds activations too."""
    types = ["Q8_0", "Q4_K_M"]
    paths = [demo.path(name) for name in types]
    by_llama_cpp = [row for _, row in pipeline.evaluate_files(paths, "demo", chunks=4)]
    monkeypatch.setattr(planning, "SMALL", 0)
    by_weights = [row for _, row in pipeline.evaluate_files([*paths, MODEL], "demo", chunks=4)]
    assert [row.engine for row in by_llama_cpp] == ["transformers", "llama.cpp", "llama.cpp"]
    assert [row.engine for row in by_weights] == [
        "transformers",
        *["transformers, from the weights"] * 2,
        "transformers",
    ]
    assert by_weights[0] == by_llama_cpp[0]
    for one, other in zip(by_llama_cpp[1:], by_weights[1:3], strict=True):
        assert other.perplexity == pytest.approx(one.perplexity, rel=0.01)
    assert 0 < by_weights[1].kl_mean < by_llama_cpp[1].kl_mean < 0.001
    assert by_weights[3].kl_mean < 1e-9
    alone = [row for _, row in pipeline.evaluate_files(paths, "demo", chunks=4)]
    assert by_weights[:3] == alone, "a folder that is measured beside them changes nothing"
    monkeypatch.undo()
    small = pipeline.evaluate_files([*paths, MODEL], "demo", chunks=4)
    assert [row for _, row in small] == by_weights, "nor does it matter how small the model is"
    table = tables.evaluations(small)
    assert engines.BY_WEIGHTS in table
    assert "run by" not in table.splitlines()[0]


def test_where_weights_fail_beside_a_folder_the_table_says_who_ran_what(
    demo: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ProcessFailed("no graph of it")

    real = Evaluator.measure
    monkeypatch.setattr(
        Evaluator,
        "measure",
        lambda self, files, *more, **values: (
            failing() if files[0].get("gguf") else real(self, files, *more, **values)
        ),
    )
    rows = pipeline.evaluate_files([demo.path("Q8_0"), MODEL], "demo", chunks=2)
    table = tables.evaluations(rows)
    assert [line.split()[-1] for line in table.splitlines()[3:5]] == ["llama.cpp", "transformers"]
    assert engines.MIXED in table


def test_a_large_model_is_quantized_and_measured_without_llama_cpp_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its run no unquantized file is written: neither imatrix nor measuring needs one."""
    monkeypatch.setattr(planning, "SMALL", 0)
    values: dict[str, Any] = {"types": ["Q4_K_M", "IQ3_XXS"], "out": tmp_path / "out"}
    values |= {"imatrix": "builtin", "imatrix_chunks": 4, "eval_chunks": 3}
    made = autoquant.gguf("demo", **values)
    assert made.reference is not None
    for one in made.artifacts:
        assert one.evaluation is not None
        assert one.evaluation.engine == "transformers, from the weights"
        assert 0 < one.evaluation.kl_mean < 0.3
    ran = [path.name for path in (made.folder / ".autoquant").rglob("*.gguf")]
    assert [name for name in ran if "F16" in name] == []
    card = " ".join(made.card().split())
    assert "were measured by their weights" in card
    again = autoquant.gguf("demo", **values)
    assert [a.evaluation for a in again.artifacts] == [a.evaluation for a in made.artifacts]


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("output.weight", "lm_head.weight"),
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_a_value_that_is_not_finite_is_refused_by_either_engine(
    tensor: str, named: str, demo: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copy(demo.path("Q8_0"), tmp_path / "spoiled.gguf")
    in_llama_worker("tests.helpers.gguf_weights:spoil", tmp_path, path=str(path), name=tensor)
    if tensor == "output.weight":  # of others llama.cpp's kernels may make anything
        with pytest.raises(CheckFailed, match="predictions on this text are not finite"):
            pipeline.evaluate_files([path], "demo", chunks=2)
    monkeypatch.setattr(planning, "SMALL", 0)
    with pytest.raises(CheckFailed, match=f"{named} has NaN or Inf values"):
        pipeline.evaluate_files([path], "demo", chunks=2)


def test_shards_are_one_file_and_what_is_missing_is_said(
    demo: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(planning, "SMALL", 0)
    split = autoquant.gguf(
        "demo", types=["Q4_K_M"], split_size="1M", imatrix="none", out=tmp_path / "out", **QUICK
    )
    whole = autoquant.gguf("demo", types=["Q4_K_M"], out=tmp_path / "whole", **QUICK)
    first = split.path("Q4_K_M")
    assert first.name.endswith("-00001-of-00003.gguf")
    rows = pipeline.evaluate_files([first, whole.path("Q4_K_M")], "demo", chunks=2)
    assert rows[1][1] == rows[2][1]
    rows = pipeline.evaluate_files([first], "demo-small", chunks=2)
    assert rows[1][1].engine == "llama.cpp"
    assert "; llama.cpp runs the files instead" in caplog.text
    next(first.parent.glob("*-00002-of-*")).unlink()
    with pytest.raises(InputError, match="is one of 3 shards, and .*-00002-of-00003.gguf is not"):
        pipeline.evaluate_files([first], "demo", chunks=2)


def test_a_wrong_conversion_is_found_where_weights_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp runs a chunk of it: here it is made to answer as another model does."""
    monkeypatch.setattr(planning, "SMALL", 0)
    monkeypatch.setattr("autoquant.evaluate.conversion.WRONG", -1.0)
    with pytest.raises(
        CheckFailed, match="by its weights, and .* when llama.cpp runs it: the conv"
    ):
        autoquant.gguf("demo", types=["Q8_0"], eval_chunks=2, out=tmp_path / "out")


def test_a_killed_measurement_goes_on_with_the_file_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "SMALL", 0)
    values: dict[str, Any] = {"types": ["Q8_0", "Q4_K_M"], "eval_chunks": 2}
    wanted = autoquant.gguf("demo", **values, out=tmp_path / "whole")
    real = process.call

    def call(target: str, /, **kwargs: Any) -> Any:
        if target.endswith(":by_blocks"):
            real(target, **{**kwargs, "files": kwargs["files"][:1]})
            raise KeyboardInterrupt
        return real(target, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr("autoquant.runtime.process.call", call)
        with pytest.raises(KeyboardInterrupt):
            autoquant.gguf("demo", **values, out=tmp_path / "out")
    states = list((tmp_path / "out" / ".autoquant" / "states").glob("*.npy"))
    assert len(states) == 1
    before = states[0].stat().st_mtime_ns
    seen: list[int] = []

    def watched(target: str, /, **kwargs: Any) -> Any:
        if target.endswith(":by_blocks"):
            seen.append(states[0].stat().st_mtime_ns)
        return real(target, **kwargs)

    monkeypatch.setattr("autoquant.runtime.process.call", watched)
    made = autoquant.gguf("demo", **values, out=tmp_path / "out")
    assert seen == [before]
    assert not states[0].parent.exists()
    assert [a.evaluation for a in made.artifacts] == [a.evaluation for a in wanted.artifacts]


@pytest.mark.parametrize(
    ("name", "single", "entries", "rows"),
    [
        ("demo", False, 28, 28),
        ("demo", True, 28, 28),
        ("mixtral", False, 16, 30),
        ("mixtral", True, 16, 30),
        ("phi3", False, 8, 8),  # queries, keys and values are one matrix, gate and up another
        ("gpt2", False, 8, 8),  # the first of them too, and all are transposed
        ("qwen3_next", False, 48, 110),  # the converter cuts and joins projections
    ],
)
def test_importance_matrices_are_llama_cpps(
    name: str, single: bool, entries: int, rows: int, tmp_path: Path
) -> None:
    """Experts are compared where they were sent as many tokens."""
    model = name
    if name != "demo":
        model = str(tmp_path / "model")
        in_llama_worker("tests.helpers.gguf_weights:make", tmp_path, name=name, folder=model)
    seen = importance.collected(
        model,
        tmp_path,
        chunks=6,
        length=256,
        pre_tokenizer=QUICK["pre_tokenizer"],
        plan={"single": single, "ahead": False},
    )
    assert seen.unlike == []
    assert len(seen.entries) == entries
    assert max(seen.entries.values()) < 1e-3
    assert seen.rows >= rows
