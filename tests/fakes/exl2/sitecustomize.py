"""A CPU where exllamav2 and exllamav3 want an NVIDIA GPU: put this folder and its neighbour
``exl3`` on PYTHONPATH, and every Python process that imports one of them, or looks for a GPU for
it, finds one.

Python imports a module of this name when it starts. All else is the libraries' own code,
unmodified, but for what ``exl3/hooks.py`` names; no other process is touched.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any, ClassVar

NAMES = (
    "exllamav2",
    "exllamav2_ext",
    "autoquant.backends.exllamav2.gpu",
    "exllamav3",
    "autoquant.backends.exllamav3.gpu",
)


class _Before:
    """Stands in front of Python's finders; of its own it finds nothing."""

    done: ClassVar[set[str]] = set()
    instead: ClassVar[dict[str, dict[str, Any]]] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name in _Before.done or not (name in NAMES or name in _Before.instead):
            return None
        _Before.done.add(name)
        if name in _Before.instead:
            return _replacing(name, _Before.instead[name])
        if not _Before.done & {"cpu_as_cuda"}:
            _Before.done.add("cpu_as_cuda")
            import cpu_as_cuda

            cpu_as_cuda.install()
        if name == "exllamav3":
            import hooks

            hooks.install()
            _Before.instead = hooks.INSTEAD
        return None


def _replacing(name: str, functions: dict[str, Any]) -> Any:
    """A module's spec, with some of its functions and methods replaced once it is loaded."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    load = spec.loader.exec_module

    def exec_module(module: Any) -> None:
        load(module)
        for function, put in functions.items():
            of, _, last = function.rpartition(".")
            setattr(getattr(module, of) if of else module, last, put)

    spec.loader.exec_module = exec_module  # type: ignore[method-assign]
    return spec


sys.meta_path.insert(0, _Before())  # type: ignore[arg-type]
