"""Calibration samples: packed, drawn by seed, from files; too few are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant import calibration
from autoquant.core import options
from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.core.errors import InputError
from autoquant.methods.gptq import GptqOptions
from tests.gptq.conftest import QUICK
from tests.workers import in_worker


def test_a_text_that_gives_fewer_samples_is_named_on_the_card(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(
        "She sells sea shells by the sea shore, and the shells she sells are sea shells. " * 40
    )
    made = autoquant.gptq(
        "demo",
        **{**QUICK, "calibration_samples": 64},
        calibration=str(tmp_path / "short.txt"),
        out=tmp_path / "out",
    )
    samples = made.artifacts[0].facts["samples"]
    assert samples < 20
    assert (
        f"calibrated on {samples} samples of 128 tokens, because the text has no more (64 were"
        " asked for)" in made.card()
    )


def built(**values: Any) -> GptqOptions:
    return options.build(GptqOptions, values)


def test_samples_are_packed_and_drawn_by_seed(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    texts = ["One short document. " * 40, "Another one; it is longer. " * 90]

    def pack(**more: Any) -> Any:
        given = {"samples": 4, "length": 64, "seed": 0, **more}
        target = "autoquant.calibration:pack"
        return in_worker(target, tmp_path, folder=str(DEMO_FOLDER), texts=texts, **given)

    chosen = pack()
    tokenizer = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json"))
    lengths = [len(tokenizer.encode(text, add_special_tokens=False).ids) + 1 for text in texts]
    everything = pack(samples=1000)
    assert len(everything) == sum(lengths) // 64, (
        "documents are joined: nothing is padded, only the last piece is left out"
    )
    assert [len(sample) for sample in chosen] == [64] * 4
    assert sum(sample.count(2) for sample in everything) in (
        1,
        2,
    ), "the end token stands between documents"
    assert pack() == chosen
    assert pack(seed=1) != chosen
    assert calibration.digest(chosen) != calibration.digest(pack(seed=1))
    with pytest.raises(InputError, match="one sample needs 9000"):
        pack(length=9000)


def test_text_from_files(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    lines = tmp_path / "a.jsonl"
    lines.write_text(
        '{"text": "one", "other": "1"}\n\n{"text": null}\n{"text": "two", "other": "2"}\n'
    )
    assert calibration.documents(built(calibration=str(lines))).texts == ["one", "two"]
    lines.write_text('{"text": "one\u2028line"}\n', encoding="utf-8")
    assert calibration.documents(built(calibration=str(lines))).texts == ["one\u2028line"], (
        "a separator that JSON lets stand, as web texts have"
    )
    lines.write_text('{"text": "one", "other": "1"}\n')
    array = tmp_path / "a.json"
    array.write_text('[{"text": "one", "other": "1"}, {"text": "two", "other": "2"}]')
    assert calibration.documents(
        built(calibration=str(array), calibration_column="other")
    ).texts == ["1", "2"]
    numbers = tmp_path / "numbers.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), numbers)
    with pytest.raises(InputError, match="column 'text' of .* holds no text"):
        calibration.documents(built(calibration=str(numbers)))
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["eins", None, "zwei"]}), table)
    assert calibration.documents(built(calibration=str(table))).texts == ["eins", "zwei"]
    (tmp_path / "a.txt").write_text("plain")
    assert calibration.documents(built(calibration=str(tmp_path / "a.txt"))).texts == ["plain"]
    for path, column, said in (
        (lines, "body", "no text in column 'body'; it has: text, other"),
        (table, "body", "has no column 'body'; it has: text"),
        (tmp_path, "text", "no such file"),
    ):
        with pytest.raises(InputError, match=said):
            calibration.documents(built(calibration=str(path), calibration_column=column))
    (tmp_path / "bad.parquet").write_text("no")
    (tmp_path / "bad.jsonl").write_text("{")
    (tmp_path / "empty.txt").write_text(" \n")
    for name, said in (
        ("bad.parquet", "is no parquet file"),
        ("bad.jsonl", "is no valid JSON"),
        ("empty.txt", "is empty"),
    ):
        with pytest.raises(InputError, match=said):
            calibration.documents(built(calibration=str(tmp_path / name)))
