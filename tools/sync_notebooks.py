"""Rewrite what is generated in the notebooks: badges, install and form cells, metadata, and the
code of the translations, with comments and forms in their language; take outputs out.

usage: python tools/sync_notebooks.py [--check]     (`make sync` runs it)

It stops with a list of the comments and docstrings, and of the help of forms, that
autoquant/languages/ does not have in the language of a translation.
"""

from __future__ import annotations

import ast
import copy
import io
import json
import re
import sys
import tokenize
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from autoquant.core import language as languages
from autoquant.core.version import __version__
from autoquant.methods import METHODS
from autoquant.notebook import forms

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "urls"
]["Repository"]
# notebook -> its form, what it installs (an extra of the package, or a method to be set up), and
# defaults of its own
NOTEBOOKS: dict[str, tuple[str, tuple[str, ...], Mapping[str, Any]]] = {
    "00_AutoQuant": ("all", ("gguf",), {}),
    "01_Introduction_to_Quantization": ("", (), {}),
    "02_GGUF_llama_cpp": ("gguf", ("gguf",), METHODS["gguf"].notebook_defaults),
    "03_GPTQ": ("gptq", ("gptq",), {}),
    "04_EXL2": ("exl2", ("exl2", "exl3"), METHODS["exl2"].notebook_defaults),
    "05_AWQ": ("awq", ("gptq",), METHODS["awq"].notebook_defaults),
    "06_HQQ_and_more": ("hqq", ("hqq", "bitsandbytes", "w8a8"), {}),
    "07_Compare": ("compare", ("gguf", "gptq"), {}),
    "08_Many_models": ("batch", ("gguf", "hqq"), {}),
    "09_Outliers": ("", (), {}),
    "10_Formats": ("", ("gguf",), {}),
    "11_Serving": ("", ("gguf",), {}),
}
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}  # in Colab, and in JupyterLab
# set-up with nothing to learn in it: folded where a notebook gives it a title
SET_UP = ("load", "entering", "model")
# what the install cell prints
FORM = (
    "is ready",
    "ipywidgets was just installed: reload this page once, so that the form below appears",
)


def address(path: Path) -> str:
    """Where Colab opens a notebook from."""
    repository = REPOSITORY.removeprefix("https://github.com/")
    place = f"{repository}/blob/main/{path.relative_to(ROOT).as_posix()}"
    return f"https://colab.research.google.com/github/{place}"


def badge(path: Path) -> str:
    """The badge that opens a notebook in Colab."""
    return (
        "[![Open in"
        f" Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address(path)})"
    )


def install(parts: tuple[str, ...]) -> str:
    """The install cell: AutoQuant from the clone the notebook lies in or, its release, from its
    repository; the rest is done and said by autoquant.notebook.installing.
    """
    words = json.dumps(["autoquant.notebook.installing", *parts])
    return f"""# @title Install {{ display-mode: "form" }}
# Installs AutoQuant and what this notebook needs. Does nothing if they are installed; changes no\
 installed package (in Colab: none that Colab ships).
import importlib.metadata, importlib.util, pathlib, subprocess, sys

clone = next((str(one) for one in (pathlib.Path.cwd(), *pathlib.Path.cwd().parents) if (one /\
 "autoquant" / "cli.py").is_file()), "")
what = ["--editable", clone] if clone else ["git+{REPOSITORY}@v{__version__}"]  # an editable\
 install: git pull updates it
reload = importlib.util.find_spec("ipywidgets") is None
steps = [{words}]
if not any(one.name == "autoquant-notebooks" for one in importlib.metadata.distributions()):
    print("AutoQuant:", what[-1], flush=True)
    steps.insert(0, ["pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",\
 *what])
for step in steps:
    done = subprocess.Popen([sys.executable, "-u", "-m", *step], stdout=subprocess.PIPE,\
 stderr=subprocess.STDOUT, text=True)
    for line in done.stdout:
        print(line, end="", flush=True)
    if done.wait():
        raise RuntimeError("AutoQuant could not be installed: the lines above say why")
if reload:
    print("ipywidgets was just installed: reload this page once, so that the form below appears")
sys.path += [clone] if clone else []  # this kernel began before pip linked it
importlib.invalidate_caches()

import autoquant.notebook
print("AutoQuant", autoquant.__version__, "is ready")"""


class Untranslated(Exception):
    """English texts that a language lacks."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__("\n".join(texts))
        self.texts = texts


def translated(source: str, language: str) -> str:
    """A cell's code with its comments, docstrings, form and what the install cell prints in a
    language, and with that language chosen. Raises Untranslated.
    """
    lines, lacking = source.split("\n"), list[str]()

    def known(english: str) -> str:
        said = re.sub(r"^if \w+ is named: ", "", english)  # in the form for all methods
        if languages.told(said) == said and said not in languages.table(language):
            lacking.append(said)
        return languages.told(english)

    tokens = [*tokenize.generate_tokens(io.StringIO(source).readline)]
    with languages.spoken(language):
        for token in reversed(tokens):
            said = token.string
            if token.type == tokenize.COMMENT and not said.startswith("# @param"):
                found = re.fullmatch(
                    r'(# @title |# @markdown \*\*\w+\*\*: |# )(.*?)( \{ display-mode: "form" \})?',
                    said,
                )
                assert found, said
                said = found[1] + known(found[2]) + (found[3] or "")
            elif said.startswith('"""'):
                said = f'"""{known(said[3:-3])}"""'
            elif said == '"en"' or (token.type == tokenize.STRING and said[1:-1] in FORM):
                said = f'"{language}"' if said == '"en"' else f'"{known(ast.literal_eval(said))}"'
            (row, begin), (_, end) = token.start, token.end
            if said != token.string:
                lines[row - 1] = lines[row - 1][:begin] + said + lines[row - 1][end:]
    if lacking:
        raise Untranslated(lacking)
    return "\n".join(lines)


def render(path: Path, found: Any) -> Any:
    """A notebook as it should be."""
    made = copy.deepcopy(found)
    name, language = path.stem, "" if path.parent == FOLDER else path.parent.name
    form, parts, changed = NOTEBOOKS[name]
    made.nbformat, made.nbformat_minor = 4, 5
    made.metadata = nbformat.from_dict(
        {**METADATA, "colab": {**METADATA["colab"], "name": path.name}}
    )  # type: ignore[dict-item]
    original = (
        {cell.id: cell for cell in nbformat.read(FOLDER / path.name, as_version=4).cells}
        if language
        else {}
    )
    ids, lacking = {cell.id for cell in made.cells}, list[str]()
    for cell in made.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.id == "badge":
            cell.source = badge(path)
        if cell.cell_type != "code":
            continue
        cell.outputs, cell.execution_count = [], None
        if cell.id == "install":
            cell.source, cell.metadata = install(parts), nbformat.from_dict({**FOLDED})
        elif cell.id == "parameters":
            # papermill puts its values after the cell with this tag
            tagged = {"tags": ["parameters"]} if "more" not in ids else {}
            cell.metadata = nbformat.from_dict({**FOLDED, **tagged})
            if form:
                cell.source = forms.cell(form, changed)
        elif cell.id == "prompt" or (  # a form field in Colab
            cell.id in SET_UP and cell.source.startswith("# @title ")
        ):
            cell.metadata = nbformat.from_dict({**FOLDED})
        elif cell.id == "more":
            cell.metadata = nbformat.from_dict({**FOLDED, "tags": ["parameters"]})
            cell.source = forms.more(form, changed)
        if language:
            try:
                cell.source = translated(original[cell.id].source, language)
            except Untranslated as lack:
                lacking += lack.texts
    if lacking:
        raise Untranslated(lacking)
    return made


def text(notebook: Any) -> str:
    """As it lies on the disk."""
    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def stale(write: bool) -> list[Path]:
    """The notebooks that differ from what they should be; written anew if asked."""
    out = []
    for path in sorted(FOLDER.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        before = path.read_text(encoding="utf-8")
        after = text(render(path, nbformat.reads(before, as_version=4)))
        if before != after:
            out.append(path)
            if write:
                path.write_text(after, encoding="utf-8")
    return out


def table() -> str:
    """The README's notebooks: name and badge of each, and the translations in one line."""

    def link(path: Path) -> str:
        name = path.relative_to(FOLDER).as_posix().removesuffix(".ipynb")
        return f"[{name}]({path.relative_to(ROOT).as_posix()})"

    lines = ["| notebook | |", "| --- | --- |"]
    lines += [f"| {link(path)} | {badge(path)} |" for path in sorted(FOLDER.glob("*.ipynb"))]
    translations = sorted((FOLDER / "tr").glob("*.ipynb"))
    other = ", ".join(f"{link(path)} {badge(path)}" for path in translations)
    return "\n".join([*lines, "", f"Translations: {other}"])


if __name__ == "__main__":
    try:
        wrong = stale(write="--check" not in sys.argv[1:])
    except Untranslated as lack:
        missing = "\n".join(
            json.dumps(one, ensure_ascii=False) for one in dict.fromkeys(lack.texts)
        )
        sys.exit(f"autoquant/languages lacks:\n{missing}")
    if "--check" in sys.argv[1:] and wrong:
        sys.exit(
            f"stale: {', '.join(str(path.relative_to(ROOT)) for path in wrong)}: run `make sync`"
        )
