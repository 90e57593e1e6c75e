"""Shared fixtures: a home of its own for every test, and one finished GGUF run on the embedded
model for the whole session.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# read when huggingface_hub is imported; tests/hub runs its clients in processes of their own
os.environ["HF_HUB_OFFLINE"] = "1"
# several tests at a time: none takes all processors, nor keeps one busy with waiting
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
# ggml puts this into the C library's environment of whatever process loads it, unseen by os.environ
# but not by the commands started from there: they would no longer share the preloaded process
os.environ.setdefault("KMP_BLOCKTIME", "200")

import autoquant
from autoquant.backends.llamacpp import converter
from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.result import Result
from autoquant.runtime import preload, process
from tests import order

# a shell lets what it starts in the background ignore Ctrl-C, and all its children with it
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Where make has put the converter: fetched once, before the tests get a cache folder of their own.
CONVERTER = converter.locate()
# on PYTHONPATH: a GPU for exllamav2 and exllamav3
STAND_IN = os.pathsep.join(str(Path(__file__).parent / "fakes" / name) for name in ("exl2", "exl3"))
TYPES = ("F16", "Q8_0", "Q4_K_M", "Q2_K", "IQ3_XXS")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On several workers the longest tests come first; in one process the order does not matter."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        items[:] = order.for_workers(items, workers)


@pytest.fixture(autouse=True, scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """No test reads or writes the user's cache, and none reaches a network. Workers of all tests,
    and of the commands they start, are forked from one preloaded process.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOQUANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("AUTOQUANT_LLAMA_CPP", str(CONVERTER))
        with preload.kept(), preload.shared(process.worker_environment()):
            yield


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The bundled model as five types with an importance matrix, measured."""
    out = tmp_path_factory.mktemp("demo") / "run"
    return autoquant.gguf(
        "demo",
        types=TYPES,
        imatrix="builtin",
        imatrix_chunks=20,
        pre_tokenizer="gpt-2",
        eval_chunks=30,
        modelfile=True,
        out=out,
    )


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the bundled model to be spoiled: ``model(name="broken", **config_changes)``."""

    def copy(name: str = "model", **changes: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(DEMO_FOLDER, folder)
        if changes:
            config = json.loads((folder / "config.json").read_text())
            config.update(changes)
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy
