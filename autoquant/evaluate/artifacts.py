"""Measuring the artifacts of a run: what is known already is not measured again."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from autoquant.backends.llamacpp import converter as llama
from autoquant.core.cache import cache_folder
from autoquant.core.errors import CheckFailed, InputError, ProcessFailed
from autoquant.core.files import free_bytes, key_of
from autoquant.core.journal import RunFolder
from autoquant.core.machine import cores, memory_available
from autoquant.core.options import MethodOptions
from autoquant.core.progress import hidden
from autoquant.core.records import Artifact, Evaluation, Snapshot, Source
from autoquant.display.tables import reference_name
from autoquant.evaluate import planning, sources
from autoquant.evaluate.evaluator import Evaluator, Kept
from autoquant.forward import cost
from autoquant.runtime import environments, process

# bytes beside twice the artifact: Python, NumPy and llama.cpp's or torch's own buffers
WORKER_MEMORY = 600 << 20
WRONG = 0.1  # nats per token; Q8_0 of models of 1B and more is below 0.005 in published figures

log = logging.getLogger(__name__)


def evaluator_of(
    snapshot: Snapshot, logs: Path, text: str, chunks: int, env: Mapping[str, str]
) -> Evaluator:
    """The evaluator of a source, with references in the cache folder."""
    source = snapshot.source
    return Evaluator(
        sources.told(snapshot),
        snapshot.sha256,
        text=text,
        chunks=chunks,
        context=source.context,
        cache=cache_folder() / "references",
        logs=logs,
        threads=cores(),
        env=env,
        python=sources.python_for(snapshot, logs),
        serve=partial(sources.serving, snapshot),
        gguf=snapshot.folder / source.gguf if source.gguf else None,
    )


def evaluate(
    snapshot: Snapshot,
    options: MethodOptions,
    run: RunFolder,
    artifacts: tuple[Artifact, ...],
    *,
    env: Mapping[str, str],
    unquantized: Callable[[], Path] | None = None,
    how: Mapping[str, Any] | None = None,
    stand_in: Path | None = None,
) -> tuple[tuple[Artifact, ...], Evaluation]:
    """The artifacts with their evaluations, and the unquantized model's.

    ``unquantized`` makes a GGUF file that stands in for a source that transformers does not know.
    ``how`` says how models are run block by block (see evaluate.planning). ``stand_in`` is an
    unquantized GGUF file to be read instead of a source whose files are on the Hub. Each row is
    noted in the journal as soon as it is measured. Raises InputError without room.
    """
    evaluator = evaluator_of(snapshot, run.logs, options.eval_text, options.eval_chunks, env)
    if stand_in is not None and planning.known(snapshot.source):
        evaluator.source = sources.file_of(snapshot, [stand_in])
    source = snapshot.source
    measuring = _Measuring(snapshot, evaluator, run, dict(how or {}))
    known = {}
    for engine in dict.fromkeys((planning.by_weights(source), False)):
        measuring.by_weights = engine
        known = {a.type: run.done(f"evaluate {a.type}", measuring.key(a)) for a in artifacts}
        if any(known.values()):
            break  # what was begun with an engine is ended with it
    else:
        measuring.by_weights = planning.by_weights(source)
    rows = {name: Evaluation(**facts) for name, facts in known.items() if facts}
    earlier = run.done("evaluate unquantized", evaluator.key())
    todo = [artifact for artifact in artifacts if artifact.type not in rows]
    if todo or earlier is None:
        _refuse_without_room(source, evaluator)
        gguf = None
        if not source.gguf and not planning.known(source) and unquantized is not None:
            gguf = unquantized()
        with _Bar(1 + len(artifacts)) as bar:
            kept = evaluator.reference(bar.part(""), gguf, measuring.how)
            facts = dataclasses.asdict(kept.row)
            run.record("evaluate unquantized", evaluator.key(), [], facts)
            reference = kept.row
            try:
                rows |= measuring.measure(todo, kept, bar)
            except ProcessFailed as failure:
                if not measuring.by_weights:
                    raise
                log.warning("%s; llama.cpp runs the files instead", failure)
                measuring.by_weights = False
                rows = measuring.measure(list(artifacts), kept, bar)
    else:
        reference = Evaluation(**earlier)
    measured = tuple(dataclasses.replace(a, evaluation=rows[a.type]) for a in artifacts)
    return measured, reference


@dataclasses.dataclass
class _Measuring:
    """Measures the artifacts of one run. ``how`` are arguments of blockwise.Blockwise;
    ``by_weights``: GGUF files are run by their weights, not by llama.cpp.
    """

    snapshot: Snapshot
    evaluator: Evaluator
    run: RunFolder
    how: dict[str, Any]
    by_weights: bool = False

    def key(self, artifact: Artifact) -> str:
        """What the row of an artifact depends on."""
        by = "weights" if self.by_weights and not artifact.is_folder else ""
        return key_of(self.evaluator.key(), [stored.sha256 for stored in artifact.files], by)

    def measure(
        self, artifacts: Sequence[Artifact], kept: Kept, bar: _Bar
    ) -> dict[str, Evaluation]:
        """The rows by type."""
        in_blocks = [one for one in artifacts if one.is_folder or self.by_weights]
        rows = self._in_blocks(in_blocks, kept, bar) if in_blocks else {}
        return rows | self._by_llama_cpp([a for a in artifacts if a not in in_blocks], kept, bar)

    def _note(self, artifact: Artifact, row: Evaluation) -> Evaluation:
        facts = dataclasses.asdict(row)
        self.run.record(f"evaluate {artifact.type}", self.key(artifact), [], facts)
        return row

    def _in_blocks(
        self, artifacts: Sequence[Artifact], kept: Kept, bar: _Bar
    ) -> dict[str, Evaluation]:
        """All in one pass beside the reference."""
        files, states = [], []
        for artifact in artifacts:
            path = self.run.work / f"states-{artifact.type}-{self.key(artifact)}.npy"
            states.append(path)
            file = sources.file_of(self.snapshot, artifact.paths_in(self.run.folder))
            files.append({**file, "states": str(path)})
        parts = [bar.part(artifact.type) for artifact in artifacts]

        def progress(done: int, total: int) -> None:
            for i, part in enumerate(parts):
                part(min(max(0, done * len(parts) - i * total), total), total)

        found = self.evaluator.measure(files, kept, progress=progress, plan=self.how)
        for path in states:
            path.unlink(missing_ok=True)
        return {a.type: self._note(a, row) for a, row in zip(artifacts, found, strict=True)}

    def _by_llama_cpp(
        self, artifacts: Sequence[Artifact], kept: Kept, bar: _Bar
    ) -> dict[str, Evaluation]:
        """Side by side, as many at a time as memory and cores allow."""
        if not artifacts:
            return {}
        largest = max(artifact.bytes for artifact in artifacts)
        fit = memory_available() // (1 + WORKER_MEMORY + 2 * largest)
        at_once = max(1, min(len(artifacts), cores(), fit))

        def job_of(artifact: Artifact) -> Any:
            def job(children: process.Children) -> Evaluation:
                row = self.evaluator.measure_gguf(
                    artifact.path_in(self.run.folder),
                    kept,
                    threads=max(1, cores() // at_once),
                    children=children,
                    progress=bar.part(artifact.type),
                )
                return self._note(artifact, row)

            return job

        rows = process.side_by_side([job_of(artifact) for artifact in artifacts], at_once)
        return {a.type: row for a, row in zip(artifacts, rows, strict=True)}


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
        kept = evaluator.reference()
        converted = evaluator.measure_gguf(whole, kept, threads=cores()).kl_mean
        # a model that answers to the least change: most of the loss is the type's
        if converted <= max(WRONG, min(found / 3, 2 * WRONG)):
            return
    raise CheckFailed(
        f"{far[0].name}: the KL divergence from the source is {found:.3f} nats per token, where"
        f" {far[0].type} loses less than 0.01 as a rule: the conversion is wrong for"
        f" {snapshot.source.architecture}. Please report it with the model's name and"
        f" {snapshot.source.architecture}'s config.json: {environments.repository()}/issues"
    )


def _refuse_without_room(source: Source, evaluator: Evaluator) -> None:
    """Refuse without room for what is kept of the unquantized model."""
    known = planning.known(source)
    disk = evaluator.reference_bytes(cost.of(source).width if known else source.vocab_size)
    if disk > free_bytes(evaluator.cache):
        raise InputError(
            f"measuring needs {disk / 1e9:.2f} GB in {evaluator.cache} for what is kept of the"
            " unquantized model; take fewer eval_chunks, set AUTOQUANT_CACHE to a larger disk, or"
            " evaluate='off'"
        )


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
    how = planning.how(source, chunks)
    with tempfile.TemporaryDirectory() as scratch, _Bar(1 + len(paths)) as bar:
        evaluator = evaluator_of(snapshot, Path(scratch) / "log", text, chunks, env)
        kept = evaluator.reference(bar.part(""), plan=how)
        rows = {f"{source.id} ({reference_name(source)})": kept.row}
        in_blocks = [one for one in paths if one.is_dir() or planning.by_weights(source)]
        files = [sources.file_of(snapshot, [path.resolve()]) for path in in_blocks]
        for i, file in enumerate(files):
            file["states"] = f"{scratch}/{i}.npy"
        found = evaluator.measure(files, kept, plan=how) if files else []
        measured = dict(zip(in_blocks, found, strict=True))
        for path in paths:
            if path not in measured:
                measured[path] = evaluator.measure_gguf(path.resolve(), kept, threads=cores())
        return [*rows.items(), *((path.name, measured[path]) for path in paths)]


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
