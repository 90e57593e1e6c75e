"""A loopback Hub with the bundled model on it, and a command line that talks to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.publish.card import at
from tests.fakes.hub import TOKEN, Hub

MODEL = "maker/tiny"
QUICK = ("--pre-tokenizer", "gpt-2", "--types", "Q8_0,Q4_K_M", "--evaluate", "off")
# what a run with QUICK uploads, and the large ones of it
FILES = {"tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf", "imatrix.gguf", "LICENSE", "README.md"}
GGUF = ("tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf", "imatrix.gguf")
WRITES = r"^(POST|PUT|DELETE) "
OTHER = "hf_" + "OtherOtherOtherOtherOtherOtherOthe"  # a token that is not TOKEN


def checkpoint(folder: Path = DEMO_FOLDER) -> dict[str, bytes | Path]:
    """The bundled model laid out as real repositories are: with duplicates of the weights that
    nobody needs.
    """
    files: dict[str, bytes | Path] = {path.name: path for path in folder.iterdir()}
    return {
        **files,
        "LICENSE": b"the text of the licence",
        "pytorch_model.bin": b"b" * 4_000_000,
        "original/consolidated.00.pth": b"c" * 4_000_000,
        "flax_model.msgpack": b"f" * 999,
        "onnx/model.onnx": b"o" * 1_000_000,
    }


@dataclass
class User:
    """Somebody with a home folder of their own who types commands."""

    hub: Hub
    home: Path
    more: dict[str, str] = field(default_factory=dict)

    @property
    def cwd(self) -> Path:
        return self.home / "work"

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "COLAB_")) and name != "HUGGING_FACE_HUB_TOKEN"
        }
        given = {
            "HF_ENDPOINT": self.hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(self.home / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "AUTOQUANT_CACHE": str(self.home / "cache"),
            **self.more,
            **more,
        }
        return {**inherited, **{name: value for name, value in given.items() if value != ""}}

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        self.cwd.mkdir(exist_ok=True, parents=True)
        return subprocess.Popen(
            [sys.executable, "-m", "autoquant.cli", *words],
            cwd=self.cwd,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, status: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        """Type a command and look at its exit status; of a refusal also that it is one line."""
        process = self.start(*words, **more)
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, f"{words}: {process.returncode}\n{out}\n{err}"
        if status == 2:
            assert err.strip().splitlines()[-1].startswith("autoquant: error: ")
            assert "Traceback" not in err
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def quantize(
        self, *words: str, model: str = MODEL, status: int = 0, **more: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run("quantize", "gguf", model, *QUICK, *words, status=status, **more)

    def start_python(self, code: str, **more: str) -> subprocess.Popen[str]:
        self.cwd.mkdir(exist_ok=True, parents=True)
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=self.cwd,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, code: str, **more: str) -> Any:
        """Run Python that prints JSON."""
        process = self.start_python(code, **more)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return json.loads(out)

    def journal(self, folder: str = "tiny-GGUF") -> dict[str, Any]:
        return dict(
            json.loads((self.cwd / folder / ".autoquant" / "journal.json").read_text())["steps"]
        )


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    running = Hub(tmp_path / "hub").start()
    running.seed(MODEL, checkpoint())
    yield running
    running.stop()


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> User:
    return User(hub, tmp_path / "home")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on a model from a Hub, done once: (run folder, its user's home). Copied by tests that
    only upload.
    """
    root = tmp_path_factory.mktemp("finished")
    running = Hub(root / "hub").start()
    running.seed(MODEL, checkpoint())
    somebody = User(running, root / "home")
    somebody.quantize("--imatrix", "builtin", "--imatrix-chunks", "4")
    running.stop()
    return somebody.cwd / "tiny-GGUF", somebody.home


@pytest.fixture
def done(user: User, finished: tuple[Path, Path]) -> User:
    """A user who has a finished run in the folder tiny-GGUF."""
    user.cwd.mkdir(parents=True)
    shutil.copytree(finished[0], user.cwd / "tiny-GGUF")
    shutil.copytree(finished[1] / "hf", user.home / "hf", symlinks=True)
    shutil.copytree(finished[1] / "cache", user.home / "cache", symlinks=True)
    return user


def changing(hub: Hub) -> list[str]:
    """The requests that change something on the Hub."""
    return [
        f"{r.method} {r.path}"
        for r in hub.requests(WRITES)
        if not re.search(r"validate-yaml|paths-info|preupload|objects/batch|agent", r.path)
    ]


def size(user: User, *names: str) -> int:
    return sum((user.cwd / "tiny-GGUF" / name).stat().st_size for name in names)


def whole(user: User, hub: Hub, repo: str = "tester/t") -> None:
    """The repository holds just what the folder holds, with its own name in the card, and the
    journal has the receipt.
    """
    assert hub.files(repo) == FILES
    here = {name: (user.cwd / "tiny-GGUF" / name).read_bytes() for name in FILES}
    here["README.md"] = at(here["README.md"].decode(), repo).encode()
    assert all(hub.content(repo, name) == data for name, data in here.items())
    assert (
        user.journal()[f"upload {repo}@main"]["facts"]["receipt"]["commit"]
        == hub.repos[repo].branches["main"]
    )
