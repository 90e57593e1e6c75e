"""The built-in texts: four kinds, three parts that share nothing; and what is told by kind."""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

import autoquant
from autoquant import calibration, cli
from autoquant.calibration import CalibrationOptions
from autoquant.core import bundled, texts
from autoquant.core.bundled import CALIBRATION, EVALUATION, KINDS, MODEL, SENSITIVITY
from autoquant.core.texts import plain
from tests.workers import in_worker

PARTS = (CALIBRATION, EVALUATION, SENSITIVITY)


def long_lines(kind: str, part: str) -> set[str]:
    documents = texts.parts(kind, "text", part)[kind]
    return {line for one in documents for line in plain(one).split("\n") if len(line) > 70}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_share_nothing(kind: str) -> None:
    """What is calibrated on, what sensitivities are measured on, and what is measured on."""
    for one, other in itertools.combinations(PARTS, 2):
        first, second = long_lines(kind, one), long_lines(kind, other)
        assert min(len(first), len(second)) > 20
        assert not first & second


def test_they_are_small_and_clean() -> None:
    paths = {bundled.text_of(kind, part) for kind in KINDS for part in PARTS}
    assert sum(path.stat().st_size for path in paths) < 2_000_000
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert unicodedata.is_normalized("NFC", text), path
        assert not text.startswith("\ufeff")
        assert not {c for c in text if unicodedata.category(c) == "Cc"} - {"\n", "\t"}, path
        assert (path.parent / "NOTICE.txt").is_file() or path.parent == bundled.FOLDER


def test_other_languages_are_other_scripts_too_and_turkish_is_among_them() -> None:
    for part in PARTS:
        text = " ".join(map(plain, texts.parts("languages", "text", part)["languages"]))
        scripts = {unicodedata.name(c, "?").split()[0] for c in set(text) if c.isalpha()}
        assert {"LATIN", "CYRILLIC", "ARABIC", "DEVANAGARI", "HANGUL", "CJK"} <= scripts
        assert text.count("ı") > 50


def test_a_mix_has_about_as_much_of_each_kind_and_all_of_it_where_that_is_needed() -> None:
    by_kind = texts.parts("builtin", "calibration", CALIBRATION)
    sizes = {
        kind: sum(len(plain(one)) for one in every)
        for kind, every in texts.evened(by_kind, 100_000).items()
    }
    assert max(sizes.values()) < 2.1 * min(sizes.values())
    whole = texts.evened(by_kind, 10**7)
    assert whole == by_kind
    found = calibration.documents(CalibrationOptions())
    first = [next(k for k, every in by_kind.items() if one in every) for one in found.texts[:8]]
    assert first == list(KINDS) * 2
    assert "English prose, other languages, code, conversations" in found.name
    assert calibration.documents(CalibrationOptions(), MODEL).name.endswith("(English novels)")


def test_a_template_without_a_system_role_gets_its_message_with_the_users(tmp_path: Path) -> None:
    said = in_worker("tests.helpers.models:templated", tmp_path, source=str(MODEL))
    assert said[0] == "<user>Be brief.\n\nHello<assistant>Hi"


def test_quality_is_told_by_kind_of_text(
    model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the bundled model, which knows prose alone, only on demand."""
    folder = model()
    made = autoquant.gguf(
        folder, types=["Q4_K_M"], pre_tokenizer="gpt-2", eval_chunks=8, out=tmp_path / "out"
    )
    row = made.artifacts[0].evaluation
    assert row is not None
    assert tuple(row.by_kind) == KINDS
    mean = sum(one["kl_mean"] for one in row.by_kind.values()) / 4
    assert row.kl_mean == pytest.approx(mean), "of each kind there are as many chunks"
    assert row.by_kind["prose"]["perplexity"] < row.by_kind["languages"]["perplexity"] / 5
    assert "Mean KL divergence by kind of text" in made.card()
    assert made.by_kind().split()[:5] == ["type", *KINDS]
    again = autoquant.load(tmp_path / "out").artifacts[0].evaluation
    assert again is not None
    assert again.by_kind == row.by_kind

    path = str(made.path("Q4_K_M"))
    words = ["evaluate", path, "--reference", str(folder), "--chunks", "4", "--by-kind"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if path.split("/")[-1] in line][1:] == [
        *KINDS
    ]
    demo = autoquant.gguf("demo", types=["Q8_0"], eval_chunks=4, out=tmp_path / "demo")
    assert demo.artifacts[0].evaluation is not None
    assert demo.artifacts[0].evaluation.by_kind == {}
    assert demo.by_kind() == ""
    one = json.loads((tmp_path / "demo/.autoquant/journal.json").read_text())
    assert "Persuasion" in one["steps"]["result"]["facts"]["provenance"]["measured on"]


def test_built_in_conversations_need_no_template_that_takes_them(tmp_path: Path) -> None:
    said = in_worker("tests.helpers.models:templated", tmp_path, source=str(MODEL))
    assert said[1] == plain(texts.parts("conversations", "x", EVALUATION)["conversations"][0])
    assert "the model's chat template refuses a conversation" in said[2]
