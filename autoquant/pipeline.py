"""The pipeline, and the only place that knows its order:

model -> Source -> (check, plan) -> Snapshot -> run folder -> quantize and verify -> evaluate ->
card, plot -> RunRecord -> Receipt
"""

from __future__ import annotations

import dataclasses
import json
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

from autoquant import __version__, environments, evaluate, process, source
from autoquant.core import files, journal, licenses, options
from autoquant.core.cache import cache_folder
from autoquant.core.errors import HubFailed, InputError
from autoquant.core.files import key_of
from autoquant.core.journal import RunFolder
from autoquant.core.memory import memory_available
from autoquant.core.options import MethodOptions
from autoquant.core.progress import hidden
from autoquant.core.records import Artifact, Evaluation, Plan, Receipt, RunRecord, Snapshot, Source
from autoquant.evaluate import Evaluator
from autoquant.methods import METHODS, Method

log = logging.getLogger(__name__)
SMALL = 2_000_000_000  # parameters; evaluate="auto" measures up to here
# bytes to download, above which a run is planned first: planning takes some seconds
PLAN_FIRST = 100 << 20


def quantize(
    method: Method,
    model: str | Path,
    *,
    out: str | Path | None = None,
    values: Mapping[str, Any] | MethodOptions,
) -> RunRecord:
    """Run a method on a model; see the method's own function for its options.

    Writes into ``out`` (default: ``./<model>-<METHOD>``) the artifacts, README.md (model card),
    size-against-quality.png, the source's licence files and ``.autoquant/`` (journal). Called
    again, it goes on after the last finished step.
    """
    started = time.monotonic()
    chosen = values if isinstance(values, MethodOptions) else options.build(method.options, values)
    found = source.resolve(model, allow_pickle=chosen.pickled)
    chosen = method.settle(found, chosen)
    method.check(found, chosen)
    if chosen.evaluate != "off":
        files.read_text(chosen.eval_text, "eval_text", evaluate.BUILTIN)
    folder = output_folder(method, found, out, chosen)
    journal.check_place(folder, method.name, found.id)
    method.machine(chosen, folder)
    client = None
    if chosen.upload:
        from autoquant.hub import send, upload

        client = upload.check(chosen, found, method.variants(chosen), list(journal.read(folder)[1]))
    measuring = chosen.evaluate == "on" or (chosen.evaluate == "auto" and found.parameters <= SMALL)
    if (
        measuring
        and method.kind != "gguf"
        and "evaluate unquantized" not in journal.read(folder)[1]
        and _needed_to_measure(found) > memory_available()
    ):
        if chosen.evaluate == "on":
            raise InputError(_no_room_to_measure(found))
        log.warning("it will not be measured: %s", _no_room_to_measure(found))
        measuring = False
    if source.bytes_to_fetch(found) > PLAN_FIRST:
        planned = method.plan(found, chosen, folder)
        if planned.refused:
            raise InputError(planned.refused)
    snapshot = source.fetch(found)
    found = snapshot.source
    with RunFolder(
        folder, method=method.name, source_id=found.id, source_sha256=snapshot.sha256
    ) as run:
        ahead = send.Ahead(chosen, client, found, run) if client is not None else None
        try:
            run.on_artifact = ahead.artifact if ahead is not None else None
            made = method.quantize(snapshot, chosen, run)
            artifacts, reference = made.artifacts, None
            if measuring:
                artifacts, reference = _evaluate(
                    method, snapshot, chosen, run, artifacts, made.unquantized
                )
            elif chosen.evaluate == "auto" and found.parameters > SMALL:
                log.warning(
                    "not measured: the model has more than %d billion parameters; evaluate='on'"
                    " (--evaluate on) measures all the same",
                    SMALL // 10**9,
                )
            extras = ("README.md", *_carry_licence(snapshot, folder), *made.extras)
            result = RunRecord(
                folder=folder,
                method=method.name,
                source=found,
                artifacts=artifacts,
                reference=reference,
                extras=extras,
                base_model=chosen.base_model,
                seconds=time.monotonic() - started,
                provenance=_provenance(method, snapshot, chosen, made.provenance),
            )
            if reference is not None:
                result.provenance["measured on"] = _measured_on(chosen)
            result = _finish(result, run)
            if ahead is not None:
                try:
                    result = dataclasses.replace(result, receipts=ahead.finish(result))
                except HubFailed as failure:
                    raise HubFailed(
                        f"{failure} (the files in {folder} are finished: `autoquant upload {folder}"
                        f" {chosen.upload}` continues too)"
                    ) from None
        except BaseException:
            if ahead is not None:
                ahead.abandon()
            raise
    return result


def _finish(result: RunRecord, run: RunFolder) -> RunRecord:
    """Write card and plot and note the result in the journal, so that it can be loaded and uploaded
    later.
    """
    from autoquant import card  # imports huggingface_hub, a quarter of a second
    from autoquant.display.plot import PLOT

    readme = result.folder / "README.md"
    before = run.steps.get("result", {}).get("facts", {})
    edited = readme.is_file() and before.get("card sha256") not in (None, files.sha256_of(readme))
    made = json.loads(json.dumps(result.to_json()))  # as it comes back from the journal
    same = edited and all(before[name] == made[name] for name in ("artifacts", "reference"))
    if same:
        log.info("README.md has been edited by hand: it is kept")
    else:
        if edited:
            kept = next(
                path
                for i in range(1, 10_000)
                if not (
                    path := result.folder / f"README.edited{'' if i == 1 else f'-{i}'}.md"
                ).exists()
            )
            os.replace(readme, kept)
            log.warning(
                "README.md had been edited by hand: a new one was written, and yours is %s now",
                kept.name,
            )
        card.write(result)
    if (result.folder / PLOT).is_file() and PLOT not in result.extras:
        result = dataclasses.replace(result, extras=(*result.extras, PLOT))
    run.record(
        "result",
        "",
        [],
        {
            **result.to_json(),
            "card sha256": before["card sha256"] if same else files.sha256_of(readme),
        },
    )
    return result


def _measured_on(chosen: MethodOptions) -> str:
    return (
        "Jane Austen's Persuasion, held out from the built-in calibration text"
        if chosen.eval_text == "builtin"
        else Path(chosen.eval_text).name
    )


def _carry_licence(snapshot: Snapshot, folder: Path) -> list[str]:
    """Copy the source's licence files beside the artifacts; their names."""
    names = sorted(
        {
            path.name
            for pattern in licenses.FILES
            for path in snapshot.folder.glob(pattern)
            if path.is_file()
        }
    )
    for name in names:
        part = folder / f".{name}.part"
        shutil.copyfile(snapshot.folder / name, part)
        os.replace(part, folder / name)
    return names


def load(folder: str | Path) -> RunRecord:
    """The result of an earlier run, from its folder's journal. Raises InputError if the folder
    holds no finished run.
    """
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise InputError(f"no such folder: {folder}; give the folder of a finished run")
    steps = journal.read(path)[1]
    if "result" not in steps:
        raise InputError(
            f"{path} holds no finished run of"
            f" AutoQuant{'; run the same quantize command again to finish it' if steps else ''}"
        )
    receipts = tuple(
        Receipt.from_json(record["facts"]["receipt"])
        for name, record in steps.items()
        if name.startswith("upload ") and "receipt" in record["facts"]
    )
    return RunRecord.from_json(
        path,
        {name: value for name, value in steps["result"]["facts"].items() if name != "card sha256"},
        receipts,
    )


def upload_folder(folder: str | Path, values: Mapping[str, Any], *, dry_run: bool = False) -> Any:
    """Upload a finished run's folder: a tuple of Receipts, or with ``dry_run`` an UploadPlan, and
    nothing is sent or written.
    """
    from autoquant import card
    from autoquant.hub import send, upload

    # a wrong one is told before the folder is looked at
    options.build(options.UploadOptions, values)
    result = load(folder)
    usual = METHODS[result.method].options.model_fields["layout"].default
    chosen = options.build(options.UploadOptions, {"layout": usual, **values})
    identity, steps = journal.read(result.folder)
    client = upload.check(
        chosen,
        result.source,
        [artifact.type for artifact in result.artifacts],
        list(steps),
        base_model=result.base_model,
        quiet=dry_run,
    )
    named = chosen.base_model and chosen.base_model != result.base_model
    if named:
        result = dataclasses.replace(result, base_model=chosen.base_model)
    if dry_run:
        readme = result.folder / "README.md"
        text = (
            card.with_base_model(readme.read_text(encoding="utf-8"), chosen.base_model)
            if named and readme.is_file()
            else None
        )
        return upload.plan(client, result, chosen, upload.journaled(steps), text)
    with RunFolder(
        result.folder,
        method=result.method,
        source_id=identity["source"],
        source_sha256=identity["source_sha256"],
    ) as run:
        if named:
            # it may have been edited by hand: only the name is changed
            readme = result.folder / "README.md"
            files.write_atomically(
                readme, card.with_base_model(readme.read_text(encoding="utf-8"), chosen.base_model)
            )
            run.record(
                "result",
                "",
                [],
                {
                    **result.to_json(),
                    "card sha256": run.steps["result"]["facts"].get("card sha256"),
                },
            )
        return send.upload(send.Sender(client), result, chosen, run)


def output_folder(
    method: Method, found: Source, out: str | Path | None, chosen: MethodOptions
) -> Path:
    """Where a run writes: ``out``, or ``./<model>-<METHOD>``. Never inside the source."""
    folder = (
        Path(out).expanduser().resolve()
        if out is not None
        else Path.cwd() / f"{found.name}-{method.folder_suffix(chosen)}"
    )
    if folder == found.folder or found.folder in folder.parents:
        raise InputError(f"out: {folder} is inside the model's own folder; name another")
    return folder


def plan(
    method: Method,
    model: str | Path,
    *,
    out: str | Path | None = None,
    values: Mapping[str, Any] | MethodOptions,
) -> Plan:
    """What a run would make and need; nothing is written."""
    chosen = values if isinstance(values, MethodOptions) else options.build(method.options, values)
    found = source.resolve(model, allow_pickle=chosen.pickled)
    chosen = method.settle(found, chosen)
    return method.plan(found, chosen, output_folder(method, found, out, chosen))


def _evaluator(
    snapshot: Snapshot, logs: Path, text: str, chunks: int, env: dict[str, str]
) -> Evaluator:
    return Evaluator(
        snapshot.folder,
        snapshot.sha256,
        text=text,
        chunks=chunks,
        context=snapshot.source.context,
        cache=cache_folder() / "references",
        logs=logs,
        threads=_cores(),
        env=env,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _needed_to_measure(found: Source) -> int:
    """Bytes that running the unquantized model by transformers takes, roughly: 4 a parameter, and
    the libraries.
    """
    return 4 * found.parameters + (1 << 30)


def _no_room_to_measure(found: Source) -> str:
    return (
        f"measuring needs the unquantized model in memory ({_needed_to_measure(found) / 1e9:.1f}"
        f" GB, {memory_available() / 1e9:.1f} GB are free). Use evaluate='off', or for GGUF"
        " keep_intermediate=True"
    )


def _evaluate(
    method: Method,
    snapshot: Snapshot,
    chosen: MethodOptions,
    run: RunFolder,
    artifacts: tuple[Artifact, ...],
    unquantized: Path | None,
) -> tuple[tuple[Artifact, ...], Evaluation | None]:
    env = method.environment(chosen)
    evaluator = _evaluator(snapshot, run.logs, chosen.eval_text, chosen.eval_chunks, env)
    keys = {a.type: key_of(evaluator.key(), [f.sha256 for f in a.files]) for a in artifacts}
    known = {
        a.type: facts for a in artifacts if (facts := run.done(f"evaluate {a.type}", keys[a.type]))
    }
    earlier = run.done("evaluate unquantized", evaluator.key())
    if len(known) == len(artifacts) and earlier is not None:
        return tuple(
            dataclasses.replace(a, evaluation=Evaluation(**known[a.type])) for a in artifacts
        ), Evaluation(**earlier)
    through_gguf = None
    if _needed_to_measure(snapshot.source) > memory_available():
        if method.kind != "gguf" or unquantized is None:
            raise InputError(_no_room_to_measure(snapshot.source))
        through_gguf = unquantized
    room = evaluator.reference_bytes(snapshot.source.vocab_size)
    if room > files.free_bytes(evaluator.cache):
        raise InputError(
            f"measuring needs {room / 1e9:.2f} GB in {evaluator.cache} for the unquantized model's"
            " log-probabilities; take fewer eval_chunks, set AUTOQUANT_CACHE to a larger disk, or"
            " evaluate='off'"
        )
    shown = tqdm(
        total=100 * (len(artifacts) + 1),
        desc="measure",
        disable=hidden(),
        leave=False,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}",
    )
    with shown as bar, evaluator:

        def part(done: int, total: int, seen: dict[str, float], name: str) -> None:
            before, seen[name] = seen.get(name, 0.0), 100 * done / max(1, total)
            bar.update(seen[name] - before)

        seen: dict[str, float] = {}
        array, unquantized_row = evaluator.reference(
            lambda d, t: part(d, t, seen, ""), through_gguf
        )
        run.record("evaluate unquantized", evaluator.key(), [], dataclasses.asdict(unquantized_row))
        todo = [a for a in artifacts if a.type not in known]
        at_once = max(
            1,
            min(
                len(todo),
                _cores(),
                memory_available()
                // (1 + (600 << 20) + 2 * max((a.bytes for a in todo), default=0)),
            ),
        )

        def job_of(artifact: Artifact) -> Any:
            def job(children: process.Children) -> Evaluation:
                row = evaluator.measure(
                    method.kind,
                    artifact.path_in(run.folder),
                    array,
                    threads=max(1, _cores() // at_once),
                    children=children,
                    progress=lambda d, t: part(d, t, seen, artifact.type),
                )
                run.record(
                    f"evaluate {artifact.type}", keys[artifact.type], [], dataclasses.asdict(row)
                )
                return row

            return job

        rows = (
            dict(
                zip(
                    [a.type for a in todo],
                    process.side_by_side([job_of(a) for a in todo], at_once),
                    strict=True,
                )
            )
            if todo
            else {}
        )
        bar.update(bar.total - bar.n)  # what was known already has not moved it
    return (
        tuple(
            dataclasses.replace(a, evaluation=rows.get(a.type) or Evaluation(**known[a.type]))
            for a in artifacts
        ),
        unquantized_row,
    )


def evaluate_run(result: RunRecord, *, text: str, chunks: int) -> RunRecord:
    """Measure a result's artifacts again with another text or number of chunks."""
    method = METHODS[result.method]
    chosen = options.build(
        method.options, {"evaluate": "on", "eval_text": text, "eval_chunks": chunks}
    )
    found = result.source
    if not found.folder.is_dir():  # of a result loaded later
        if found.revision is None:
            raise InputError(
                f"the model's folder is gone: {found.folder}. Measuring needs the unquantized model"
            )
        found = source.resolve(f"{found.id}@{found.revision}", allow_pickle=found.pickle)
    snapshot = source.fetch(found)
    with RunFolder(
        result.folder, method=method.name, source_id=result.source.id, source_sha256=snapshot.sha256
    ) as run:
        artifacts, reference = _evaluate(method, snapshot, chosen, run, result.artifacts, None)
        provenance = {**result.provenance, "measured on": _measured_on(chosen)}
        return _finish(
            dataclasses.replace(
                result, artifacts=artifacts, reference=reference, provenance=provenance
            ),
            run,
        )


def evaluate_files(
    paths: list[Path],
    reference: str,
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
    import tempfile

    from autoquant.llama import converter as llama

    snapshot = source.fetch(source.resolve(reference))
    found = snapshot.source
    for path in paths:
        if not path.exists():
            raise InputError(f"no such file or folder: {path}")
        if path.is_dir() and not (path / "config.json").is_file():
            raise InputError(
                f"{path} is no model folder: it has no config.json. Of a folder of GGUF files, name"
                " the files"
            )
        if path.is_file() and path.suffix != ".gguf":
            raise InputError(f"{path} is neither a .gguf file nor a model folder")
    env = (
        llama.environment(llama.locate(converter)) if any(path.is_file() for path in paths) else {}
    )
    with (
        tempfile.TemporaryDirectory() as scratch,
        _evaluator(snapshot, Path(scratch) / "log", text, chunks, env) as evaluator,
    ):
        array, row = evaluator.reference()
        rows = [(f"{found.id} (unquantized)", row)]
        for path in paths:
            kind = "gguf" if path.is_file() else "folder"
            rows.append(
                (path.name, evaluator.measure(kind, path.resolve(), array, threads=_cores()))
            )
    return rows


def _provenance(
    method: Method, snapshot: Snapshot, chosen: MethodOptions, facts: dict[str, Any]
) -> dict[str, Any]:
    """What the card says about how the files were made; nothing in it names this machine."""
    known = {package: environments.version(package) for package in method.packages}
    versions = [f"{package} {version}" for package, version in known.items() if version]
    changed = {
        name: value
        for name, value in chosen.model_dump().items()
        if value != type(chosen).model_fields[name].default
        and name not in options.UploadOptions.model_fields
    }
    named = ["eval_text", "imatrix", "converter"]
    # else it is something on the Hub
    named += [
        name
        for name in ("calibration", "measurement")
        if Path(str(changed.get(name, ""))).expanduser().exists()
    ]
    shown = {
        name: Path(str(value)).name if name in named else value for name, value in changed.items()
    }
    return {
        "source": snapshot.source.id,
        "source sha256": snapshot.sha256,
        **({"source commit": snapshot.source.revision} if snapshot.source.revision else {}),
        **facts,
        "options": shown,
        "versions": ", ".join(
            [
                f"autoquant {__version__}",
                *versions,
                f"Python {platform.python_version()} on {sys.platform}",
            ]
        ),
    }
