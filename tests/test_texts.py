"""Calibration and evaluation texts as people have them: told by content, not by name."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.bundled import MODEL
from autoquant.core.errors import InputError
from autoquant.core.texts import documents, plain, read_text
from tests.workers import in_worker

SAID = "It is a truth universally acknowledged"
CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": SAID}]
SHARED = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": SAID}]


def lines(*rows: Any) -> str:
    return "\n".join(json.dumps(row) for row in rows)


TWO = lines({"text": "one"}, {"text": "two"})


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.txt", SAID, [SAID]),
        ("UP.TXT", codecs.BOM_UTF8 + SAID.encode(), [SAID]),
        ("wide.txt", SAID.encode("utf-16"), [SAID]),
        ("UP.JSONL", TWO, ["one", "two"]),
        ("no-suffix", TWO, ["one", "two"]),
        ("bom.jsonl", codecs.BOM_UTF8 + TWO.encode(), ["one", "two"]),
        ("crlf.jsonl", TWO.replace("\n", "\r\n"), ["one", "two"]),
        ("some.jsonl", lines({"text": ""}, {"text": None}, {}, {"text": "one"}), ["one"]),
        ("strings.jsonl", lines("one", "two"), ["one", "two"]),
        ("parts.jsonl", lines({"text": ["one", "two"]}), ["one\ntwo"]),
        ("pretty.json", json.dumps([{"text": "one"}], indent=2), ["one"]),
        ("single.json", json.dumps({"text": "one"}, indent=2), ["one"]),
        ("split.json", json.dumps({"train": [{"text": "one"}]}), ["one"]),
        ("c.jsonl.gz", gzip.compress(TWO.encode(), mtime=0), ["one", "two"]),
        ("t.csv", 'text,label\n"one, and more",1\ntwo,2\n', ["one, and more", "two"]),
        ("t.TSV", "text\tlabel\none\t1\n", ["one"]),
        ("chat.jsonl", lines({"messages": CHAT}), [CHAT]),
        ("shared.jsonl", lines({"conversations": SHARED}), [CHAT]),
    ],
)
def test_recognized(name: str, content: str | bytes, wanted: list[Any], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert documents(path, "calibration") == wanted
    assert read_text(str(path), "eval_text", "evaluation") == "\n\n".join(map(plain, wanted))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("latin1.txt", "first\ncaf\u00e9".encode("latin-1"), "line 2 has the byte 0xe9.*iconv"),
        ("cut.jsonl", TWO.encode() + b'\n{"text": "cut', "line 3 of .*cut off"),
        ("number.jsonl", lines({"text": 5}).encode(), "has no text in column 'text'; it has: text"),
        ("other.jsonl", lines({"content": "one"}).encode(), "it has: content. Name one"),
        ("half.gz", gzip.compress(b"one", mtime=0)[:-4], "is no complete gzip file"),
        ("bad.parquet", b"no", "is no parquet file"),
    ],
)
def test_refused_with_the_line(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"calibration: .*{said}"):
        documents(path, "calibration")


def test_conversations_in_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "chat"
    pyarrow.parquet.write_table(pyarrow.table({"messages": [CHAT, CHAT]}), path)
    assert documents(path, "calibration") == [CHAT, CHAT]


def test_conversations_are_calibrated_on_in_the_models_template(tmp_path: Path) -> None:
    """Beside the same words without it: other tokens, and the same ones as the template gives."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (folder / name).write_bytes((MODEL / name).read_bytes())

    def packed(texts: list[Any]) -> Any:
        return in_worker(
            "autoquant.calibration:pack",
            tmp_path,
            folder=str(folder),
            texts=texts,
            samples=1,
            length=8,
            seed=0,
        )

    bare = packed([CHAT])
    assert bare == packed([plain(CHAT)])
    template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    assert packed([CHAT]) == packed([f"<user> Who?<assistant> {SAID}"]) != bare
    refusing = "{{ raise_exception('no system message') }}"
    (folder / "chat_template.jinja").write_text(refusing)
    with pytest.raises(InputError, match=r"chat template refuses a conversation \(no system"):
        packed([CHAT])


@pytest.mark.parametrize(
    ("method", "option", "values"),
    [
        ("gguf", "eval_text", {"evaluate": "on"}),
        ("gguf", "imatrix", {}),
        ("gptq", "calibration", {}),
        ("w8a8", "calibration", {"scheme": "int8-static"}),
    ],
)
def test_a_text_that_is_too_short_is_refused_before_any_work(
    method: str, option: str, values: dict[str, Any], tmp_path: Path
) -> None:
    path, out = tmp_path / "short.txt", tmp_path / "out"
    path.write_text("Once upon a time. " * 20)
    with pytest.raises(InputError, match=rf"{option}: the text has 12\d tokens; at least 256 are"):
        getattr(autoquant, method)("demo", out=out, **{option: path}, **values)
    assert not out.exists()
