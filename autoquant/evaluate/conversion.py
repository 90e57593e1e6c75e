"""Whether a GGUF file is its source: of one that is another model something went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from autoquant.core.errors import CheckFailed
from autoquant.core.files import key_of
from autoquant.core.journal import RunFolder
from autoquant.core.machine import cores
from autoquant.core.options import MethodOptions
from autoquant.core.records import WEIGHTS, Artifact, Snapshot, Source
from autoquant.evaluate import planning, sources
from autoquant.runtime import environments

WRONG = 0.1  # nats per token; Q8_0 of models of 1B and more is below 0.005 in published figures


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
    _refuse_disagreeing(snapshot, options, run, artifacts, env)
    far = [
        artifact
        for artifact in artifacts
        if artifact.type in nearly_lossless
        and artifact.evaluation is not None
        and artifact.evaluation.kl_mean > WRONG
    ]
    if not far or far[0].evaluation is None:
        return
    if not (snapshot.source.gguf or planning.known(snapshot.source)):
        return  # it was measured against the unquantized file: nothing is known of that one
    found = far[0].evaluation.kl_mean
    whole = unquantized() if unquantized is not None else None
    if whole is not None and whole.name != far[0].name:
        evaluator = sources.evaluator_of(
            snapshot, run.logs, options.eval_text, options.eval_chunks, env
        )
        kept = evaluator.reference()
        converted = evaluator.measure_gguf(whole, kept, threads=cores()).kl_mean
        # a model that answers to the least change: most of the loss is the type's
        if converted <= max(WRONG, min(found / 3, 2 * WRONG)):
            return
    raise CheckFailed(
        f"{far[0].name}: the KL divergence from the source is {found:.3f} nats per token, where"
        f" {far[0].type} loses less than 0.01 as a rule: {_wrong(snapshot.source)}"
    )


def _refuse_disagreeing(
    snapshot: Snapshot,
    options: MethodOptions,
    run: RunFolder,
    artifacts: Sequence[Artifact],
    env: Mapping[str, str],
) -> None:
    """Refuse files that were measured by their weights, and are another model when llama.cpp runs
    them: a wrong conversion is undone where weights are read back. One chunk of the largest file.
    """
    measured = [
        one for one in artifacts if one.evaluation is not None and one.evaluation.engine == WEIGHTS
    ]
    if not measured:
        return
    largest = max(measured, key=lambda one: one.bytes)
    assert largest.evaluation is not None
    evaluator = sources.evaluator_of(
        snapshot, run.logs, options.eval_text, options.eval_chunks, env
    )
    key = key_of(evaluator.key(), [stored.sha256 for stored in largest.files])
    facts = run.done("llama.cpp agrees", key)
    if facts is None:
        path, kept = largest.path_in(run.folder), evaluator.reference()
        row = evaluator.measure_gguf(path, kept, threads=cores(), chunks=1)
        facts = {"kl_mean": row.kl_mean}
    found, own = float(facts["kl_mean"]), largest.evaluation.kl_mean
    if not found <= 2 * own + WRONG:
        raise CheckFailed(
            f"{largest.name}: the KL divergence from the source is {own:.3f} nats per token by its"
            f" weights, and {found:.3f} when llama.cpp runs it: {_wrong(snapshot.source)}"
        )
    run.record("llama.cpp agrees", key, [], facts)


def _wrong(source: Source) -> str:
    return (
        f"the conversion is wrong for {source.architecture}. Please report it with the model's name"
        f" and {source.architecture}'s config.json: {environments.repository()}/issues"
    )
