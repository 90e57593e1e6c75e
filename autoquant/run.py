"""The pipeline, and the only place that knows its order:

model -> Source -> (check) -> Snapshot -> run folder -> quantize and verify -> evaluate -> card, plot -> Result
"""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from autoquant import __version__, evaluate, options, process, source
from autoquant.errors import InputError
from autoquant.evaluate import Evaluator, memory_available
from autoquant.journal import RunFolder, key_of
from autoquant.llama.converter import cache_folder
from autoquant.methods import METHODS, Method
from autoquant.options import MethodOptions
from autoquant.plans import Plan
from autoquant.results import Artifact, Evaluation, Result
from autoquant.source import Snapshot, Source

log = logging.getLogger(__name__)
SMALL = 2_000_000_000  # parameters; evaluate="auto" measures up to here


def quantize(method: Method, model: str | Path, *, out: str | Path | None = None, values: Mapping[str, Any] | MethodOptions) -> Result:
    """Run a method on a model; see the method's own function for its options.

    Writes into ``out`` (default: ``./<model>-<METHOD>``) the artifacts, README.md (model card), size-against-quality.png and
    ``.autoquant/`` (journal). Called again, it goes on after the last finished step.
    """
    started = time.monotonic()
    chosen = values if isinstance(values, MethodOptions) else options.build(method.options, values)
    found = source.resolve(model, allow_pickle=chosen.allow_pickle)
    method.check(found, chosen)
    if chosen.evaluate != "off":
        evaluate.read_text(chosen.eval_text, "eval_text", evaluate.BUILTIN)
    folder = output_folder(method, found, out)
    snapshot = source.fetch(found)
    with RunFolder(folder, method=method.name, source_id=found.id, source_sha256=snapshot.sha256) as run:
        made = method.quantize(snapshot, chosen, run)
        artifacts, reference = made.artifacts, None
        if chosen.evaluate == "on" or (chosen.evaluate == "auto" and found.parameters <= SMALL):
            artifacts, reference = _evaluate(method, snapshot, chosen, run, artifacts, made.unquantized)
        elif chosen.evaluate == "auto":
            log.warning("not measured: the model has more than %d billion parameters; evaluate='on' (--evaluate on) measures all the same", SMALL // 10**9)
        result = Result(folder=folder, method=method.name, source=found, artifacts=artifacts, reference=reference,
                        seconds=time.monotonic() - started, provenance=_provenance(method, snapshot, chosen, made.provenance))
        _write_card(result)
    return result


def _write_card(result: Result) -> None:
    from autoquant import card  # imports huggingface_hub, a quarter of a second

    card.write(result)


def output_folder(method: Method, found: Source, out: str | Path | None) -> Path:
    """Where a run writes: ``out``, or ``./<model>-<METHOD>``. Never inside the source."""
    folder = Path(out).expanduser().resolve() if out is not None else Path.cwd() / f"{found.name}-{method.folder_suffix}"
    if folder == found.folder or found.folder in folder.parents:
        raise InputError(f"out: {folder} is inside the model's own folder; name another")
    return folder


def plan(method: Method, model: str | Path, *, out: str | Path | None = None, values: Mapping[str, Any] | MethodOptions) -> Plan:
    """What a run would make and need; nothing is written."""
    chosen = values if isinstance(values, MethodOptions) else options.build(method.options, values)
    found = source.resolve(model, allow_pickle=chosen.allow_pickle)
    return method.plan(found, chosen, output_folder(method, found, out))


def _evaluator(snapshot: Snapshot, logs: Path, text: str, chunks: int, env: dict[str, str]) -> Evaluator:
    return Evaluator(snapshot.folder, snapshot.sha256, text=text, chunks=chunks, context=snapshot.source.context, cache=cache_folder() / "references",
                     logs=logs, threads=_cores(), env=env)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _evaluate(method: Method, snapshot: Snapshot, chosen: MethodOptions, run: RunFolder, artifacts: tuple[Artifact, ...],
              unquantized: Path | None) -> tuple[tuple[Artifact, ...], Evaluation | None]:
    env = method.environment(chosen)
    evaluator = _evaluator(snapshot, run.logs, chosen.eval_text, chosen.eval_chunks, env)
    keys = {a.type: key_of(evaluator.key(), [f.sha256 for f in a.files]) for a in artifacts}
    known = {a.type: facts for a in artifacts if (facts := run.done(f"evaluate {a.type}", keys[a.type]))}
    earlier = run.done("evaluate unquantized", evaluator.key())
    if len(known) == len(artifacts) and earlier is not None:
        return tuple(dataclasses.replace(a, evaluation=Evaluation(**known[a.type])) for a in artifacts), Evaluation(**earlier)
    needed = 4 * snapshot.source.parameters + (1 << 30)
    through_gguf = None
    if needed > memory_available():
        if method.kind != "gguf" or unquantized is None:
            raise InputError(f"measuring needs the unquantized model in memory ({needed / 1e9:.1f} GB, {memory_available() / 1e9:.1f} GB are free). "
                             "Use evaluate='off', or for GGUF keep_intermediate=True")
        through_gguf = unquantized
    room = evaluator.reference_bytes(snapshot.source.vocab_size)
    standing = next(parent for parent in (evaluator.cache, *evaluator.cache.parents) if parent.exists())
    if room > shutil.disk_usage(standing).free:
        raise InputError(f"measuring needs {room / 1e9:.2f} GB in {evaluator.cache} for the unquantized model's log-probabilities; "
                         "take fewer eval_chunks, set AUTOQUANT_CACHE to a larger disk, or evaluate='off'")
    with tqdm(total=100 * (len(artifacts) + 1), desc="measure", disable=None, leave=False, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}") as bar:
        def part(done: int, total: int, seen: dict[str, float], name: str) -> None:
            before, seen[name] = seen.get(name, 0.0), 100 * done / max(1, total)
            bar.update(seen[name] - before)

        seen: dict[str, float] = {}
        array, unquantized_row = evaluator.reference(lambda d, t: part(d, t, seen, ""), through_gguf)
        run.record("evaluate unquantized", evaluator.key(), [], dataclasses.asdict(unquantized_row))
        todo = [a for a in artifacts if a.type not in known]
        at_once = max(1, min(len(todo), _cores(), memory_available() // (1 + (600 << 20) + 2 * max((a.bytes for a in todo), default=0))))

        def job_of(artifact: Artifact) -> Any:
            def job(children: process.Children) -> Evaluation:
                row = evaluator.measure(method.kind, run.folder / artifact.name, array, threads=max(1, _cores() // at_once), children=children,
                                        progress=lambda d, t: part(d, t, seen, artifact.type))
                run.record(f"evaluate {artifact.type}", keys[artifact.type], [], dataclasses.asdict(row))
                return row

            return job

        rows = dict(zip([a.type for a in todo], process.side_by_side([job_of(a) for a in todo], at_once), strict=True)) if todo else {}
    return tuple(dataclasses.replace(a, evaluation=rows.get(a.type) or Evaluation(**known[a.type])) for a in artifacts), unquantized_row


def evaluate_result(result: Result, *, text: str, chunks: int) -> Result:
    """Measure a result's artifacts again with another text or number of chunks."""
    method = METHODS[result.method]
    chosen = options.build(method.options, {"evaluate": "on", "eval_text": text, "eval_chunks": chunks})
    snapshot = source.fetch(result.source)
    with RunFolder(result.folder, method=method.name, source_id=result.source.id, source_sha256=snapshot.sha256) as run:
        artifacts, reference = _evaluate(method, snapshot, chosen, run, result.artifacts, None)
        again = dataclasses.replace(result, artifacts=artifacts, reference=reference)
        _write_card(again)
    return again


def evaluate_files(paths: list[Path], reference: str, *, text: str = "builtin", chunks: int = 20, converter: str = "") -> list[tuple[str, Evaluation]]:
    """Measure any GGUF files or model folders against an unquantized model; the first row is that model itself.

    The tokens are those of the reference's tokenizer. Nothing is written beside the reference cache.
    """
    import tempfile

    from autoquant.llama import converter as llama

    found = source.resolve(reference)
    for path in paths:
        if not path.exists():
            raise InputError(f"no such file or folder: {path}")
        if path.is_file() and path.suffix != ".gguf":
            raise InputError(f"{path} is neither a .gguf file nor a model folder")
    env = llama.environment(llama.locate(converter)) if any(path.is_file() for path in paths) else {}
    with tempfile.TemporaryDirectory() as scratch:
        snapshot = source.fetch(found)
        evaluator = _evaluator(snapshot, Path(scratch) / "log", text, chunks, env)
        array, row = evaluator.reference()
        rows = [(f"{found.id} (unquantized)", row)]
        for path in paths:
            kind = "gguf" if path.is_file() else "folder"
            rows.append((path.name, evaluator.measure(kind, path.resolve(), array, threads=_cores())))
    return rows


def _provenance(method: Method, snapshot: Snapshot, chosen: MethodOptions, facts: dict[str, Any]) -> dict[str, Any]:
    """What the card says about how the files were made; nothing in it names this machine."""
    import importlib.metadata

    versions = []
    for package in method.packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    changed = {name: value for name, value in chosen.model_dump().items() if value != type(chosen).model_fields[name].default}
    shown = {name: Path(str(value)).name if name in ("eval_text", "imatrix", "converter") else value for name, value in changed.items()}
    return {"source": snapshot.source.id, "source sha256": snapshot.sha256, **({"source commit": snapshot.source.revision} if snapshot.source.revision else {}),
            **facts, "options": shown, "versions": ", ".join([f"autoquant {__version__}", *versions, f"Python {platform.python_version()} on {sys.platform}"])}


