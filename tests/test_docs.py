"""Generated docs are fresh, links lead somewhere, nothing names a machine, the sources keep the
house rules.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import models
from bench.cases import architectures

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("tool", ["sync_docs.py", "sync_stub.py"])
def test_what_is_generated_is_fresh(tool: str) -> None:
    command = [sys.executable, str(ROOT / "tools" / tool), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "README.tr.md",
        "CONTRIBUTING.md",
        "docs/devices.md",
        "docs/hub.md",
        "docs/methods.md",
        "docs/models.md",
        "docs/scale.md",
        "docs/sizes.md",
        "docs/teaching.md",
        "docs/testing.md",
        "bench/RESULTS.md",
    ],
)
def test_local_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (ROOT / name).parent.joinpath(target).exists(), target


def test_the_turkish_readme_names_every_method() -> None:
    from autoquant.methods import METHODS

    assert "(README.tr.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    turkish = (ROOT / "README.tr.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"| `{name}` |" not in turkish] == []


def test_the_table_of_models_has_every_row_and_these_versions() -> None:
    kept = json.loads((ROOT / "bench" / "models.json").read_text())
    assert sorted(kept["results"]) == architectures.names(), "run python -m bench.models NAME"
    assert all(list(row) == list(models.METHODS) for row in kept["results"].values())
    assert (ROOT / "docs" / "models.md").read_text() == models.page(
        kept["results"], kept["versions"]
    )
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    pinned = {name.replace("_", "-").lower(): version for name, version in pinned.items()}
    for named in kept["versions"].split(", "):
        package, version = named.split(" ")
        assert version.partition("+")[0] == pinned[package.lower()], package


def test_requirements_say_what_pyproject_says() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert sorted(listed) == sorted(
        project["dependencies"] + project["optional-dependencies"]["gguf"]
    )


def test_every_public_thing_has_a_docstring() -> None:
    import ast

    bare = []
    for path in (ROOT / "autoquant").rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in [
            *tree.body,
            *(n for c in tree.body if isinstance(c, ast.ClassDef) for n in c.body),
        ]:
            if (
                isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                bare.append(f"{path.name}:{node.name}")
    assert bare == []


def test_a_methods_name_stands_only_where_it_belongs() -> None:
    for path in (ROOT / "autoquant").rglob("*.py"):
        assert not re.search(r"method(\.name)? == ", path.read_text()), path
