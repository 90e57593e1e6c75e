"""Progress bars: shown on a terminal and in a notebook, hidden where nobody looks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm

from autoquant.core.language import say, told


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and getattr(shell, "kernel", None) is not None


def hidden() -> bool | None:
    """tqdm's ``disable``: None (only on a terminal), False in a notebook, whose output stream says
    it is no terminal, or True while somebody else shows the progress (:func:`watched`).
    """
    if _watcher is not None:
        return True
    return False if in_notebook() else None


_stage = ""  # what bars begin with
Watcher = Callable[[str, float], None]
_watcher: Watcher | None = None


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Hand the progress of a run to somebody who shows it, ``watcher(title, share done)``, in the
    place of bars. It is called from any thread, and often.
    """
    global _watcher
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before


def said(title: str, share: float) -> None:
    """Tell whoever watches how far something is."""
    if _watcher is not None:
        _watcher(title, share)


def bar_format() -> str:
    """How a bar looks: tqdm's ``bar_format``."""
    return "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, " + say("{remaining} left")


class Stages:
    """The stages of a run, by their names; while one is at work, bars say which of how many it
    is.
    """

    def __init__(self, *names: str) -> None:
        self.names = names

    @contextlib.contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Around the work of one; of a name that is none of them, nothing is said."""
        global _stage
        before = _stage
        if name in self.names and len(self.names) > 1:
            number, count = self.names.index(name) + 1, len(self.names)
            _stage = say("{number} of {count}, ", number=number, count=count)
        said(titled(name), 0.0)
        try:
            yield
        finally:
            _stage = before


def titled(title: str) -> str:
    """A bar's title in the reader's language, with the stage of the run."""
    return _stage + told(title)


class Bar:
    """A percentage bar that is a progress callback: ``bar(done, total)``."""

    def __init__(self, title: str) -> None:
        self.title = titled(title)
        self.bar = tqdm(
            total=100,
            desc=self.title,
            disable=hidden(),
            leave=False,
            bar_format=bar_format(),
        )

    def __call__(self, done: int, total: int) -> None:
        self.bar.update(100 * done / max(1, total) - self.bar.n)
        said(self.title, done / max(1, total))

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
        title = str(kwargs.get("desc", ""))
        other = title.startswith(("Fetching", "Reconstructing"))
        given = {**kwargs, "disable": True if other else hidden(), "leave": False}
        super().__init__(*args, **{**given, "desc": titled(title)})
        self.counts, self.had, self.shown = not other, 0.0, titled(title)

    def update(self, n: float | None = 1) -> bool | None:
        """As tqdm's, which counts nothing while it is disabled."""
        if self.counts:
            self.had += n or 0
            said(self.shown, min(1.0, self.had / self.total) if self.total else 0.0)
        return bool(super().update(n))
