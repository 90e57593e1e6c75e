"""The arithmetic of the metrics, and the protocol of the tokens."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import autoquant
from autoquant import pipeline as run
from autoquant.comparison import Comparison
from autoquant.core.bundled import CALIBRATION_TEXT, EVALUATION_TEXT
from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.core.errors import InputError
from autoquant.evaluate import paired
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
    assert row.kl_error == pytest.approx(kl / 2, rel=1e-5)
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
    # by its weights, as the folder beside it; llama.cpp rounds activations too
    assert known.kl_mean - 0.0005 < rows[1][1].kl_mean < known.kl_mean
    assert rows[2][1].kl_mean < 1e-9, "the model against itself"
    assert rows[2][1].agreement == 1.0
    assert started == ["autoquant.evaluate.passes:by_blocks"] * 2
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
    with pytest.raises(InputError, match=r"different texts. Measure both alike: .evaluate\(text=…"):
        again.difference("Q8_0", "Q8_0", demo)
    assert again.difference("Q2_K", "Q8_0").better == "Q8_0"
    assert demo.difference("Q2_K", "Q8_0").better == "Q8_0", "what it was measured on before stays"


def test_the_error_of_a_difference_is_that_of_chunks_or_of_tokens() -> None:
    """Whichever is larger: by hand, of two chunks of two tokens."""
    alike = np.array([[0.1, 0.1], [0.3, 0.3]])  # within a chunk: two chunks are two observations
    assert paired.standard_error(alike) == pytest.approx(np.std([0.1, 0.3], ddof=1) / math.sqrt(2))
    unlike = np.array([[0.1, 0.3], [0.3, 0.1]])  # chunks have the same sum: no error by chunk
    plain = np.std([0.1, 0.3, 0.3, 0.1], ddof=1) / 2
    assert paired.standard_error(unlike) == pytest.approx(plain)
    assert paired.standard_error(unlike[:1]) == pytest.approx(0.1), "of one chunk, by token"


def test_the_bundled_models_differ_though_their_perplexities_overlap(tmp_path: Path) -> None:
    found = []
    for name in ("demo", "demo-small"):
        (tmp_path / name).mkdir()
        ((_, row),) = run.evaluate_files([], name, chunks=20, keep=tmp_path / name)
        found.append(paired.Scored(name, row, tmp_path / name))
    larger, smaller = found
    assert larger.row is not None
    assert smaller.row is not None
    apart = smaller.row.perplexity - larger.row.perplexity
    assert 0 < apart < larger.row.perplexity_error + smaller.row.perplexity_error
    one, other = paired.difference(larger, smaller), paired.difference(smaller, larger)
    assert one.z == pytest.approx(2.8, abs=0.2)
    assert other.z == -one.z
    assert one.mean == pytest.approx(
        math.log(smaller.row.perplexity / larger.row.perplexity), abs=1e-5
    )
    assert one.verdict == other.verdict == "demo is better"
    assert one.tokens == 20 * 127
    values = np.load(tmp_path / "demo" / larger.row.log_probabilities)
    assert (values.dtype, values.shape) == (np.float32, (20, 127))
    assert math.exp(-values.mean()) == pytest.approx(larger.row.perplexity, rel=1e-5)


def test_files_of_a_run_are_compared_token_by_token(demo: Result) -> None:
    again = autoquant.load(demo.folder)
    itself = again.difference("Q4_K_M", "Q4_K_M", demo)
    assert (itself.mean, itself.error, itself.z, itself.better) == (0, 0, 0, "")
    assert itself.verdict == "no difference beyond chance"
    worse = again.difference("Q2_K", "Q4_K_M")
    assert worse.z < -2
    assert str(worse).startswith("Q2_K against Q4_K_M: -0.")
    assert str(worse).endswith(": Q4_K_M is better")
    assert again.difference("Q2_K").other == "unquantized"
    assert again.difference("F16").better == ""
    with pytest.raises(InputError, match="this run has no 'Q5_0'"):
        again.difference("Q5_0")


def test_a_comparison_says_which_of_two_files_is_better_and_which_of_many(demo: Result) -> None:
    def only(*types: str) -> Result:
        return replace(demo, artifacts=tuple(one for one in demo.artifacts if one.type in types))

    two = Comparison({"fine": only("Q8_0"), "coarse": only("Q2_K")})
    assert "fine Q8_0 is better" in str(two)
    assert "fine Q8_0 is better" in two._repr_html_()
    assert "By KL divergence fine Q8_0 is nearer to the original." in str(two)
    same = Comparison({"one": only("Q8_0"), "other": only("Q8_0")})
    assert "Perplexity does not tell the two apart" in str(same)
    assert "nearer to the original" not in str(same)
    many = Comparison({"fine": only("Q8_0", "F16"), "coarse": only("Q2_K", "Q4_K_M")})
    assert " is better" not in str(many), "a table of its own"
    table = many.differences()
    best = min(demo.artifacts, key=lambda one: one.evaluation.perplexity if one.evaluation else 0)
    assert [one.other.split()[1] for one in table] == [best.type] * 3
    assert str(table).splitlines()[-1] == paired.ABOUT
    assert table._repr_html_().count("<tr>") == 1 + 3
    with pytest.raises(InputError, match="1 file: two are compared"):
        Comparison({"fine": only("Q8_0")}).differences()


def test_what_cannot_be_compared_is_refused(demo: Result, tmp_path: Path) -> None:
    whole = demo._scored("Q8_0", "one")
    assert whole.row is not None

    def like(**changes: object) -> paired.Scored:
        return replace(whole, name="other", row=replace(whole.row, **changes))  # type: ignore[type-var]

    for other, said in (
        (replace(whole, name="other", row=None), "other was not measured"),
        (like(text_sha256="x"), "one and other were measured on different texts"),
        (like(tokens=127), "measured on 3,810 and 127 predictions"),
        (like(tokens_sha256="x"), "one and other have different tokenizers"),
        (like(tokens_sha256="", log_probabilities=""), "other: no log-probabilities .* again"),
        (replace(whole, name="other", folder=tmp_path), r"load\(folder\).evaluate\(\)"),
    ):
        with pytest.raises(InputError, match=said):
            paired.difference(whole, other)
    lost = replace(demo, folder=tmp_path)
    two = {name: replace(lost, artifacts=lost.artifacts[:1]) for name in ("a", "b")}
    assert "is better" not in str(Comparison(two)), "an old run shows itself as it did"


def test_a_run_of_an_earlier_version_is_measured_again_for_its_log_probabilities(
    demo: Result, tmp_path: Path
) -> None:
    import json

    copy = tmp_path / "copy"
    shutil.copytree(demo.folder, copy)
    journal = copy / ".autoquant" / "journal.json"
    data = json.loads(journal.read_text())
    for name, step in data["steps"].items():
        rows = [step["facts"]] if name.startswith("evaluate ") else []
        if name == "result":
            rows = [step["facts"]["reference"]]
            rows += [one["evaluation"] for one in step["facts"]["artifacts"]]
        for row in rows:
            for new in ("kl_error", "difference_error", "tokens_sha256", "log_probabilities"):
                del row[new]
        step["outputs"] = [] if name.startswith("evaluate ") else step["outputs"]
    journal.write_text(json.dumps(data))
    shutil.rmtree(copy / ".autoquant" / "log-probabilities")
    old = autoquant.load(copy)
    with pytest.raises(InputError, match="measured by an earlier version"):
        old.difference("Q8_0", "Q2_K")
    new = old.evaluate(chunks=30)
    assert new.difference("Q8_0", "Q2_K").better == "Q8_0"
    assert new.difference("Q8_0", "Q8_0", demo).mean == pytest.approx(0, abs=1e-3)


def test_the_command_sets_files_against_the_best_of_them(
    demo: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    from autoquant.cli import main

    files = [str(demo.path(name)) for name in ("Q2_K", "Q8_0")]
    assert main(["evaluate", *files, "--reference", "demo", "--chunks", "30"]) == 0
    said = capsys.readouterr().out
    (line,) = [one for one in said.splitlines() if "Q2_K.gguf  tiny-austen-4m-Q8_0.gguf" in one]
    assert line.endswith("tiny-austen-4m-Q8_0.gguf is better")
    assert paired.ABOUT in said
    assert main(["evaluate", files[0], "--reference", "demo", "--chunks", "30"]) == 0
    assert paired.ABOUT not in capsys.readouterr().out, "one file has nothing to be set against"
