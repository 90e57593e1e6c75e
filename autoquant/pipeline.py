"""The pipeline, and the only place that knows its order:

model -> Source -> (check, plan) -> Snapshot -> run folder -> quantize and verify -> evaluate ->
card, plot -> RunRecord -> Receipt
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from autoquant.core import bundled, journal
from autoquant.core.errors import HubFailed, InputError
from autoquant.core.journal import RunFolder
from autoquant.core.machine import cores, nvidia_gpu
from autoquant.core.options import MethodOptions, build
from autoquant.core.plans import Plan
from autoquant.core.progress import Stages
from autoquant.core.records import WEIGHTS, Evaluation, RunRecord, Snapshot, Source
from autoquant.core.texts import parts
from autoquant.display import gains
from autoquant.evaluate import artifacts as measuring
from autoquant.evaluate import coming, conversion, planning
from autoquant.evaluate.planning import Measuring
from autoquant.methods import METHODS, texts
from autoquant.methods.base import AnyMethod
from autoquant.methods.gguf import Gguf, measured
from autoquant.methods.gguf.measured import Measured
from autoquant.methods.gguf.options import GgufOptions
from autoquant.publish.provenance import carry_licence, provenance_of
from autoquant.runtime import preload
from autoquant.source import bytes_to_fetch, resolve

log = logging.getLogger(__name__)
# bytes to download, above which a run is planned first: planning takes some seconds
PLAN_FIRST = 100 << 20


@preload.kept()
def quantize(
    method: AnyMethod,
    model: str | Path,
    *,
    out: str | Path | None = None,
    values: Mapping[str, Any] | MethodOptions,
) -> RunRecord:
    """Run a method on a model; see the method's own function for its options.

    Writes into ``out`` (default: ``./<model>-<METHOD>``) the artifacts, README.md (model card),
    size-against-quality.png, the source's licence files and ``.autoquant/`` (journal). Called
    again, it continues after the last finished step.
    """
    started = time.monotonic()
    source, options = _resolve(method, model, values)
    method.check(source, options)
    if options.evaluate != "off":
        parts(options.eval_text, "eval_text", bundled.EVALUATION)
    folder = output_folder(method, source, out, options)
    journal.check_place(folder, method.name, source.id)
    method.check_hardware(options, folder)
    client = None
    if options.upload:
        from autoquant.publish import allowed, background

        steps = list(journal.read(folder)[1])
        client = allowed.check(options, source, method.uploaded(options), steps)
    measured = _measuring(method, source, options, folder)
    asked = planning.key(options)
    if measured is not None:
        options = options.model_copy(update={"eval_chunks": measured.chunks})
    texts.refuse_short(source, options, method.environment(options), measured=measured is not None)
    if bytes_to_fetch(source) > PLAN_FIRST:
        planned = method.plan(source, options, folder)
        if planned.refused:
            raise InputError(planned.refused)
    notes = method.about(source, options)
    for note in notes:
        log.warning("%s: %s", source.id, note)
    stages = Stages(
        *(["download"] if bytes_to_fetch(source) else []),
        "quantize",
        *(["measure"] if measured is not None else []),
        *(["upload"] if client is not None else []),
    )
    with stages.at("download"):
        snapshot = method.fetch(source, options, folder)
    source = snapshot.source
    with RunFolder(
        folder, method=method.name, source_id=source.id, source_sha256=snapshot.sha256
    ) as run:
        upload = None
        if client is not None:
            upload = background.BackgroundUpload(options, client, source, run)
            run.on_artifact, run.on_shard = upload.artifact, upload.shard
        try:
            if measured is not None:
                run.record(planning.STEP, asked, [], {"chunks": measured.chunks})
            record = _make(method, snapshot, options, run, measured, stages, started=started)
            if upload is not None:
                try:
                    with stages.at("upload"):
                        receipts = upload.finish(record)
                    record = dataclasses.replace(record, receipts=receipts)
                except HubFailed as failure:
                    raise HubFailed(
                        f"{failure} (the files in {folder} are finished: `autoquant upload {folder}"
                        f" {options.upload}` also resumes)"
                    ) from None
        except BaseException:
            if upload is not None:
                upload.abandon()
            raise
    return record


def _resolve(
    method: AnyMethod, model: str | Path, values: Mapping[str, Any] | MethodOptions
) -> tuple[Source, MethodOptions]:
    """The model's source, and the options with what they leave to it."""
    options = values if isinstance(values, MethodOptions) else build(method.Options, values)
    source = resolve(model, allow_pickle=options.pickled, base=options.base)
    if source.gguf and not method.reads_gguf:
        base = source.base_model
        raise InputError(
            f"{source.id} is a GGUF file ({source.dtype}), of which only GGUF can be made anew"
            f" (autoquant.gguf, `autoquant quantize gguf`); {method.title} begins with a checkpoint"
            f" of transformers. Take the model that it was made of{f', {base}' if base else ''}"
        )
    options = method.resolve_defaults(source, options)
    if getattr(options, "fits", ""):
        from autoquant.sizing.fitting import fitted

        options = method.resolve_defaults(source, fitted(source, options))
    return source, options


def _measuring(
    method: AnyMethod, source: Source, options: MethodOptions, folder: Path
) -> Measuring | None:
    """How a run measures its artifacts; None if it does not. Raises InputError where that is asked
    for and cannot be; says so where it is left to us.
    """
    if options.evaluate == "off":
        return None
    variants, steps = method.variants(options), journal.read(folder)[1]
    before = steps.get(planning.STEP) or {}
    begun = before["facts"]["chunks"] if before.get("key") == planning.key(options) else 0
    again = method.to_measure(source, options, folder)
    found = planning.of(source, options, len(variants), begun, again)
    made = method.made_before(options, steps)
    done = all(f"evaluate {name}" in steps for name in ("unquantized", *made))
    if reason := (method.unmeasured(source, options, folder) or found.why_not):
        if options.evaluate == "on":
            raise InputError(f"evaluate: {reason}")
        # what was measured stays so; what was not is not
        found = dataclasses.replace(found, why_not=reason, note="", read="")
        if not done:
            log.warning("it will not be measured: %s", reason)
            return None
    for said in (found.note, "" if done else found.read):
        if said:
            log.warning("%s", said)
    return found


def _make(
    method: AnyMethod,
    snapshot: Snapshot,
    options: MethodOptions,
    run: RunFolder,
    measured: Measuring | None,
    stages: Stages,
    *,
    started: float,
) -> RunRecord:
    """Quantize, measure, and write card and plot."""
    from autoquant.publish import finished

    with stages.at("quantize"):
        output = method.quantize(snapshot, options, run)
    artifacts, reference, provenance = output.artifacts, None, output.provenance
    if measured is not None:
        with stages.at("measure"):
            artifacts, reference = measuring.evaluate(
                snapshot,
                options,
                run,
                artifacts,
                env=method.environment(options),
                unquantized=output.unquantized,
                made_with=output.made_with,
                how=measured.how,
                stand_in=output.stand_in,
                why_not=measured.why_not,
            )
        conversion.refuse_wrong_conversion(
            snapshot,
            options,
            run,
            artifacts,
            method.nearly_lossless,
            env=method.environment(options),
            unquantized=output.unquantized,
        )
    record = RunRecord(
        folder=run.folder,
        method=method.name,
        source=snapshot.source,
        artifacts=artifacts,
        reference=reference,
        extras=("README.md", *carry_licence(snapshot, run.folder), *output.extras),
        base_model=options.base_model,
        seconds=time.monotonic() - started,
        provenance=provenance_of(method, snapshot, options, provenance),
    )
    if reference is not None:
        record.provenance["measured on"] = finished.measured_on(options, snapshot.source)
    for gain in gains.of(record):
        if gain.is_none:
            log.warning("%s", gain)
    return finished.finish(record, run)


def _quantizing(method: AnyMethod, source: Source, options: MethodOptions) -> dict[str, float]:
    """Seconds to quantize on this machine's cores, by what was measured on two of them, as a plan
    has it; empty where that says nothing: of methods that plan it themselves, and on a GPU.
    """
    seconds = method.seconds(source, options)
    if not seconds or "cpu" not in method.runs_on or nvidia_gpu():
        return {}
    return {"quantize": 2 * seconds / cores()}


@preload.kept()
def plan(
    method: AnyMethod,
    model: str | Path,
    *,
    out: str | Path | None = None,
    values: Mapping[str, Any] | MethodOptions,
) -> Plan:
    """What a run would make and need; nothing is written."""
    source, options = _resolve(method, model, values)
    folder = output_folder(method, source, out, options)
    planned = method.plan(source, options, folder)
    notes = [*planned.notes, *method.about(source, options)]
    possible = [item for item in planned.items if not item.impossible]
    seconds = _quantizing(method, source, options) | dict(planned.seconds)
    if options.evaluate != "off" and not method.unmeasured(source, options, folder):
        again = method.to_measure(source, options, folder)
        found = planning.of(source, options, len(possible), again=again)
        if found.minutes and not found.why_not:
            # what it reads from the Hub is a part of the download already
            seconds["measure"] = 60 * (found.minutes - found.reading)
        notes += [one for one in (found.needs, found.note, found.why_not or found.read) if one]
    return dataclasses.replace(planned, notes=tuple(notes), seconds=seconds)


@preload.kept()
def sensitivities(
    model: str | Path, *, out: str | Path | None = None, values: Mapping[str, Any]
) -> Measured:
    """Measure how sensitive a model's tensors are, or find that in the run's folder; see
    :func:`autoquant.sensitivity`.

    Writes into ``out`` (default: that of GGUF) sensitivity.json, imatrix.gguf and ``.autoquant/``;
    a run of GGUF with the same options continues from there. Called again after an interrupt, it
    continues with the next tensor.
    """
    method = Gguf()
    source, resolved = _resolve(method, model, measured.options(values))
    options = cast(GgufOptions, resolved)
    method.check_sensitivities(source, options)
    folder = output_folder(method, source, out, options)
    journal.check_place(folder, method.name, source.id)
    texts.refuse_short(source, options, method.environment(options), measured=False)
    for note in method.about(source, options):
        log.warning("%s: %s", source.id, note)
    snapshot = method.fetch(source, options, folder)
    with RunFolder(
        folder, method=method.name, source_id=source.id, source_sha256=snapshot.sha256
    ) as run:
        return method.sensitivities(snapshot, options, run)


def output_folder(
    method: AnyMethod, source: Source, out: str | Path | None, options: MethodOptions
) -> Path:
    """Where a run writes: ``out``, or ``./<model>-<METHOD>``. Never inside the source."""
    folder = Path.cwd() / f"{source.name}-{method.folder_suffix(options)}"
    if out is not None:
        folder = Path(out).expanduser().resolve()
    own = source.given or source.folder
    # a GGUF file lies anywhere; its folder is no checkpoint's
    if folder == own or (own in folder.parents and not source.gguf):
        raise InputError(f"out: {folder} is inside the model's own folder; name another")
    return folder


@preload.kept()
def evaluate_run(
    record: RunRecord, *, text: str, chunks: int, by_weights: bool | None = None
) -> RunRecord:
    """Measure a run's artifacts again with another text or number of chunks; GGUF files by their
    weights, or by what runs them if nobody asks, or as they were measured before (None).
    """
    from autoquant.publish import finished

    method = METHODS[record.method]
    if record.adapter_alone:
        raise InputError(
            "an adapter alone cannot be run, so it cannot be measured: quantize the merged model"
        )
    if gone := [one for one in record.artifacts if one.facts.get("deleted")]:
        raise InputError(
            f"{gone[0].type} was deleted here as it was uploaded (delete_uploaded): it can only be"
            f" measured where it is downloaded from {gone[0].facts['deleted']}"
        )
    values = {"evaluate": "on", "eval_text": text, "eval_chunks": chunks}
    if "eval_by_weights" in method.Options.model_fields:
        before = [one.evaluation.engine for one in record.artifacts if one.evaluation]
        values["eval_by_weights"] = WEIGHTS in before if by_weights is None else by_weights
    options = build(method.Options, values)
    source = record.source
    if not source.at_hand:  # of a result loaded later
        if source.revision is None:
            raise InputError(
                f"the model is gone: {source.folder / source.gguf}. Measuring needs the unquantized"
                " model"
            )
        source = resolve(source.where, allow_pickle=source.pickle)
    snapshot = coming.snapshot_of(source)
    with RunFolder(
        record.folder,
        method=method.name,
        source_id=record.source.id,
        source_sha256=snapshot.sha256,
    ) as run:
        artifacts, reference = measuring.evaluate(
            snapshot,
            options,
            run,
            record.artifacts,
            env=method.environment(options),
            how=planning.how(snapshot.source, chunks),
        )
        provenance = {**record.provenance, "measured on": finished.measured_on(options, source)}
        again = dataclasses.replace(
            record, artifacts=artifacts, reference=reference, provenance=provenance
        )
        return finished.finish(again, run)


@preload.kept()
def evaluate_files(
    paths: Sequence[Path],
    reference: str,
    *,
    text: str = "builtin",
    chunks: int = 20,
    keep: Path | None = None,
) -> list[tuple[str, Evaluation]]:
    """Measure any GGUF files or model folders against an unquantized model; the first row is that
    model itself. The log-probabilities of the scored tokens are kept in the folder ``keep``, if one
    is named. Raises InputError for what is neither file nor folder of a model.
    """
    measuring.refuse_other_files(paths)
    snapshot = coming.snapshot_of(resolve(reference))
    return measuring.evaluate_files(paths, snapshot, text=text, chunks=chunks, keep=keep)
