"""Measuring the artifacts of a run: what is known already is not measured again."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import converter as llama
from autoquant.core import gguf_head
from autoquant.core.cache import new_log
from autoquant.core.errors import InputError, ProcessFailed
from autoquant.core.files import free_bytes
from autoquant.core.journal import RunFolder
from autoquant.core.machine import cores
from autoquant.core.options import MethodOptions
from autoquant.core.records import UNQUANTIZED, Artifact, Evaluation, Snapshot, Source
from autoquant.display.tables import reference_name
from autoquant.evaluate import coming, planning, sources
from autoquant.evaluate.evaluator import Evaluator
from autoquant.evaluate.rows import Bar, Rows

log = logging.getLogger(__name__)


def evaluate(
    snapshot: Snapshot,
    options: MethodOptions,
    run: RunFolder,
    artifacts: tuple[Artifact, ...],
    *,
    env: Mapping[str, str],
    unquantized: Callable[[], Path] | None = None,
    made_with: str = "",
    how: Mapping[str, Any] | None = None,
    stand_in: Path | None = None,
    why_not: str = "",
) -> tuple[tuple[Artifact, ...], Evaluation | None]:
    """The artifacts with their evaluations, and the unquantized model's.

    ``unquantized`` makes a GGUF file that stands in for a source that transformers does not know,
    of what ``made_with`` is the key of.
    ``how`` says how models are run block by block (see evaluate.planning). ``stand_in`` is an
    unquantized GGUF file with the source's very weights, to be read instead of a source whose files
    are on the Hub. ``why_not``: only what the journal knows is wanted; it says so if that is not
    all, and there are no evaluations then. Rows are noted in the journal as soon as they are
    measured. Raises InputError without room.
    """
    evaluator = sources.evaluator_of(
        snapshot, run.logs, options.eval_text, options.eval_chunks, env
    )
    source = snapshot.source
    known = planning.known(source)
    evaluator.stand_in = "" if source.gguf or known else made_with
    converter = str(getattr(options, "converter", ""))
    if stand_in is not None and known:
        evaluator.source = sources.file_of(snapshot, [stand_in], converter)
    measuring = Rows(snapshot, evaluator, run, dict(how or {}), converter)
    compared = bool(getattr(options, "eval_by_weights", False))
    measuring.by_weights = planning.by_weights(source, compared=compared)
    bare = bool(why_not)  # what is not measured again stays as it is
    rows = measuring.known(artifacts, bare=bare)
    # what was begun with llama.cpp is ended with it, unless it is to be compared
    if not rows and measuring.by_weights and not compared:
        measuring.by_weights = False
        rows = measuring.known(artifacts, bare=bare)
        measuring.by_weights = not rows
    earlier = measuring.done(UNQUANTIZED, evaluator.key(), bare=bare)
    todo = [artifact for artifact in artifacts if artifact.type not in rows]
    if (todo or earlier is None) and why_not:
        log.warning("it will not be measured: %s", why_not)
        return artifacts, None
    if todo or earlier is None:
        _refuse_without_room(source, evaluator)
        if source.remote and known and stand_in is None:
            passes = coming.passes([one.is_folder for one in todo], by_weights=measuring.by_weights)
            log.warning("%s", coming.said(source, evaluator, passes))
        gguf = unquantized() if not (source.gguf or known) and unquantized is not None else None
        with Bar(1 + len(artifacts)) as bar:
            kept = evaluator.reference(bar.part(""), gguf, measuring.how)
            shutil.copyfile(kept.scored, measuring.scored(evaluator.key()))
            reference = measuring.note(UNQUANTIZED, evaluator.key(), kept.row)
            engine = measuring.by_weights
            rows |= measuring.measure(todo, kept, bar)
            if measuring.by_weights != engine:  # so are those that were measured before
                others = [one for one in artifacts if not (one.is_folder or one in todo)]
                rows |= measuring.measure(others, kept, bar)
    else:
        reference = earlier
    measured = tuple(dataclasses.replace(a, evaluation=rows[a.type]) for a in artifacts)
    return measured, reference


def _refuse_without_room(source: Source, evaluator: Evaluator) -> None:
    """Refuse without room for what is kept of the unquantized model."""
    kept = planning.kept_bytes(source, evaluator.wanted)
    if kept > free_bytes(evaluator.cache):
        raise InputError(planning.no_room(kept, evaluator.cache))


def evaluate_files(
    paths: Sequence[Path],
    snapshot: Snapshot,
    *,
    text: str = "builtin",
    chunks: int = 20,
    converter: str = "",
    keep: Path | None = None,
) -> list[tuple[str, Evaluation]]:
    """Measure any GGUF files or model folders against an unquantized model; the first row is that
    model itself. Beside folders, GGUF files are measured as these are: by their weights.

    The tokens are those of the reference's tokenizer. Nothing is written beside the reference
    cache, but the log-probabilities of the scored tokens into the folder ``keep``, if one is named.
    """
    env, source = {}, snapshot.source
    if source.gguf or any(path.is_file() for path in paths):
        env = llama.environment(llama.locate(converter))
    how = planning.how(source, chunks)
    # beside folders, which llama.cpp does not run, files go by their weights too
    by_weights = planning.by_weights(source, compared=any(path.is_dir() for path in paths))
    with tempfile.TemporaryDirectory() as scratch, Bar(1 + len(paths)) as bar:
        folder = keep or Path(scratch)
        scored = {path: folder / f"{i}.scored.npy" for i, path in enumerate(paths, 1)}
        evaluator = sources.evaluator_of(snapshot, new_log("evaluate"), text, chunks, env)
        if source.remote:
            passes = coming.passes([path.is_dir() for path in paths], by_weights=by_weights)
            log.warning("%s", coming.said(source, evaluator, passes))
        kept = evaluator.reference(bar.part(""), plan=how)
        shutil.copyfile(kept.scored, folder / "0.scored.npy")

        def run_in_blocks(these: Sequence[Path]) -> dict[Path, Evaluation]:
            files = [
                {
                    **sources.file_of(snapshot, shards_of(path.resolve()), converter),
                    "states": f"{scratch}/{paths.index(path)}.states.npy",
                    "scored": str(scored[path]),
                }
                for path in these
            ]
            found = evaluator.measure(files, kept, plan=how) if files else []
            return dict(zip(these, found, strict=True))

        measured = run_in_blocks([path for path in paths if path.is_dir()])
        try:
            measured |= run_in_blocks([path for path in paths if path.is_file() and by_weights])
        except ProcessFailed as failure:
            log.warning("%s; llama.cpp runs the files instead", failure)
        for path in paths:
            if path not in measured:
                measured[path] = evaluator.measure_gguf(
                    path.resolve(), kept, threads=cores(), scored=scored[path]
                )
        rows = [(f"{source.id} ({reference_name(source)})", kept.row, "0.scored.npy")]
        rows += [(path.name, measured[path], scored[path].name) for path in paths]
        return [
            (name, dataclasses.replace(row, log_probabilities=file if keep else ""))
            for name, row, file in rows
        ]


def shards_of(path: Path) -> list[Path]:
    """A folder, or a GGUF file with all its shards. Raises InputError if one is missing."""
    match = gguf_head.SHARD.search(path.name)
    if path.is_dir() or match is None:
        return [path]
    total = int(match[0].rpartition("-")[2].removesuffix(".gguf"))
    stem = path.name[: match.start()]
    every = [path.with_name(f"{stem}-{i:05d}-of-{total:05d}.gguf") for i in range(1, total + 1)]
    if gone := [one.name for one in every if not one.is_file()]:
        raise InputError(f"{path.name} is one of {total} shards, and {gone[0]} is not beside it")
    return every


def refuse_other_files(paths: Sequence[Path]) -> None:
    """Refuse what is neither a GGUF file nor a model folder. Raises InputError."""
    for path in paths:
        if not path.exists():
            raise InputError(f"no such file or folder: {path}")
        if path.is_dir() and not (path / "config.json").is_file():
            raise InputError(
                f"{path} is not a model folder: it has no config.json. For a folder of GGUF files,"
                " name the files"
            )
        if path.is_file() and path.suffix != ".gguf":
            raise InputError(f"{path} is neither a .gguf file nor a model folder")
