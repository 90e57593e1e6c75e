"""Translations: all that a reader sees has one, none is left over, notebooks share their code."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import runpy
import shutil
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

import autoquant
from autoquant.backends.llamacpp import types
from autoquant.comparison import Comparison
from autoquant.core import language
from autoquant.core.errors import InputError
from autoquant.display import plot
from autoquant.methods import METHODS
from autoquant.notebook import exercises, form_options, lesson
from tests.notebooks.running import FOLDER, ROOT

PACKAGE = ROOT / "autoquant"
SYNC = str(ROOT / "tools" / "sync_notebooks.py")
LANGUAGES = [one for one in language.languages() if one != language.ENGLISH]
TRANSLATIONS = [path for one in LANGUAGES for path in sorted((FOLDER / one).glob("*.ipynb"))]
each = pytest.mark.parametrize(
    "path", TRANSLATIONS, ids=lambda path: path.relative_to(FOLDER).as_posix()
)
# the same word in both languages, or nothing but numbers and names
ALIKE = {
    "[?, ?, ?, ?]",
    "absmax, 128",
    "absmax, 32",
    "config",
    "decode",
    "format",
    "imatrix",
    "model",
    "{n} model",
    "perplexity",
    "prefill",
}


@pytest.fixture(params=LANGUAGES)
def spoken(request: pytest.FixtureRequest) -> Iterator[str]:
    with language.spoken(request.param):
        yield request.param


def cells(path: Path) -> list[Any]:
    return list(nbformat.read(path, as_version=4).cells)


def codes(path: Path) -> list[str]:
    return [cell.source for cell in cells(path) if cell.cell_type == "code"]


def package() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))]


def translated(code: str) -> set[str]:
    """The notebooks, in English, that a language has."""
    return {path.name for path in (FOLDER / code).glob("*.ipynb")}


def said(source: str) -> set[str]:
    """The texts that code says: say("...")."""
    return {
        node.args[0].value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) == "say"
        and isinstance(node.args[0], ast.Constant)
    }


def hints() -> set[str]:
    """What the exercises say of wrong answers."""
    return {
        *(one.hint for exercise in exercises.EXERCISES.values() for one in exercise.mistakes),
        *(hint for wrong in lesson.WRONG.values() for hint in wrong.values()),
        *lesson.HINTS.values(),
    }


def written(source: str) -> str:
    """All that code writes: its texts, with the fixed parts of f-strings, and its comments."""
    texts = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join([*texts, *(one.string for one in tokens if one.type == tokenize.COMMENT)])


@pytest.mark.parametrize("code", LANGUAGES)
def test_all_that_is_said_has_a_translation(code: str) -> None:
    lessons = [FOLDER / name for name in translated(code)]
    every = {
        *hints(),
        *form_options.TITLES.values(),
        *(one.when for one in types.TYPES.values() if not one.special),
        *(one.take_when for one in METHODS.values()),
        *set[str]().union(*map(said, package())),
        *set[str]().union(*(said(source) for path in lessons for source in codes(path))),
    }
    assert len(every) > 300
    assert sorted(every - {*language.table(code)}) == [], f"not in languages/{code}.toml"


@pytest.mark.parametrize("code", LANGUAGES)
def test_no_translation_is_left_over_or_loses_a_value(code: str) -> None:
    sources = [*package(), *(source for path in FOLDER.glob("*.ipynb") for source in codes(path))]
    everything = "\n".join(map(written, sources))
    left, holes, same = [], [], []
    for english, other in language.table(code).items():
        fixed = language.HOLE.split(english)[::2]
        if not all(part.strip(" :;,.()") in everything for part in fixed):
            left.append(english)
        if sorted(language.HOLE.findall(english)) != sorted(language.HOLE.findall(other)):
            holes.append(english)
        if english == other and english not in ALIKE:
            same.append(english)
    assert left == [], "no code says this any more"
    assert holes == [], "the {names} are not the same"
    assert same == [], "it is still English"


def comments(source: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        one.string
        for one in tokens
        if one.type == tokenize.COMMENT and not one.string.startswith("# @param")
    ]


def bare(source: str) -> str:
    """Code without docstrings, and without the language that it chooses."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    chosen = {repr(one) for one in (language.ENGLISH, *LANGUAGES)}
    return re.sub("|".join(chosen), "?", ast.dump(tree))


def docstrings(source: str) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return {text for node in nodes if (text := ast.get_docstring(node))}


@each
def test_a_translation_shares_the_code_and_leaves_no_prose_in_english(path: Path) -> None:
    english, other = cells(FOLDER / path.name), cells(path)
    assert [cell.id for cell in english] == [cell.id for cell in other]
    chosen = f'"{path.parent.name}"'
    assert sum(cell.source.count(chosen) for cell in other if cell.cell_type == "code") >= 1
    for cell, translation in zip(english, other, strict=True):
        source, ours = cell.source, translation.source
        if cell.cell_type != "code":
            assert source != ours, f"{cell.id} is left untranslated"
            for kind in (r"\$\$", r"^#", r"^- ", r"!\["):
                count = [len(re.findall(kind, text, re.MULTILINE)) for text in (source, ours)]
                assert count[0] == count[1], f"{cell.id}: {kind} {count}"
            continue
        assert not {*comments(source)} & {*comments(ours)} - {"# [?, ?, ?, ?]"}, cell.id
        assert not docstrings(source) & docstrings(ours), cell.id
        if cell.id != "install":  # which says that it is ready
            assert bare(source) == bare(ours), cell.id


def test_a_lesson_in_turkish_has_the_fields_words() -> None:
    lesson = FOLDER / "tr" / "01_Introduction_to_Quantization.ipynb"
    text = "\n".join(cell.source for cell in cells(lesson) if cell.cell_type == "markdown").lower()
    for word in (
        "nicemleme",
        "ağırlıklar",
        "aktivasyonlar",
        "düşük hassasiyetli veri türleri",
        "kayan noktalı format",
        "bellek ayak izi",
        "çıkarım",
        "bellek kullanımı",
        "hesaplama karmaşıklığı",
        "sinir ağı",
        "ölçek",
        "aykırı değer",
        "kalibrasyon",
        "yuvarlama",
    ):
        assert word in text, word


def test_what_has_no_translation_stops_the_sync_and_is_named() -> None:
    sync: Any = runpy.run_path(SYNC)
    assert sync["translated"]('x = "en"  # 4 bits: −7 … 7', "tr") == 'x = "tr"  # 4 bit: −7 … 7'
    never = 'def f():\n    """Nor this."""  # never seen\n'
    with pytest.raises(sync["Untranslated"]) as stopped:
        sync["translated"](never, "tr")
    assert sorted(stopped.value.texts) == ["Nor this.", "never seen"]
    help = "# @markdown **x**: if gguf is named: a new help"
    with pytest.raises(sync["Untranslated"], match=r"^a new help$"):
        sync["translated"](help, "tr")


def test_a_finished_sentence_is_told_with_what_stands_in_it() -> None:
    line = "KL 0.0075 (demo model); very large models"
    assert language.told(line) == line, "English is not touched"
    with language.spoken("tr"):
        assert language.told(line) == "KL 0.0075 (deneme modeli); çok büyük modeller"
        assert language.told("3 of 39 and 5 make 42") == "3 of 39 and 5 make 42", "too general"
        assert language.told("") == ""
        assert language.say("{n} bits", n=4) == "4 bit"
        assert language.say("in no table: {n}", n=4) == "in no table: 4"
    assert language.chosen() == language.ENGLISH
    with pytest.raises(InputError, match="'xx': there are en, tr"):
        language.use("xx")


def test_what_a_run_shows_is_translated(
    demo: Any, spoken: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What has no translation is logged; names and numbers have none, sentences must."""
    caplog.set_level(logging.DEBUG, language.log.name)
    plan = autoquant.plan("gguf", "demo", types=["Q8_0", "Q4_K_M"], pre_tokenizer="gpt-2")
    for shown in (demo, plan, demo.checks(), Comparison({"one": demo, "two": demo}, "method")):
        assert shown._repr_html_()
        assert str(shown)
    read = [one.getMessage() for one in caplog.records if one.name == language.log.name]
    assert read
    sentences = {
        text
        for text in (one.partition(": ")[2] for one in read)
        if re.search(r"\b[a-z]{2,} [a-z]{2,}\b", text) and "Once upon" not in text
    }
    ours = set(language.table(spoken).values())
    patterns = [
        re.compile(".+?".join(map(re.escape, language.HOLE.split(one)[::2])), re.DOTALL)
        for one in ours
    ]
    assert [one for one in sentences if not any(p.fullmatch(one) for p in patterns)] == []


def test_what_goes_to_the_hub_stays_english(demo: Any, spoken: str, tmp_path: Path) -> None:
    plot.write(demo, tmp_path / plot.PLOT)
    assert (tmp_path / plot.PLOT).read_bytes() == (demo.folder / plot.PLOT).read_bytes()
    assert plot.png({demo.source.id: demo}) != (demo.folder / plot.PLOT).read_bytes()
    copy = shutil.copytree(demo.folder, tmp_path / "copy")
    card = autoquant.load(copy).evaluate(chunks=2).card()
    assert "perplexity | KL mean | top-1 agreement" in card
    assert "How these files were made" in card


def test_the_table_is_one_that_any_reader_of_toml_takes() -> None:
    for one in LANGUAGES:
        assert all(isinstance(text, str) and text for text in language.table(one).values())
        assert json.dumps(language.table(one))
