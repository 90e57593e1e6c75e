"""Measuring the artifacts of a run: what is known already is not measured again."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from autoquant.backends.llamacpp import converter as llama
from autoquant.core.cache import cache_folder
from autoquant.core.errors import CheckFailed, InputError
from autoquant.core.files import free_bytes, key_of
from autoquant.core.journal import RunFolder
from autoquant.core.machine import cores, memory_available
from autoquant.core.options import MethodOptions
from autoquant.core.progress import hidden
from autoquant.core.records import Artifact, Evaluation, Snapshot, Source
from autoquant.display.tables import reference_name
from autoquant.evaluate.evaluator import Evaluator
from autoquant.runtime import environments, process

# bytes beside twice the artifact: Python, NumPy and llama.cpp's or torch's own buffers
WORKER_MEMORY = 600 << 20
SMALL = 2_000_000_000  # parameters; evaluate="auto" measures up to here
WRONG = 0.1  # nats per token; Q8_0 of models of 1B and more is below 0.005 in published figures


def memory_needed(source: Source) -> int:
    """Bytes that running the unquantized model by transformers takes, roughly: 4 a parameter, and
    the libraries.
    """
    return 4 * source.parameters + (1 << 30)


def no_room(source: Source) -> str:
    """What to say where the unquantized model does not fit into memory."""
    return (
        f"measuring needs the unquantized model in memory ({memory_needed(source) / 1e9:.1f} GB,"
        f" {memory_available() / 1e9:.1f} GB are free). Use evaluate='off', or for GGUF"
        " keep_intermediate=True"
    )


def evaluator_of(
    snapshot: Snapshot, logs: Path, text: str, chunks: int, env: Mapping[str, str]
) -> Evaluator:
    """The evaluator of a source, with references in the cache folder."""
    return Evaluator(
        snapshot.folder,
        snapshot.sha256,
        text=text,
        chunks=chunks,
        context=snapshot.source.context,
        cache=cache_folder() / "references",
        logs=logs,
        threads=cores(),
        env=dict(env),
        gguf=snapshot.folder / snapshot.source.gguf if snapshot.source.gguf else None,
    )


def evaluate(
    snapshot: Snapshot,
    options: MethodOptions,
    run: RunFolder,
    artifacts: tuple[Artifact, ...],
    *,
    env: Mapping[str, str],
    unquantized: Callable[[], Path] | None = None,
) -> tuple[tuple[Artifact, ...], Evaluation]:
    """The artifacts with their evaluations, and the unquantized model's.

    ``unquantized`` makes a GGUF file that stands in for a source too large for transformers in
    memory. Each row is noted in the journal as soon as it is measured. Raises InputError without
    room.
    """
    evaluator = evaluator_of(snapshot, run.logs, options.eval_text, options.eval_chunks, env)
    keys = {a.type: key_of(evaluator.key(), [f.sha256 for f in a.files]) for a in artifacts}
    rows = {
        a.type: Evaluation(**facts)
        for a in artifacts
        if (facts := run.done(f"evaluate {a.type}", keys[a.type]))
    }
    earlier = run.done("evaluate unquantized", evaluator.key())
    todo = [artifact for artifact in artifacts if artifact.type not in rows]
    if todo or earlier is None:
        gguf = _refuse_without_room(snapshot.source, evaluator, unquantized)
        with _Bar(1 + len(artifacts)) as bar:
            array, reference = evaluator.reference(bar.part(""), gguf)
            facts = dataclasses.asdict(reference)
            run.record("evaluate unquantized", evaluator.key(), [], facts)
            for artifact, row in zip(todo, _measure(todo, array, evaluator, run, bar), strict=True):
                rows[artifact.type] = row
    else:
        reference = Evaluation(**earlier)
    measured = tuple(dataclasses.replace(a, evaluation=rows[a.type]) for a in artifacts)
    return measured, reference


def refuse_wrong_conversion(
    snapshot: Snapshot,
    options: MethodOptions,
    run: RunFolder,
    artifacts: Sequence[Artifact],
    nearly_lossless: Sequence[str],
    *,
    env: Mapping[str, str],
    unquantized: Callable[[], Path] | None,
) -> None:
    """Refuse a file of a type that cannot lose much, and has. Where there is an ``unquantized``
    file, and it is near the source, it is the model that is sensitive (a mixture of experts may
    choose others for a small difference), and not the conversion that is wrong. Raises CheckFailed.
    """
    far = [
        artifact
        for artifact in artifacts
        if artifact.type in nearly_lossless
        and artifact.evaluation is not None
        and artifact.evaluation.kl_mean > WRONG
    ]
    if not far or far[0].evaluation is None:
        return
    found = far[0].evaluation.kl_mean
    whole = unquantized() if unquantized is not None else None
    if whole is not None and whole.name != far[0].name:
        evaluator = evaluator_of(snapshot, run.logs, options.eval_text, options.eval_chunks, env)
        array, _ = evaluator.reference()
        converted = evaluator.measure("gguf", whole, array, threads=cores()).kl_mean
        # a model that answers to the least change: most of the loss is the type's
        if converted <= max(WRONG, min(found / 3, 2 * WRONG)):
            return
    raise CheckFailed(
        f"{far[0].name}: the KL divergence from the source is {found:.3f} nats per token, where"
        f" {far[0].type} loses less than 0.01 as a rule: the conversion is wrong for"
        f" {snapshot.source.architecture}. Please report it with the model's name and"
        f" {snapshot.source.architecture}'s config.json: {environments.repository()}/issues"
    )


def _refuse_without_room(
    source: Source, evaluator: Evaluator, unquantized: Callable[[], Path] | None
) -> Path | None:
    """Refuse without memory or disk; the GGUF file to take for the reference, if one is needed."""
    disk = evaluator.reference_bytes(source.vocab_size)
    if disk > free_bytes(evaluator.cache):
        raise InputError(
            f"measuring needs {disk / 1e9:.2f} GB in {evaluator.cache} for the unquantized model's"
            " log-probabilities; take fewer eval_chunks, set AUTOQUANT_CACHE to a larger disk, or"
            " evaluate='off'"
        )
    # of one whose weights stay on the Hub, transformers has nothing to read
    at_hand = not source.remote
    if source.gguf or (at_hand and memory_needed(source) <= memory_available()):
        return None
    if unquantized is None:
        raise InputError(no_room(source))
    return unquantized()


def _measure(
    artifacts: Sequence[Artifact], reference: Path, evaluator: Evaluator, run: RunFolder, bar: _Bar
) -> list[Evaluation]:
    """Measure artifacts side by side, as many at a time as memory and cores allow."""
    if not artifacts:
        return []
    largest = max(artifact.bytes for artifact in artifacts)
    fit = memory_available() // (1 + WORKER_MEMORY + 2 * largest)
    at_once = max(1, min(len(artifacts), cores(), fit))

    def job_of(artifact: Artifact) -> Any:
        def job(children: process.Children) -> Evaluation:
            row = evaluator.measure(
                "folder" if artifact.is_folder else "gguf",
                artifact.path_in(run.folder),
                reference,
                threads=max(1, cores() // at_once),
                children=children,
                progress=bar.part(artifact.type),
            )
            key = key_of(evaluator.key(), [stored.sha256 for stored in artifact.files])
            run.record(f"evaluate {artifact.type}", key, [], dataclasses.asdict(row))
            return row

        return job

    return process.side_by_side([job_of(artifact) for artifact in artifacts], at_once)


class _Bar:
    """One bar for several measurements, in percent of each."""

    def __init__(self, parts: int) -> None:
        self._done: dict[str, float] = {}
        self._bar = tqdm(
            total=100 * parts,
            desc="measure",
            disable=hidden(),
            leave=False,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}",
        )

    def part(self, name: str) -> process.Progress:
        """The progress function of one measurement."""

        def report(done: int, total: int) -> None:
            before, self._done[name] = self._done.get(name, 0.0), 100 * done / max(1, total)
            self._bar.update(self._done[name] - before)

        return report

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._bar.update(self._bar.total - self._bar.n)  # what was known has not moved it
        self._bar.close()


def evaluate_files(
    paths: Sequence[Path],
    snapshot: Snapshot,
    *,
    text: str = "builtin",
    chunks: int = 20,
    converter: str = "",
) -> list[tuple[str, Evaluation]]:
    """Measure any GGUF files or model folders against an unquantized model; the first row is that
    model itself.

    The tokens are those of the reference's tokenizer. Nothing is written beside the reference
    cache.
    """
    env, source = {}, snapshot.source
    if source.gguf or any(path.is_file() for path in paths):
        env = llama.environment(llama.locate(converter))
    with tempfile.TemporaryDirectory() as scratch:
        evaluator = evaluator_of(snapshot, Path(scratch) / "log", text, chunks, env)
        array, row = evaluator.reference()
        rows = [(f"{source.id} ({reference_name(source)})", row)]
        for path in paths:
            kind = "gguf" if path.is_file() else "folder"
            row = evaluator.measure(kind, path.resolve(), array, threads=cores())
            rows.append((path.name, row))
    return rows


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
