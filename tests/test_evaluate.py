"""The arithmetic of the metrics, and the protocol of the tokens."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from autoquant import pipeline as run
from autoquant.core.bundled import CALIBRATION_TEXT, EVALUATION_TEXT
from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.core.errors import InputError
from autoquant.evaluate.scoring import Measure
from autoquant.result import Result
from autoquant.runtime import process


def test_metrics_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log() + 5  # logits, not normalized
    q = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]).log() - 3
    measure = Measure()
    measure.add(q, [0, 1], p)
    row = measure.result("test", "hash")
    kl = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert row.kl_mean == pytest.approx(kl / 2, rel=1e-5)
    assert row.kl_median == pytest.approx(kl / 2, rel=1e-5)
    assert row.agreement == 0.5
    nll = [math.log(4), -math.log(0.8)]
    assert row.perplexity == pytest.approx(math.exp(sum(nll) / 2), rel=1e-5)
    assert row.perplexity_error == pytest.approx(row.perplexity * np.std(nll), rel=1e-5)
    assert row.tokens == 2


def test_vocabularies_of_different_lengths_are_compared_where_they_overlap() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25]]).log()
    q = torch.cat([torch.tensor([[0.25, 0.5, 0.25]]).log(), torch.tensor([[9.0]])], dim=1)
    measure = Measure()
    measure.add(q, [0], p)
    row = measure.result("test", "hash")
    assert row.kl_mean == pytest.approx(0.25 * math.log(2), rel=1e-5)


def test_tokens_are_the_source_tokenizers_in_whole_chunks(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    text = EVALUATION_TEXT.read_text()[:20_000]
    chunks = process.call(
        "autoquant.evaluate.scoring:tokenize",
        log=tmp_path / "log",
        folder=str(DEMO_FOLDER),
        parts={"": [text]},
        chunks=5,
        context=256,
    )["chunks"]
    ids = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json")).encode(text).ids
    assert chunks == [ids[i * 256 : (i + 1) * 256] for i in range(5)]
    with pytest.raises(InputError, match="at least one chunk of 256 is needed"):
        process.call(
            "autoquant.evaluate.scoring:tokenize",
            log=tmp_path / "log",
            folder=str(DEMO_FOLDER),
            parts={"": ["Too short."]},
            chunks=5,
            context=256,
        )


def test_a_bos_token_starts_every_chunk(tmp_path: Path) -> None:
    """For tokenizers that put one, as llama.cpp's perplexity tool does."""
    import json
    import shutil

    folder = tmp_path / "bos"
    shutil.copytree(DEMO_FOLDER, folder)
    spec = json.loads((folder / "tokenizer.json").read_text())
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, a],
        "pair": [a, b],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    chunks = process.call(
        "autoquant.evaluate.scoring:tokenize",
        log=tmp_path / "log",
        folder=str(folder),
        parts={"": [EVALUATION_TEXT.read_text()[:20_000]]},
        chunks=3,
        context=128,
    )["chunks"]
    assert [chunk[0] for chunk in chunks] == [1, 1, 1]
    assert all(1 not in chunk[1:] for chunk in chunks)


def test_calibration_and_held_out_text_share_nothing() -> None:
    calibration = CALIBRATION_TEXT.read_text()
    paragraphs = [part for part in EVALUATION_TEXT.read_text().split("\n\n") if len(part) > 200]
    assert len(paragraphs) > 500
    assert not [part for part in paragraphs if part in calibration]


@pytest.mark.slow
def test_any_file_or_folder_can_be_measured(
    demo: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, started = process.call, []
    monkeypatch.setattr(
        "autoquant.runtime.process.call",
        lambda target, /, **kwargs: started.append(target) or real(target, **kwargs),
    )
    rows = run.evaluate_files([demo.path("Q4_K_M"), DEMO_FOLDER], "demo", chunks=30)
    assert [name for name, _ in rows] == [
        "tiny-austen-4m (unquantized)",
        "tiny-austen-4m-Q4_K_M.gguf",
        "tiny-austen-4m",
    ]
    known = next(a.evaluation for a in demo.artifacts if a.type == "Q4_K_M")
    assert known is not None
    assert rows[1][1].kl_mean == pytest.approx(known.kl_mean, rel=0.02)
    assert rows[2][1].kl_mean < 1e-9, "the model against itself"
    assert rows[2][1].agreement == 1.0
    assert started == [
        "autoquant.evaluate.passes:by_blocks",
        "autoquant.evaluate.passes:by_llama_cpp",
    ]
    # tokens and hidden states of the unquantized model are kept from the run before
    with pytest.raises(InputError, match="no such file"):
        run.evaluate_files([tmp_path / "none.gguf"], "demo")


def test_a_crash_in_kernels_for_repacked_weights_is_survived(
    demo: Result, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The crash itself needs a processor that has it: here the worker is made to die instead
    whenever weights would be repacked.
    """
    real, repacked = process.call, []

    def call(target: str, /, **kwargs: object) -> object:
        if target.endswith(":by_llama_cpp"):
            repacked.append(kwargs["repack"])
            if kwargs["repack"]:
                return real("tests.helpers.processes:abort", log=kwargs["log"])  # type: ignore[arg-type]
        return real(target, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("autoquant.runtime.process.call", call)
    rows = run.evaluate_files([demo.path("Q8_0"), demo.path("Q4_K_M")], "demo", chunks=2)
    assert [row.kl_mean < 0.02 for _, row in rows] == [True] * 3
    assert repacked == [True, False, False], "one crash is enough to know"
    assert "trying again without repacked weights" in caplog.text


def test_a_result_can_be_measured_again_on_another_text(demo: Result, tmp_path: Path) -> None:
    import shutil
    from dataclasses import replace

    shutil.copytree(demo.folder, tmp_path / "copy")
    text = tmp_path / "text.txt"
    text.write_text(CALIBRATION_TEXT.read_text()[:60_000])
    again = replace(demo, folder=tmp_path / "copy").evaluate(text=str(text), chunks=10)
    assert again.reference is not None
    assert demo.reference is not None
    assert again.reference.perplexity < 0.8 * demo.reference.perplexity, (
        "the model has seen the calibration text"
    )
    assert again.reference.tokens == 10 * 127
    assert f"{again.reference.perplexity:.3f}" in again.card()
