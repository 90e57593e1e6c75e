"""What a worker may do, and what it sees of the process that started it."""

from __future__ import annotations

import json
import shutil
from typing import Any


def sleep_forever() -> None:
    import subprocess
    import time

    subprocess.Popen(["sleep", "600"])
    time.sleep(600)


def abort() -> None:
    import os

    os.abort()


def raise_enospc() -> None:
    raise OSError(28, "No space left on device", "/some/file")


def print_much_and_return(n: int) -> dict[str, int]:
    print("noise " * n)  # noqa: T201
    return json.loads(json.dumps({"n": n}))


def environment() -> list[str]:
    import os

    return sorted(os.environ)


def who(name: str) -> list[Any]:
    """This process, what it has for a variable, and its parent."""
    import os

    return [os.getpid(), os.environ.get(name), os.getppid()]


def loaded(names: list[str]) -> list[str]:
    import sys

    return [name for name in names if name in sys.modules]


def found_on_path(name: str) -> str:
    return shutil.which(name) or ""


def asked_of_cuda(modules: list[str]) -> list[str]:
    """What importing modules asks of a card, where there seems to be one."""
    import importlib

    import torch

    asked: list[str] = []

    def answers(name: str, answer: Any) -> Any:
        def ask(*_: object, **__: object) -> Any:
            asked.append(name)
            return answer

        return ask

    class Card:
        major, minor, name, total_memory, multi_processor_count = 9, 0, "a card", 1 << 36, 100

    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.version.cuda = "13.0"
    for name, answer in {
        "_lazy_init": None,
        "init": None,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "get_device_name": "a card",
        "get_device_properties": Card,
        "is_bf16_supported": True,
    }.items():
        setattr(torch.cuda, name, answers(name, answer))
    for module in modules:
        importlib.import_module(module)
    return asked
