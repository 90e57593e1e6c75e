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
