"""Progress bars: shown on a terminal and in a notebook, hidden where nobody looks."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and getattr(shell, "kernel", None) is not None


def hidden() -> bool | None:
    """tqdm's ``disable``: None (only on a terminal), or False in a notebook, whose output stream
    says it is no terminal.
    """
    return False if in_notebook() else None


class Bar:
    """A percentage bar that is a progress callback: ``bar(done, total)``."""

    def __init__(self, title: str) -> None:
        self.bar = tqdm(
            total=100,
            desc=title,
            disable=hidden(),
            leave=False,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}",
        )

    def __call__(self, done: int, total: int) -> None:
        self.bar.update(100 * done / max(1, total) - self.bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self(1, 1)  # in a notebook a bar that is closed before its end stays, in red
        self.bar.close()


class ByteBar(tqdm):  # type: ignore[misc]
    """The bar handed to huggingface_hub for downloads: its own are hidden in notebooks. Of its
    three bars for a snapshot only the one that counts bytes is shown.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("name", None)
        other = str(kwargs.get("desc", "")).startswith(("Fetching", "Reconstructing"))
        super().__init__(
            *args, **{**kwargs, "disable": True if other else hidden(), "leave": False}
        )
