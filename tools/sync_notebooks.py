"""Rewrite what is generated in the notebooks: badges, install and form cells, metadata, and the
code of the translations, with comments and forms in their language; take outputs out.

usage: python tools/sync_notebooks.py [--check]     (`make sync` runs it)
"""

from __future__ import annotations

import ast
import copy
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from autoquant.methods import METHODS
from autoquant.notebook import forms, texts

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
    "02_GGUF_llama_cpp": ("gguf", ("gguf",), {}),
    "03_GPTQ": ("gptq", ("gptq",), {}),
    "04_EXL2": ("exl2", ("exl2", "exl3"), {}),
    "05_AWQ": ("awq", ("gptq",), METHODS["awq"].notebook_defaults),
    "06_HQQ_and_more": ("hqq", ("hqq", "bitsandbytes", "w8a8"), {}),
    "07_Compare": ("compare", ("gguf", "gptq"), {}),
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
# versions by https://packaging.python.org/en/latest/specifications/version-specifiers/, but for the
# rare epoch and v in front
VALID = (
    r"\d+(\.\d+)*([._-]?(a|b|c|rc|alpha|beta|pre|preview)[._-]?\d*)?"
    r"(-\d+|[._-]?(post|rev|r)[._-]?\d*)?([._-]?dev[._-]?\d*)?(\+[a-z\d]+([._-][a-z\d]+)*)?"
)
# what the install cell prints
FORM = (
    "is ready",
    "ipywidgets was just installed: reload this page once, so that the form below appears",
)
# the project's own index of prebuilt wheels
WHEELS = "https://abetlen.github.io/llama-cpp-python/whl/cpu"


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
    """The install cell: AutoQuant from the clone the notebook lies in or from its repository, held
    to the versions that are there; then what the methods need.
    """
    gguf = "gguf" in parts
    extras = "gguf,notebook" if gguf else "notebook"
    packages = ["autoquant-notebooks", "ipywidgets", *(["llama-cpp-python"] if gguf else [])]
    lines = [
        '# @title Install { display-mode: "form" }',
        (
            "# Installs AutoQuant and what this notebook needs. Does nothing if they are installed;"
            " changes no installed package (in Colab: none that Colab ships)."
        ),
        "import importlib.metadata, importlib.util, os, pathlib, re, subprocess, sys, tempfile",
        "",
        "there = {}  # the first of each name is the one that Python imports",
        "for one in importlib.metadata.distributions():",
        (
            '    there.setdefault((one.name or "").lower().replace("_", "-").replace(".", "-"),'
            " one.version)"
        ),
        f"if not set({packages!r}) <= set(there):",
        (
            '    pip = [sys.executable, "-m", "pip", "install", "--quiet",'
            ' "--disable-pip-version-check"]'
        ),
        (
            f'    valid = re.compile(r"{VALID}", re.I)  # versions that pip accepts; some of'
            " Ubuntu's are not"
        ),
        '    kept = pathlib.Path(tempfile.mkdtemp()) / "kept.txt"',
        (
            '    kept.write_text("\\n".join(f"{name}=={version}" for name, version in there.items()'
            ' if name and valid.fullmatch(version or "")))'
        ),
        (
            "    clone = next((str(one) for one in (pathlib.Path.cwd(),"
            ' *pathlib.Path.cwd().parents) if (one / "autoquant" / "cli.py").is_file()), "")'
        ),
        (
            f'    what = ["--editable", f"{{clone}}[{extras}]"] if clone else'
            f' ["autoquant-notebooks[{extras}] @ git+{REPOSITORY}"]  # an editable install: git'
            " pull updates it"
        ),
    ]
    run = (
        'done = subprocess.run([*pip, "--constraint", str(kept), *what], capture_output=True,'
        " text=True"
    )
    if gguf:
        pinned = next(
            line
            for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
            if line.startswith("llama-cpp-python==")
        )
        flags = next(
            line
            for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
            if line.startswith("export CMAKE_ARGS")
        ).partition("?= ")[2]
        lines += [
            '    if "llama-cpp-python" not in there:',
            (
                "        # a wheel by the llama-cpp-python project; if there is none or it does not"
                " load, pip compiles it below, which takes 5 to 15 minutes"
            ),
            (
                '        wheel = [*pip, "--constraint", str(kept), "--only-binary",'
                f' "llama-cpp-python", "--extra-index-url", "{WHEELS}", "{pinned}"]'
            ),
            (
                "        if subprocess.run(wheel, capture_output=True).returncode == 0 and"
                ' subprocess.run([sys.executable, "-c", "import llama_cpp"],'
                " capture_output=True).returncode:"
            ),
            (
                '            subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet",'
                ' "--yes", "llama-cpp-python"], check=True)'
            ),
            f'    {run}, env={{**os.environ, "CMAKE_ARGS": "{flags}"}})',
        ]
    else:
        lines += [f"    {run})"]
    lines += [
        "    if done.returncode:",
        (
            '        raise RuntimeError(f"AutoQuant could not be installed:'
            " {done.stderr[-3000:]}\\nIf installed packages are too old for AutoQuant, use a"
            ' fresh environment: `make notebook`, or python -m venv.")'
        ),
        '    if "ipywidgets" not in there:',
        (
            '        print("ipywidgets was just installed: reload this page once, so that the form'
            ' below appears")'
        ),
        "    sys.path += [clone] if clone else []  # this kernel began before pip linked it",
        "    importlib.invalidate_caches()",
    ]
    if "gptq" in parts:
        lines += [
            "",
            (
                "# where GPTQModel (for GPTQ and AWQ) is not installed, it gets an environment of"
                " its own, because it would change the versions of installed packages"
            ),
        ]
    if "exl2" in parts:
        lines += [
            "",
            (
                "# exllamav2 and exllamav3 get environments of their own where they are not"
                " installed, and compile their CUDA extensions, once: minutes (an estimate: 5 to 10"
                " each in Colab)."
            ),
            "# Without a GPU nothing is done",
        ]
    if parts:
        lines += [
            *([] if {"gptq", "exl2"} & {*parts} else [""]),
            f"for method in {list(parts)!r}:",
            (
                '    done = subprocess.run([sys.executable, "-m", "autoquant.cli", "setup",'
                " method], capture_output=True, text=True)"
            ),
            "    if done.returncode:",
            "        raise RuntimeError(done.stderr[-3000:])",
        ]
    lines += ["", "import autoquant", 'print("AutoQuant", autoquant.__version__, "is ready")']
    return "\n".join(lines)


def translated(source: str, language: str) -> str:
    """A cell's code with its comments, its form and what the install cell prints in a language, and
    with that language chosen. Raises KeyError for a comment that the table of texts lacks.
    """
    table = texts.LANGUAGES[language]
    lines = source.split("\n")
    for token in reversed([*tokenize.generate_tokens(io.StringIO(source).readline)]):
        said = token.string
        if token.type == tokenize.COMMENT and not said.startswith("# @param"):
            found = re.fullmatch(
                r'(# @title |# @markdown \*\*\w+\*\*: |# )(.*?)( \{ display-mode: "form" \})?', said
            )
            assert found, said
            said = found[1] + table[found[2]] + (found[3] or "")
        elif said == '"en"' or (token.type == tokenize.STRING and said[1:-1] in FORM):
            said = f'"{language}"' if said == '"en"' else f'"{table[ast.literal_eval(said)]}"'
        (row, begin), (_, end) = token.start, token.end
        if said != token.string:
            lines[row - 1] = lines[row - 1][:begin] + said + lines[row - 1][end:]
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
    ids = {cell.id for cell in made.cells}
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
        elif cell.id == "prompt":  # a form field in Colab
            cell.metadata = nbformat.from_dict({**FOLDED})
        elif cell.id == "more":
            cell.metadata = nbformat.from_dict({**FOLDED, "tags": ["parameters"]})
            cell.source = forms.more(form, changed)
        if language:
            cell.source = translated(original[cell.id].source, language)
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
    wrong = stale(write="--check" not in sys.argv[1:])
    if "--check" in sys.argv[1:] and wrong:
        sys.exit(
            f"stale: {', '.join(str(path.relative_to(ROOT)) for path in wrong)}: run `make sync`"
        )
