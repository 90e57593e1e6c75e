"""A loopback Hub that runs jobs, and somebody who starts them: in processes of their own, or in the
tests' own, which is faster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autoquant import cli
from tests.fakes.hub import TOKEN, Hub
from tests.hub.conftest import User

# what the image of a container sets here: pip finds all it needs beside this interpreter, and no
# network is reached
IMAGE = {"PIP_NO_INDEX": "1", "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
BATCH = """
[defaults]
eval_chunks = 2
[[jobs]]
models = ["demo-small", "tester/tiny"]
methods = ["w8a8"]
upload = "tester/{model}-{METHOD}"
"""
ONE = ("quantize", "w8a8", "demo", "--upload", "tester/demo-W8A8", "--on", "hf-jobs")
# in the place of a job: says how far it is, and waits until it is let go
WAITING = (
    "printf '%s\\n' 'a line' '@autoquant {\"share\": 0.5, \"title\": \"1 of 2, quantize\"}';"
    " until test -e {go}; do sleep 0.05; done;"
    ' echo \'@autoquant {"ended": "done", "line": "made", "seconds": 1}\''
)


@contextmanager
def running(folder: Path) -> Iterator[tuple[Hub, User]]:
    """A Hub and its user, until the block ends."""
    hub = Hub(folder / "hub").start()
    hub.running.image = {
        **IMAGE,
        "AUTOQUANT_CACHE": str(folder / "cache"),
        "AUTOQUANT_LLAMA_CPP": os.environ["AUTOQUANT_LLAMA_CPP"],
    }
    user = User(hub, folder / "home")
    user.cwd.mkdir(parents=True)
    try:
        yield hub, user
    finally:
        hub.running.end()
        hub.stop()


def stand_in(hub: Hub, script: str) -> None:
    """Let jobs run a shell script instead of what they were sent."""
    hub.running.command = ["sh", "-c", script]


def online(patch: pytest.MonkeyPatch, hub: Hub) -> None:
    """Let this process speak to a Hub, as its user."""
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setenv("HF_ENDPOINT", hub.url)
    patch.setenv("HF_TOKEN", TOKEN)


def typed(
    hub: Hub, user: User, patch: pytest.MonkeyPatch, output: Any
) -> Callable[..., tuple[int, str]]:
    """A command in this process: its exit status, and what it says."""
    online(patch, hub)
    patch.chdir(user.cwd)

    def run(*words: str) -> tuple[int, str]:
        patch.setattr("sys.argv", ["autoquant", *words])
        status = cli.main(list(words))
        said = output.readouterr()
        return status, said.out + said.err

    return run
