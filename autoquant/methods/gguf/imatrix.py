"""The importance matrix of a GGUF run: given, or collected on a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant import calibration
from autoquant.calibration import builtin_in_words
from autoquant.core.bundled import BUILTIN, CALIBRATION, KINDS, suited
from autoquant.core.files import key_of, sha256_of
from autoquant.core.journal import RunFolder
from autoquant.core.progress import Bar
from autoquant.core.records import Snapshot, Source
from autoquant.core.texts import CHARACTERS, parts, read_text
from autoquant.evaluate import planning, sources
from autoquant.evaluate.scoring import CONTEXT
from autoquant.methods.cutting import tokens
from autoquant.methods.gguf import sensitivity
from autoquant.methods.gguf.options import FISHER, MEASURE, GgufOptions
from autoquant.methods.gguf.sizes import RUN_BY
from autoquant.methods.gguf.streaming import Way
from autoquant.runtime import process

BLOCKS = "blocks"  # in keys: collected by transformers


def find(
    source: Source,
    options: GgufOptions,
    run: RunFolder,
    converted: str,
    way: Way,
    *,
    in_blocks: bool,
) -> Imatrix | None:
    """The importance matrix that is given or is to be made, with its facts if it is there.
    ``converted`` is the key of the unquantized file, on which it depends; where there was no room
    for that, it was another type's. ``in_blocks``: it is collected by transformers.
    """
    if options.imatrix == "none":
        return None
    if (path := options.given_imatrix) is not None:
        facts = {"text": f"given file {path.name}", "chunks": "given"}
        return Imatrix(path, sha256_of(path), facts)
    if options.imatrix == FISHER:
        return _of_gradients(source, options, run, converted)
    if options.imatrix == "calibration":
        key = key_of(
            converted,
            calibration.documents(options, source.folder).texts,
            options.calibration_samples,
            options.calibration_length,
            options.calibration_seed,
        )
    else:
        by_kind = parts(suited(options.imatrix, source.folder), "imatrix", CALIBRATION)
        key = key_of(converted, by_kind, options.imatrix_chunks)
    # what was collected is not collected again, whatever room or card there is now
    first = RUN_BY if way.twice else BLOCKS if in_blocks else ""
    ways = dict.fromkeys((first, "", BLOCKS, RUN_BY))
    by_way = [key_of(key, one) if one else key for one in ways]
    done = (one for one in by_way if run.done("imatrix", one))
    key = next(done, by_way[0])
    known = run.done("imatrix", key)
    return Imatrix(run.folder / "imatrix.gguf", key, known, in_blocks and not way.twice)


def _of_gradients(source: Source, options: GgufOptions, run: RunFolder, converted: str) -> Imatrix:
    """The one that comes with the sensitivities: measured, or beside a table that is given."""
    if options.size and options.sensitivity != MEASURE:
        path = sensitivity.given_imatrix(options)
        facts = {"text": f"of gradients, given with {path.parent.name}", "chunks": "given"}
        return Imatrix(path, sha256_of(path), facts)
    key = sensitivity.key(source, options, converted, "")
    known = run.done(sensitivity.STEP, key)
    return Imatrix(run.folder / sensitivity.IMATRIX, key, known and of_gradients(known))


def of_gradients(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of an importance matrix, of those of the sensitivities that it came with."""
    return {
        "text": f"of gradients (Fisher information) on {facts['text']}",
        "chunks": facts["chunks"],
        "length": facts["length"],
    }


@dataclass
class Imatrix:
    """An importance matrix: its file, what it depends on, its facts once it is there, and whether
    transformers collects it, block by block, where it is not.
    """

    path: Path
    key: str
    facts: dict[str, Any] | None
    in_blocks: bool = False

    def collect(
        self,
        snapshot: Snapshot,
        options: GgufOptions,
        run: RunFolder,
        model: Path | None,
        env: Mapping[str, str],
        way: Way,
    ) -> None:
        """Run the text through the file ``model``, or block by block without one, and keep each
        layer's squared inputs.
        """
        ids: list[list[int]] = []
        text, about = "", dict[str, Any]()
        if options.imatrix == "calibration":
            documents = calibration.documents(options, snapshot.source.folder)
            context = min(options.calibration_length, snapshot.source.context)
            name = documents.name
            ids = process.call(
                "autoquant.calibration:pack",
                log=run.logs,
                env=env,
                folder=str(snapshot.folder),
                texts=documents.texts,
                samples=options.calibration_samples,
                length=context,
                seed=options.calibration_seed,
            )
            about = {"unit": "samples", "length": context}
            about |= {"calibration sha256": calibration.digest(ids)}
        else:
            context = min(CONTEXT, snapshot.source.context)
            given_text = suited(options.imatrix, snapshot.source.folder)
            ours = given_text in (BUILTIN, *KINDS)
            name = builtin_in_words(given_text) if ours else Path(given_text).name
            by_kind = parts(given_text, "imatrix", CALIBRATION)
            told = any(not isinstance(one, str) for every in by_kind.values() for one in every)
            if (told or len(by_kind) > 1) and not snapshot.source.gguf:
                ids = tokens(by_kind, snapshot, options.imatrix_chunks, context, run, env)
            else:
                needed = options.imatrix_chunks * context * CHARACTERS
                text = read_text(given_text, "imatrix", CALIBRATION)[:needed]
        part = run.work / self.path.name
        with Bar("importance matrix") as progress:
            given: dict[str, Any] = {"log": run.logs, "env": env, "progress": progress}
            given |= {"target": str(part), "dataset": name, "threads": options.cores}
            if model is None:
                facts = in_blocks(snapshot, options, run, text, ids, context, given)
            else:
                facts = process.call(
                    "autoquant.backends.llamacpp.imatrix:collect_imatrix",
                    model=str(model),
                    text=text,
                    ids=ids,
                    chunks=options.imatrix_chunks,
                    context=context,
                    **given,
                )
        run.finish(part)
        about |= {"on": way.runs} if way.twice else {}
        about |= {"by": "transformers"} if model is None else {}
        self.facts = {**facts, "text": name, **about}
        run.record(
            "imatrix", self.key, [self.path], self.facts, {self.path.name: sha256_of(self.path)}
        )


def in_blocks(
    snapshot: Snapshot,
    options: GgufOptions,
    run: RunFolder,
    text: str,
    ids: list[list[int]],
    context: int,
    given: dict[str, Any],
) -> dict[str, Any]:
    """Collect by transformers, block by block, on a text or on ready-made ``ids``."""
    if not ids:
        chunks = options.imatrix_chunks
        ids = tokens({"": [text]}, snapshot, chunks, context, run, given["env"])
    found: dict[str, Any] = sources.in_worker(
        snapshot,
        run,
        "autoquant.evaluate.importance:collect",
        source=sources.file_of(snapshot, [], options.converter),
        chunks=ids,
        plan=planning.how(snapshot.source, len(ids)),
        **given,
    )
    return found
