"""Telling workers of models: where their files lie, what is made of them, and what they read from
the Hub.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import converter as llama
from autoquant.backends.llamacpp.taking import taking
from autoquant.core import bundled
from autoquant.core.cache import cache_folder
from autoquant.core.journal import RunFolder
from autoquant.core.machine import cores
from autoquant.core.records import Snapshot
from autoquant.evaluate.evaluator import Evaluator
from autoquant.forward.places import Places, Plan
from autoquant.hub import ranges
from autoquant.runtime import environments, process
from autoquant.source.adapter import EXTRA
from autoquant.source.merge import made_of
from autoquant.source.remote import listing_of

log = logging.getLogger(__name__)
COME = "coming-"  # how folders begin that have what is read from the Hub
COMING = "(a folder for what is read from the Hub)"  # in a model that a worker is told of


def told(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot's model, as evaluate.models takes it."""
    source, base = snapshot.source, snapshot.source.adapted or snapshot.source
    found: dict[str, Any] = {"folder": str(snapshot.folder), "made": None}
    if snapshot.unmade:
        found["made"] = made_of(source)
    if source.remote:
        found["files"] = str(base.stored_in or base.folder)
        found["coming"] = COMING
    return found


def file_of(snapshot: Snapshot, paths: Sequence[Path], converter: str = "") -> dict[str, Any]:
    """A folder, or the GGUF file of a snapshot's model in its shards, as evaluate.models takes it;
    with no paths the model itself, with what GGUF needs. ``converter`` is the option of that name.
    """
    if paths and paths[0].is_dir():
        return {"folder": str(paths[0])}
    source = snapshot.source
    return {
        **told(snapshot),
        "gguf": [str(path) for path in paths],
        "converter": str(llama.locate(converter)),
        "taking": taking(source),
        "name": source.name,
    }


def python_for(snapshot: Snapshot, logs: Path) -> str:
    """The interpreter of a worker that reads a model, which may take peft."""
    adapter = snapshot.unmade and snapshot.source.adapter
    return environments.beside(EXTRA, logs) if adapter else ""


@contextmanager
def serving(snapshot: Snapshot) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Of a model whose weights are on the Hub: fetch what a worker asks for. Gives what prepares
    the arguments of process.call.
    """
    if not snapshot.source.remote:
        yield lambda arguments: {**arguments, "on_part": _noted}
        return
    _remove_leftovers()
    prefix = f"{COME}{os.getpid()}-"
    with (
        tempfile.TemporaryDirectory(dir=cache_folder(), prefix=prefix) as scratch,
        ranges.Serving(listing_of(snapshot.source), Path(scratch)) as hub,
    ):

        def prepared(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: prepared(one) for name, one in value.items()}
            if isinstance(value, list):
                return [prepared(one) for one in value]
            return scratch if value == COMING else value

        def told(part: Any) -> None:
            _noted(part)
            hub.told(part)

        yield lambda arguments: {**prepared(arguments), "on_part": told}


def _remove_leftovers() -> None:
    """Remove what killed runs have read from the Hub."""
    for left in cache_folder().glob(f"{COME}*"):
        owner = left.name.removeprefix(COME).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)


def _noted(part: Any) -> None:
    """Pass on what a worker has to say to the user."""
    if isinstance(part, dict) and "note" in part:
        log.warning("%s", part["note"])


def in_worker(
    snapshot: Snapshot,
    run: RunFolder,
    function: str,
    /,
    told: Callable[[Any], None] | None = None,
    plan: Plan = None,
    **arguments: Any,
) -> Any:
    """Call a function in a worker that reads a snapshot's model, and runs it where a ``plan`` says
    (see forward.places); ``told`` gets what it emits.
    """
    python = python_for(snapshot, run.logs)

    def work(plan: Plan) -> Any:
        with serving(snapshot) as prepare:
            prepared = prepare({**arguments, "plan": plan})
            serves = prepared.pop("on_part")

            def on_part(part: Any) -> None:
                serves(part)
                if told is not None:
                    told(part)

            return process.call(function, python=python, on_part=on_part, **prepared)

    return Places().run(work, plan)


def evaluator_of(
    snapshot: Snapshot, logs: Path, text: str, chunks: int, env: Mapping[str, str]
) -> Evaluator:
    """The evaluator of a source, with references in the cache folder."""
    source = snapshot.source
    return Evaluator(
        told(snapshot),
        snapshot.sha256,
        text=bundled.suited(text, source.folder),
        chunks=chunks,
        context=source.context,
        cache=cache_folder() / "references",
        logs=logs,
        threads=cores(),
        env=env,
        python=python_for(snapshot, logs),
        serve=partial(serving, snapshot),
        gguf=snapshot.folder / source.gguf if source.gguf else None,
    )
