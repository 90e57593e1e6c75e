"""The sensitivities of a GGUF run's tensors: given, or measured by gradients."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoquant import calibration
from autoquant.backends.llamacpp import converter as llama
from autoquant.core import journal, licenses
from autoquant.core.bundled import BUILTIN, KINDS, SENSITIVITY, suited
from autoquant.core.errors import InputError
from autoquant.core.files import key_of, sha256_of
from autoquant.core.journal import RunFolder
from autoquant.core.progress import Bar
from autoquant.core.records import Snapshot, Source
from autoquant.core.texts import Document, expanded, parts
from autoquant.core.version import __version__
from autoquant.evaluate import sources
from autoquant.evaluate.scoring import CONTEXT
from autoquant.fisher import table
from autoquant.fisher.table import SAMPLE, Row, Sensitivities
from autoquant.hub import download
from autoquant.methods import gradients
from autoquant.methods.cutting import tokens
from autoquant.methods.gguf.options import FISHER, GgufOptions

log = logging.getLogger(__name__)
STEP, IMATRIX = "sensitivity", "imatrix.gguf"
# in the journal's folder: the tensors of a measurement that is not done
BEGUN = "sensitivity.jsonl"


@dataclass(frozen=True)
class Text:
    """What sensitivities are measured on: documents by kind."""

    name: str
    by_kind: Mapping[str, Sequence[Document]]


def check(source: Source, options: GgufOptions, asked: str = "") -> None:
    """Refuse what cannot be measured, and a file that is not there; ``asked`` is the option that
    asks for it, if not one of these. Raises InputError.
    """
    default = GgufOptions.model_fields["sensitivity_samples"].default
    idle = not options.gradients and not options.fits and not options.size
    if idle and options.sensitivity_samples != default:
        raise InputError(
            "sensitivity_samples: sensitivities are not measured in this run; add size"
            " (--size) or imatrix='fisher', or leave sensitivity_samples out"
        )
    asked = asked or ("size" if options.size else "imatrix")
    if source.gguf and (options.size or options.gradients):
        base = f", {source.base_model}" if source.base_model else ""
        raise InputError(
            f"{asked}: gradients are computed by transformers, and {source.id} is a GGUF file."
            f" Take the model that it was made of{base}"
        )
    if not options.gradients:
        if options.size:
            given_path(options)
        if options.size and options.imatrix == FISHER:
            given_imatrix(options)
        return
    gradients.check(source, asked, "Take types (--types) with imatrix='builtin'")


def refuse_without_memory(source: Source, options: GgufOptions, folder: Path) -> None:
    """Refuse gradients that there is no memory for, unless the run in a folder has done with them.
    Raises InputError.
    """
    if options.gradients and STEP not in journal.read(folder)[1]:
        how(source, options)


def how(source: Source, options: GgufOptions) -> dict[str, Any]:
    """How the model is run forward and backward (arguments of Blockwise). Raises InputError without
    memory for it.
    """
    return gradients.how(
        source,
        options.sensitivity_samples,
        "Close other programs, or take a table that was made elsewhere (sensitivity)",
    )


def key(source: Source, options: GgufOptions, converted: str, imatrix: str) -> str:
    """What sensitivities depend on: the unquantized file's key, the importance matrix's, and the
    text.
    """
    text = _text(source, options)
    return key_of(
        converted,
        imatrix,
        text.by_kind,
        options.sensitivity_samples,
        options.calibration_seed,
        bool(options.size) and options.candidates,
    )


def _text(source: Source, options: GgufOptions) -> Text:
    """The user's own text, if an importance matrix is computed on one; else the built-in text for
    this, which is neither the one to calibrate on nor the one to measure on.
    """
    if options.imatrix == "calibration":
        found = calibration.documents(options, source.folder)
        return Text(found.name, {"": found.texts})
    ours = not options.collects or options.imatrix in (BUILTIN, *KINDS)
    name = options.imatrix if options.collects else BUILTIN
    name = suited(name, source.folder)
    said = calibration.builtin_in_words(name) if ours else Path(name).name
    return Text(said, parts(name, "imatrix", SENSITIVITY))


def given(options: GgufOptions, snapshot: Snapshot, shapes: Mapping[str, Any]) -> Sensitivities:
    """The table that is named, if it is of this model. Raises InputError."""
    found = table.read(_given(options)[0])
    table.refuse_other(found, snapshot, shapes)
    return found


def given_path(options: GgufOptions) -> Path:
    """The table that is named, as a file. Raises InputError."""
    return _given(options)[0]


def given_imatrix(options: GgufOptions) -> Path:
    """The importance matrix that lies beside a table that is named. Raises InputError."""
    path = _given(options)[1]
    if path is None:
        raise InputError(
            f"sensitivity: beside {options.sensitivity} is no {IMATRIX} that it was made with. Give"
            " an importance matrix (imatrix), or measure again (leave sensitivity out)"
        )
    return path


def _given(options: GgufOptions) -> tuple[Path, Path | None]:
    """The files of a table and its importance matrix; of a repository they are fetched."""
    path = expanded(options.sensitivity, "sensitivity")
    if path.is_dir():
        path /= table.FILE
    if path.is_file():
        beside = path.with_name(IMATRIX)
        return path, beside if beside.is_file() else None
    repo, _, revision = options.sensitivity.partition("@")
    if not licenses.is_repo_id(repo) or path.suffix == ".json":
        raise InputError(
            f"sensitivity: no such file: {options.sensitivity}; give a {table.FILE}, a folder or a"
            " repository on the Hub (owner/name) that has one, or measure"
        )
    found = download.one_file(repo, revision or None, table.FILE, "sensitivity")
    if options.imatrix != FISHER:
        return found, None
    return found, download.one_file(repo, revision or None, IMATRIX, "sensitivity")


def measure(
    snapshot: Snapshot,
    options: GgufOptions,
    run: RunFolder,
    key: str,
    kinds: Mapping[str, list[str]],
    shapes: Mapping[str, tuple[int, ...]],
    imatrix: Path | None,
    env: Mapping[str, str],
) -> dict[str, Any]:
    """Measure; without an ``imatrix`` one is made of the gradients too, in the run's folder. Notes
    the step, and gives its facts. Interrupted, it begins again with what was quantized already.
    """
    text, length = _text(snapshot.source, options), min(CONTEXT, snapshot.source.context)
    chunks = _chunks(snapshot, options, run, text, length, env)
    if len(chunks) < options.sensitivity_samples:
        log.warning(
            "sensitivities: %s has %d chunks of %d tokens, fewer than %d (sensitivity_samples)",
            text.name, len(chunks), length, options.sensitivity_samples,
        )  # fmt: skip
    begun, rows = _begun(run, key, shapes)
    part = run.work / IMATRIX
    with open(begun, "a", encoding="utf-8") as kept, Bar("sensitivities") as progress:

        def told(answer: dict[str, Any]) -> None:
            if "tensor" not in answer:
                return
            name = answer["tensor"]
            rows[name] = Row(shapes[name], answer["nats"], answer["quantized"], answer["rows"])
            kept.write(json.dumps(answer) + "\n")
            kept.flush()

        facts = sources.in_worker(
            snapshot,
            run,
            "autoquant.fisher.collect:collect",
            told=told,
            log=run.logs,
            env=env,
            progress=progress,
            source=sources.file_of(snapshot, [], options.converter),
            chunks=chunks,
            kinds=dict(kinds),
            imatrix=str(imatrix or ""),
            own="" if imatrix else str(part),
            dataset=text.name,
            sample=SAMPLE,
            threads=options.cores,
            known={name: row.nats for name, row in rows.items()},
            seed=options.calibration_seed,
            plan=how(snapshot.source, options),
        )
    outputs = []
    if imatrix is None:
        outputs.append(run.finish(part))
    source = snapshot.source
    facts |= {"text": text.name, "chunks": len(chunks), "length": length}
    if options.size:
        about = {
            "model": source.id,
            **({"commit": source.revision} if source.revision else {}),
            "text": text.name,
            "chunks": len(chunks),
            "tokens in a chunk": length,
            "importance matrix": "of the gradients" if imatrix is None else imatrix.name,
            "versions": f"autoquant {__version__}, llama-cpp-python {llama.installed_version()}",
        }
        ordered = {name: rows[name] for name in kinds if name in rows}
        path = run.folder / table.FILE
        Sensitivities(table.weights_of(snapshot), ordered, about).write(path)
        outputs.append(path)
    run.record(STEP, key, outputs, facts, {path.name: sha256_of(path) for path in outputs})
    begun.unlink()
    if facts["unknown"]:
        log.warning(
            "sensitivities: nothing is known of %d tensors (%s …), which keep llama.cpp's types",
            len(facts["unknown"]), facts["unknown"][0],
        )  # fmt: skip
    if facts["unseen"]:
        log.warning(
            "sensitivities: in a block as many as %d experts got no token of the text; they count"
            " like the average of the others", facts["unseen"],
        )  # fmt: skip
    return dict(facts)


def _chunks(
    snapshot: Snapshot,
    options: GgufOptions,
    run: RunFolder,
    text: Text,
    length: int,
    env: Mapping[str, str],
) -> list[list[int]]:
    """The text in chunks that begin as those that are measured on."""
    return tokens(text.by_kind, snapshot, options.sensitivity_samples, length, run, env)


def _begun(run: RunFolder, key: str, shapes: Mapping[str, Any]) -> tuple[Path, dict[str, Row]]:
    """The file of a measurement that is under way, and the tensors that it has."""
    path, rows = run.ours / BEGUN, dict[str, Row]()
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    if lines[:1] == [key]:
        for line in filter(None, lines[1:-1]):  # the last one may be cut off
            answer = json.loads(line)
            name = answer["tensor"]
            rows[name] = Row(shapes[name], answer["nats"], answer["quantized"], answer["rows"])
    kept = [json.dumps({"tensor": name, **asdict(row)}) for name, row in rows.items()]
    path.write_text("".join(f"{line}\n" for line in (key, *kept)), encoding="utf-8")
    return path, rows
