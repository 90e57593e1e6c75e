"""Environments of their own: an overlay sees what is below it and changes it for nobody else."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import autoquant
from autoquant.methods import METHODS
from autoquant.runtime import environments


@pytest.mark.slow
def test_where_the_libraries_are_missing_an_overlay_runs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Colab, where GPTQModel's numpy would push out the one that is there. Here everything is
    there, so that pip has nothing to fetch: it must see that.
    """
    monkeypatch.setattr(environments, "here", lambda name: False)
    result = autoquant.gptq(
        "demo",
        group_size=64,
        calibration_samples=8,
        calibration_length=128,
        evaluate="off",
        out=tmp_path / "out",
    )
    assert result.provenance["algorithm"] == "GPTQ (GPTQModel 7.6.0)"
    assert "gptqmodel 7.6.0" in result.provenance["versions"]
    (made,) = [
        path
        for path in (environments.cache_folder() / "environments").iterdir()
        if path.name.startswith("gptq-") and path.is_dir()
    ]
    added = {path.name for path in environments._site("gptq").iterdir()}
    assert added == {"below.pth", "autoquant"}, "nothing was installed a second time"
    seen = subprocess.run(
        [str(made / "bin" / "python"), "-c", "import gptqmodel, sys; print(sys.prefix)"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert seen.stdout.splitlines()[-1] == str(made), seen.stderr
    build = subprocess.run(  # as pip starts the build of a package that comes as source
        [str(made / "bin" / "python"), "-c", "import numpy"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "pip-build-env-abc" / "site")},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert "No module named 'numpy'" in build.stderr, (
        "an older setuptools of the environment below would go before the one that is asked for"
    )


def test_the_overlay_keeps_torch_and_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, install = environments._commands(
        "gptq", tmp_path / "gptq-x", tmp_path / "gptq-x/bin/python"
    )
    assert create[-2:] == ["--without-pip", str(tmp_path / "gptq-x")]
    kept = Path(install[install.index("--constraint") + 1]).read_text().split()
    assert {line.split("==")[0] for line in kept} == set(environments.SHARED)
    assert "gptqmodel==7.6.0" in install
    monkeypatch.setattr(environments, "here", lambda name: False)
    monkeypatch.setattr(environments, "_suits", lambda package, wanted: package != "auto-round")
    assert environments.version("auto-round") == "0.16.1", "not made yet: what is pinned"
    assert environments.version("torch").startswith("2."), "from the environment below"
    assert environments.version("accelerate")[0].isdigit(), "what suits is taken from there too"


@pytest.mark.parametrize("name", sorted({method.extra for method in METHODS.values()}))
def test_every_extra_that_may_be_an_overlay_pins_its_library_and_is_here(name: str) -> None:
    assert environments.here(name), "make installs all of them"
    assert any(wanted.startswith("==") for wanted in environments.extra(name).values()), (
        "journal and card name the version before the overlay is made"
    )
    assert not set(environments.extra(name)) & set(environments.SHARED)


def test_threads_that_ask_for_versions_read_what_is_wanted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two that parse at a time may fail in Python before 3.11.8 ("AST constructor recursion depth
    mismatch"), and files are measured side by side.
    """
    readings: list[str] = []
    inside = threading.Lock()
    requires = importlib.metadata.requires

    def slow(package: str) -> list[str] | None:
        assert inside.acquire(blocking=False), "two threads read at a time"
        readings.append(package)
        time.sleep(0.05)
        inside.release()
        return requires(package)

    monkeypatch.setattr(importlib.metadata, "requires", slow)
    environments._wanted.cache_clear()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(environments.extra, ["gptq"] * 4))
    assert readings == [environments.PACKAGE]
    assert found[0] == found[3] != {}
