"""What a model sees or hears with, in a file of its own beside the text model's."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import converter as llama
from autoquant.backends.llamacpp.taking import taking
from autoquant.core.files import key_of, sha256_of
from autoquant.core.journal import RunFolder
from autoquant.core.progress import Bar
from autoquant.core.records import Source
from autoquant.methods.gguf.convert import python_for
from autoquant.methods.gguf.options import GgufOptions
from autoquant.runtime import process
from autoquant.source import from_gguf
from autoquant.source.structure import structure

log = logging.getLogger(__name__)


def wanted(source: Source, options: GgufOptions) -> bool:
    """Whether a model has such parts, and their file is asked for."""
    return options.mmproj and bool(structure(source).towers) and not source.pickle


def _beside(source: Source, options: GgufOptions) -> str:
    """The same of a source that is a GGUF file, with an mmproj file beside it."""
    if source.mmproj and options.mmproj:
        size = (source.folder / source.mmproj).stat().st_size
        return f"{source.mmproj}, what it sees or hears with, goes along ({size / 1e9:.3f} GB)"
    if source.mmproj:
        return f"left out, as asked: {source.mmproj}"
    if not source.at_hand or not source.tag:
        return ""
    lie = sorted(one.name for one in source.folder.glob("*mmproj*.gguf"))
    return (
        f"{', '.join(lie)} in the same folder goes with the new files as it is, and is not copied"
        if lie and options.mmproj and not from_gguf.MMPROJ.search(source.gguf)
        else ""
    )


def file_name(source: Source, options: GgufOptions) -> str:
    """llama.cpp's tools, and the Hub's, look for "mmproj" in the name."""
    return f"mmproj-{source.name}-{options.mmproj_type.upper()}.gguf"


def _convert(
    source: Source,
    options: GgufOptions,
    target: Path,
    logs: Path,
    progress: process.Progress | None = None,
    *,
    only_plan: bool,
    folder: Path | None = None,
    made: dict[str, Any] | None = None,
) -> dict[str, Any]:
    tools = llama.locate(options.converter)
    return dict(
        process.call(
            "autoquant.backends.llamacpp.mmproj:convert",
            log=logs,
            env=llama.environment(tools),
            progress=progress,
            model=str(folder or source.folder),
            converter=str(tools),
            target=str(target),
            outtype=options.mmproj_type,
            name=source.name,
            taking=taking(source),
            only_plan=only_plan,
            made=made,
            python=python_for(source, logs) if made else "",
        )
    )


def plan(source: Source, options: GgufOptions) -> dict[str, Any]:
    """What the file would be, from headers alone; empty if there is none to be."""
    if not wanted(source, options):
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        return _convert(source, options, folder / "never", folder / "log", only_plan=True)


def note(source: Source, options: GgufOptions, planned: dict[str, Any]) -> str:
    """What to say of it; empty if there is nothing to say."""
    if source.gguf:
        return _beside(source, options)
    towers = ", ".join(structure(source).towers)
    if "unknown" in planned:
        return (
            f"left out: {towers}; llama.cpp's converter has no mmproj file for {planned['unknown']}"
        )
    if "failed" in planned:
        return (
            f"left out: {towers}; llama.cpp's converter makes no mmproj file of them"
            f" ({planned['failed']}). It reads preprocessor_config.json and processor_config.json:"
            " are they there?"
        )
    if planned:
        said = f"{planned['bytes'] / 1e9:.3f} GB, {planned['tensors']} tensors"
        return f"{towers}: in a file of its own, {file_name(source, options)} ({said})"
    return f"left out, as asked: {towers}" if structure(source).towers else ""


def _key(options: GgufOptions, converted: str) -> str:
    return key_of(converted, options.mmproj_type, options.mmproj)


def reads(
    source: Source, options: GgufOptions, run: RunFolder, converted: str
) -> list[tuple[str, int, int]]:
    """The parts of the source's files (file, offset, bytes) that :func:`make` reads if it is called
    now.
    """
    if run.done("mmproj", _key(options, converted)) is not None:
        return []
    return [tuple(one) for one in plan(source, options).get("reads", [])]


def make(
    source: Source,
    options: GgufOptions,
    run: RunFolder,
    converted: str,
    folder: Path | None = None,
    made: dict[str, Any] | None = None,
) -> tuple[str, str]:
    """Write and check the file, unless the journal knows it as done; its name, or "" if there is
    none, and what to say of it. ``converted`` is what the text model's conversion depends on;
    ``folder`` has the files if the source's does not, ``made`` says how those of one that is not
    made are read.
    """
    name = file_name(source, options)
    key = _key(options, converted)
    if source.gguf:
        return _copied(source, options, run, key), note(source, options, {})
    facts = run.done("mmproj", key)
    if facts is None and not wanted(source, options):
        return "", note(source, options, {})
    if facts is None:
        part = run.work / name
        with Bar("convert what sees or hears") as progress:
            facts = _convert(
                source,
                options,
                part,
                run.logs,
                progress,
                only_plan=False,
                folder=folder,
                made=made,
            )
        files = [run.finish(part)] if part.is_file() else []
        run.record("mmproj", key, files, facts, {path.name: sha256_of(path) for path in files})
    said = note(source, options, facts)
    if "bytes" in facts:
        return name, f"{said}; every value finite"
    log.warning("%s: %s", source.id, said)
    return "", said


def _copied(source: Source, options: GgufOptions, run: RunFolder, key: str) -> str:
    """The source's own file, copied and looked at; "" if there is none to be."""
    if not source.mmproj or not options.mmproj:
        return ""
    kind = from_gguf.type_in(source.mmproj) or "F16"
    name = f"mmproj-{source.name}-{kind}.gguf"
    if run.done("mmproj", key) is None:
        given, part = source.folder / source.mmproj, run.work / name
        process.call(
            "autoquant.formats.gguf:refuse_larger",
            log=run.logs,
            env=llama.environment(llama.locate(options.converter)),
            paths=[str(given)],
            largest=math.inf,
        )
        shutil.copyfile(given, part)
        run.record("mmproj", key, [run.finish(part)], {}, {name: sha256_of(run.folder / name)})
    return name
