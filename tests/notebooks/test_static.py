"""What can be seen on the notebooks without running them."""

from __future__ import annotations

import ast
import builtins
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

import autoquant
from autoquant.notebook import above
from tests.helpers.models import tiny
from tests.notebooks.running import FOLDER, ROOT

NOTEBOOK = ROOT / "autoquant" / "notebook"

ALL = sorted(path for path in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
each = pytest.mark.parametrize("path", ALL, ids=lambda path: path.relative_to(FOLDER).as_posix())
SKELETON = ["title", "badge", "what-you-get", "install"]
METHOD = [
    *SKELETON,
    "idea",
    "picture",
    "picture-caption",
    "choose",
    "options",
    "parameters",
    "more",
    "form",
    "plan-text",
    "plan",
    "run-text",
    "run",
    "own-files-text",
    "own-files",
    "try-text",
    "prompt",
    "try",
    "check-text",
    "check",
    "look-text",
    "look",
    "size-text",
    "size",
    "files-text",
    "files",
    "card-text",
    "card",
    "upload-text",
    "upload",
    "next",
]

FORM = ("parameters", "more")
FIELDS = (*FORM, "exl3-parameters")  # plain assignments with a # @param each
WIDE = 100  # letters of a line that is read
METHODS = ("02", "03", "04", "05", "06")  # whose notebooks have that skeleton
FOLDED = ("install", "parameters", "more", "prompt")
SET_UP = ("load", "entering", "model")  # folded where they have a title
# lessons that teach by functions, and ask for some in their exercises
BY_HAND = ("09_Outliers", "10_Formats", "11_Serving")
LESSONS = ("01_Introduction_to_Quantization", *BY_HAND)
NOTEBOOKS = ("00", "02", "03", "04", "05", "06", "07", "08")  # with a form
OWN = {  # beside the skeleton
    "02_GGUF_llama_cpp": ["best-text", "best", "best-after"],
    "04_EXL2": [
        "exl3-text",
        "exl3-picture",
        "exl3-picture-caption",
        "exl3-run-text",
        "exl3-parameters",
        "exl3-plan",
        "exl3",
        "exl3-files-text",
        "exl3-files",
        "exl3-try",
        "exl3-check",
        "exl3-upload-text",
    ],
}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def folded(cell: Any) -> bool:
    return cell.id in FOLDED or (cell.id in SET_UP and cell.source.startswith("# @title "))


def test_they_are_what_sync_makes_of_them() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "sync_notebooks.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@each
def test_schema_ids_metadata_and_no_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) == {"accelerator", "colab", "kernelspec", "language_info"}
    assert notebook.metadata["accelerator"] == "GPU"
    assert dict(notebook.metadata["colab"]) == {
        "gpuType": "T4",
        "name": path.name,
        "provenance": [],
    }
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*", one) for one in ids), "names for people, not random"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"cellView", "jupyter", "tags"}
        assert (
            ("cellView" in cell.metadata)
            == (cell.get("metadata", {}).get("jupyter") == {"source_hidden": True})
            == folded(cell)
        ), "folded in both"
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    tagged = [cell.id for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == ["more" if "more" in ids else "parameters"], "papermill's values come after it"


@each
def test_the_same_skeleton(path: Path) -> None:
    ids = [cell.id for cell in read(path).cells]
    assert ids[:4] == SKELETON
    assert ids[-1] == "next"
    if path.name[:2] in METHODS:
        own = OWN.get(path.stem, [])
        assert [one for one in ids if one not in own] == METHOD
        assert [one for one in ids if one in own] == own


@each
def test_thin_and_without_secrets(path: Path) -> None:
    for cell in read(path).cells:
        assert not re.search(r"hf_[A-Za-z0-9]{8}|/work/|/root/|/home/", cell.source), (
            "a token, or a path of somebody's machine"
        )
        if cell.cell_type == "code":
            assert not cell.source.startswith(("!", "%")), (
                "a failing command behind ! does not stop Run All"
            )
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
            if re.fullmatch(r"ex\d+", cell.id):
                continue  # an exercise asks for a function
            assert path.stem in BY_HAND or not [
                node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)
            ], cell.id
            assert len(cell.source.splitlines()) <= 35 or cell.id in FORM, (
                f"{cell.id} is too long for a notebook"
            )


@pytest.mark.parametrize(
    "path",
    [one for one in ALL if one.stem[:2] in METHODS],
    ids=lambda path: path.relative_to(FOLDER).as_posix(),
)
def test_what_is_seen_can_be_read(path: Path) -> None:
    """Every picture has a line that says what is on it, and the files are listed after the last of
    them is made.
    """
    cells = {cell.id: cell for cell in read(path).cells}
    for name in (one for one in cells if one.endswith("picture")):
        assert re.match(r"\*[^*]+:\* ", cells[f"{name}-caption"].source)
    begins = cells["what-you-get"].source
    for drawn in re.finditer(r"^!\[.*\]\(.*\)$", begins, re.MULTILINE):
        below = begins[drawn.end() :].strip().splitlines()[0]
        assert re.fullmatch(r"\*[^*].*\*", below), "a caption"
    assert cells["files"].source == "forms.Files(runs)"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_no_line_of_visible_code_is_cut_off(path: Path) -> None:
    """What is cut off at the right is often the very line that teaches."""
    for cell in read(path).cells:
        if cell.cell_type == "code" and not folded(cell):
            lines = [line for line in cell.source.splitlines() if not line.startswith("# @")]
            assert [line for line in lines if len(line) > WIDE] == [], cell.id


@each
def test_links_lead_somewhere(path: Path) -> None:
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
    assert f"blob/main/{path.relative_to(ROOT).as_posix()})" in text, "its badge"


def test_the_parameters_cell_is_plain() -> None:
    """Colab's form and papermill take only assignments of literals, each with its # @param."""
    for path in ALL:
        sources = [cell.source for cell in read(path).cells if cell.id in FIELDS]
        assert all(source.startswith("# @title ") for source in sources)
        source = "\n".join(sources)
        assert source.splitlines()[0].startswith("# @title ")
        assert '{ display-mode: "form" }' in source.splitlines()[0]
        for node in ast.parse(source).body:
            assert isinstance(node, ast.Assign)
            assert isinstance(ast.literal_eval(node.value), (str, int, float, bool))
            line = source.splitlines()[node.lineno - 1]
            assert re.search(
                r'  # @param (\{type:"\w+".*\}|\[.*\]( \{(type:"raw"|allow-input: true)\})?)$', line
            ), line
            offered = re.search(r"@param (\[.*\])", line)
            if offered and "allow-input" not in line:
                assert ast.literal_eval(node.value) in json.loads(offered[1]), line


@each
def test_no_cell_overwrites_a_parameter(path: Path) -> None:
    """The form is read again when its cell runs again: a loop that counts in ``bits`` would be
    taken for a choice.
    """
    notebook = read(path)
    named = {
        name.id
        for cell in notebook.cells
        if cell.id in FIELDS
        for name in ast.walk(ast.parse(cell.source))
        if isinstance(name, ast.Name)
    }
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.id not in FIELDS:
            stored = {
                node.id
                for node in ast.walk(ast.parse(cell.source))
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
            assert not stored & named, cell.id


@pytest.mark.parametrize("path", [one for one in ALL if one.stem[:2] in NOTEBOOKS], ids=str)
def test_a_cell_that_comes_too_early_can_say_so(path: Path) -> None:
    """Plan and run, which are run again after a restart, begin with what explains that a name of a
    cell above is missing; it knows all such names.
    """
    cells = {cell.id: cell.source for cell in read(path).cells if cell.cell_type == "code"}
    for name in ("plan", "run"):
        assert cells[name].startswith("import autoquant.notebook\n")
    order = list(cells)
    made: set[str] = set()
    for name in order[order.index("form") :]:
        names = [one for one in ast.walk(ast.parse(cells[name])) if isinstance(one, ast.Name)]
        stored = {one.id for one in names if isinstance(one.ctx, ast.Store)}
        used = {one.id for one in names if isinstance(one.ctx, ast.Load)}
        assert (used - stored) & made <= above.NAMES, name
        made |= stored


@pytest.mark.parametrize("path", [one for one in ALL if one.stem[:2] in NOTEBOOKS], ids=str)
def test_from_the_form_on_nothing_above_is_needed(path: Path) -> None:
    """A fresh kernel, in which all is installed, can begin with the form."""
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    at = next(i for i, cell in enumerate(cells) if cell.id == "parameters")
    known = {*dir(builtins), "display"}  # which IPython adds
    for cell in cells[at:]:
        tree = ast.parse(cell.source)
        names = [one for one in ast.walk(tree) if isinstance(one, ast.Name)]
        known |= {one.id for one in names if isinstance(one.ctx, ast.Store)}
        for one in ast.walk(tree):
            if isinstance(one, (ast.Import, ast.ImportFrom)):
                known |= {name.asname or name.name.partition(".")[0] for name in one.names}
            elif isinstance(one, ast.ExceptHandler) and one.name:
                known.add(one.name)
        assert {one.id for one in names} <= known, cell.id


ARCHITECTURES = {  # of the models that notebooks ask for at first
    "Qwen/Qwen3-0.6B": "Qwen3ForCausalLM",
    "Qwen/Qwen2.5-0.5B-Instruct": "Qwen2ForCausalLM",
}


@pytest.mark.parametrize("name", ["02", "03", "04", "05", "06"])
def test_the_model_that_a_notebook_asks_for_is_one_that_its_method_runs(
    name: str, tmp_path: Path
) -> None:
    (path,) = FOLDER.glob(f"{name}_*.ipynb")
    cells = {cell.id: cell.source for cell in read(path).cells}
    (model,) = re.findall(r'^model = "(.+?)"', cells["parameters"], re.MULTILINE)
    (method,) = re.findall(r'forms\.form\("(\w+)"', cells["form"])
    folder = tiny(str(tmp_path / "model"), ARCHITECTURES[model])
    values = {"pre_tokenizer": "gpt-2"} if method == "gguf" else {}  # of the bundled tokenizer
    plan = autoquant.plan(method, folder, out=tmp_path / "out", **values)
    assert plan.items
    assert not plan.refused or "GPU" in plan.refused, "the model is none that it refuses"
