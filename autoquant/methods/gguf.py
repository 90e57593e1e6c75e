"""GGUF with llama.cpp: convert once, quantize to any number of types side by side, check each."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from autoquant import calibration, process
from autoquant.calibration import CalibrationOptions
from autoquant.core.errors import InputError
from autoquant.core.files import free_bytes, key_of, read_text, sha256_of
from autoquant.core.journal import RunFolder
from autoquant.core.memory import memory_available
from autoquant.core.options import option
from autoquant.core.progress import Bar
from autoquant.core.records import (
    Artifact,
    Check,
    Plan,
    PlanItem,
    RunRecord,
    Snapshot,
    Source,
    Stored,
)
from autoquant.evaluate import CONTEXT
from autoquant.hub.fetch import same_disk
from autoquant.llama import converter as llama
from autoquant.llama.convert import refuse
from autoquant.llama.types import TENSOR_TYPES, TYPES, UNQUANTIZED, nearest, parse
from autoquant.methods import Beside, Facts, Made, Method
from autoquant.source import DEMOS, bytes_to_fetch

log = logging.getLogger(__name__)
CALIBRATION = Path(__file__).parent.parent / "demo" / "austen_calibration.txt"
# bytes: llama.cpp's row buffers (128 MiB), Python with NumPy, the vocabulary, a mapped tensor's
# pages beside
WORKER_MEMORY = 500 << 20
# bytes: torch and transformers imported, the tokenizer; the largest tensor comes on top
CONVERTER_MEMORY = 1200 << 20
# the value of imatrix that means: on the samples of the calibration options
CALIBRATED = "calibration"
SIZES = {"K": 10**3, "M": 10**6, "G": 10**9}


class GgufOptions(CalibrationOptions):
    """The options of GGUF quantization. Names are llama.cpp's where it has one."""

    calibrated_by: ClassVar[str] = "imatrix"
    applies: ClassVar[Mapping[str, str]] = {
        **{
            name: "imatrix=calibration"
            for name in CalibrationOptions.model_fields
            if name.startswith("calibration")
        },
        **CalibrationOptions.applies,
        "imatrix_chunks": "imatrix!=none",
    }
    main: ClassVar[tuple[str, ...]] = ("types", "imatrix", "evaluate", "upload")

    types: tuple[str, ...] = option(
        ("Q4_K_M",),
        "GGUF types to make; `autoquant types` lists all of them with their use",
        metavar="TYPE,…",
        min_length=1,
    )
    imatrix: str = option(
        "none",
        "importance matrix, which improves all types below Q8_0: none, builtin (computed on English"
        " novels), a UTF-8 text file to compute it on, calibration (the samples that the"
        " calibration options give, the same as for GPTQ and AWQ), or a .gguf made before",
        metavar="none|builtin|FILE|calibration",
    )
    imatrix_chunks: int = option(
        64,
        "chunks of 512 tokens (or the model's context) to compute the importance matrix on; more"
        " than 100 rarely help",
        unit="chunks",
        ge=1,
        le=100_000,
    )
    precision: Literal["auto", "f16", "bf16", "f32"] = option(
        "auto", "precision of the unquantized file all types are made from; auto keeps the source's"
    )
    keep_intermediate: bool = option(
        False, "keep the unquantized GGUF file beside the quantized ones"
    )
    output_type: str = option(
        "", "type of the output tensor, if not the one llama.cpp chooses", metavar="TENSOR-TYPE"
    )
    embedding_type: str = option(
        "", "type of the token embeddings, if not the one llama.cpp chooses", metavar="TENSOR-TYPE"
    )
    tensor_types: tuple[str, ...] = option(
        (),
        "types of single tensors: regular expression = type, e.g. attn_v=Q8_0",
        metavar="REGEX=TENSOR-TYPE,…",
    )
    pure: bool = option(
        False,
        "the same type for all tensors, instead of llama.cpp's mixture (more bits for the sensitive"
        " ones)",
    )
    split_size: str = option(
        "",
        "split files into shards of at most this size: a number with M or G, e.g. 2G; empty does"
        " not split",
        metavar="SIZE",
    )
    pre_tokenizer: str = option(
        "",
        "pre-tokenizer to assume where llama.cpp does not know the model's, e.g. gpt-2; token ids"
        " are then compared",
        metavar="NAME",
    )
    modelfile: bool = option(False, "write an Ollama Modelfile beside each file")
    threads: int = option(
        0, "processor threads in all; 0 takes every core", unit="threads", ge=0, le=1024
    )
    allow_pickle: bool = option(
        False,
        "accept a checkpoint that has only pickle weights (.bin); they are read with torch's"
        " weights_only loader, which runs no code",
    )
    converter: str = option(
        "",
        "a llama.cpp folder or llama_cpp_python-*.tar.gz to take the converter from, instead of"
        " fetching it",
        metavar="PATH",
    )

    @field_validator("types")
    @classmethod
    def _types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(parse(name) for name in value))

    @field_validator("output_type", "embedding_type")
    @classmethod
    def _tensor_type(cls, value: str) -> str:
        return _tensor_type_name(value) if value else ""

    @field_validator("tensor_types")
    @classmethod
    def _rules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        rules = []
        for rule in value:
            pattern, equals, name = rule.rpartition("=")
            if not equals or not pattern:
                raise ValueError(
                    f"{rule!r} is no rule; write a regular expression, =, and a tensor type, e.g."
                    " attn_v=Q8_0"
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
            rules.append(f"{pattern}={_tensor_type_name(name)}")
        return tuple(rules)

    @field_validator("split_size")
    @classmethod
    def _size(cls, value: str) -> str:
        if value and not re.fullmatch(r"[1-9][0-9]*[KMG]", value.upper()):
            raise ValueError(
                f"{value!r} is no size; write a whole number followed by M or G (10^6 or 10^9"
                " bytes), e.g. 2G"
            )
        return value.upper()

    @property
    def split_bytes(self) -> int:
        """The shard size in bytes, 0 for no splitting."""
        return int(self.split_size[:-1]) * SIZES[self.split_size[-1]] if self.split_size else 0

    @property
    def cores(self) -> int:
        """Threads to use in all."""
        return (
            self.threads or len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else self.threads or os.cpu_count() or 1
        )

    def quantizing(self) -> dict[str, Any]:
        """What changes the tensors' types, in the keywords of llama.library."""
        return {
            "output_type": self.output_type,
            "embedding_type": self.embedding_type,
            "overrides": list(self.tensor_types),
            "pure": self.pure,
        }


def _tensor_type_name(name: str) -> str:
    upper = name.strip().upper()
    if upper not in TENSOR_TYPES:
        raise ValueError(
            f"{name!r} is no tensor type; nearest: {', '.join(nearest(upper, TENSOR_TYPES))}"
        )
    return upper


def settle(source: Source, options: GgufOptions) -> GgufOptions:
    """The embedded models' vocabulary is their own, so llama.cpp cannot know its pre-tokenizer; we
    do.
    """
    return (
        options.model_copy(update={"pre_tokenizer": "gpt-2"})
        if source.folder in DEMOS.values() and not options.pre_tokenizer
        else options
    )


def check(source: Source, options: GgufOptions) -> None:
    """What can be refused within a second."""
    llama.installed_version()
    idle = [
        name
        for name in CalibrationOptions.model_fields
        if name.startswith("calibration")
        and getattr(options, name) != CalibrationOptions.model_fields[name].default
    ]
    if idle and options.imatrix != CALIBRATED:
        raise InputError(
            f"{idle[0]}: used for an importance matrix with imatrix='calibration' (--imatrix"
            " calibration) only; add that, or leave it out"
        )
    if options.imatrix == "none":
        needing = [name for name in options.types if TYPES[name].imatrix == "needed"]
        if needing:
            raise InputError(
                f"types: {', '.join(needing)} {'needs' if len(needing) == 1 else 'need'} an"
                " importance matrix: add imatrix='builtin' (--imatrix builtin), or name a text"
                " file or an imatrix .gguf"
            )
    elif options.imatrix == CALIBRATED:
        calibration.check(options)
    elif not options.imatrix.endswith(".gguf"):
        read_text(options.imatrix, "imatrix", CALIBRATION)
    elif not Path(options.imatrix).is_file():
        raise InputError(f"imatrix: no such file: {options.imatrix}")
    plain = [name for name in options.types if name in UNQUANTIZED]
    if plain and options.quantizing() != GgufOptions().quantizing():
        raise InputError(
            f"types: {plain[0]} is unquantized; output_type, embedding_type, tensor_types and pure"
            " do not go with it. Make it in a run of its own"
        )
    if not any(
        (source.folder / name).is_file()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    ):
        raise InputError(
            f"{source.folder} has no tokenizer (tokenizer.json or tokenizer.model); download it too"
        )


def survey(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every type that goes with the options that are given, for a plan."""
    mixed = any(
        given.get(name) for name in ("output_type", "embedding_type", "tensor_types", "pure")
    )
    return {
        "types": tuple(
            name
            for name, row in TYPES.items()
            if not row.special and not (mixed and name in UNQUANTIZED)
        )
    }


def _precision(source: Source, options: GgufOptions) -> str:
    if options.precision != "auto":
        return options.precision
    return {"F32": "f32", "F16": "f16"}.get(source.dtype, "bf16")


def _convert(
    source: Source,
    options: GgufOptions,
    *,
    header: Path,
    target: Path,
    logs: Path,
    types: list[str],
    outtype: str,
    room: int | None,
    need: dict[str, int],
    only_plan: bool,
    progress: process.Progress | None = None,
) -> dict[str, Any]:
    tools = llama.locate(options.converter)
    sample = CALIBRATION.read_text(encoding="utf-8")[:4000]
    return dict(
        process.call(
            "autoquant.llama.convert:convert",
            log=logs,
            progress=progress,
            env=llama.environment(tools),
            model=str(source.folder),
            converter=str(tools),
            header=str(header),
            target=str(target),
            outtype=outtype,
            name=source.name,
            pre_tokenizer=options.pre_tokenizer,
            sample=sample,
            types=types,
            dry=options.quantizing(),
            room=room,
            need=need,
            imatrix=options.imatrix != "none",
            imatrix_file=(
                str(Path(options.imatrix).expanduser().resolve())
                if options.imatrix.endswith(".gguf") and room is not None
                else ""
            ),
            only_plan=only_plan,
        )
    )


def _fallback_note(planned: dict[str, Any]) -> str:
    got: dict[str, int] = {}
    for _, instead in planned["fallbacks"].values():
        got[instead] = got.get(instead, 0) + 1
    if not got:
        return ""
    return (
        f"{len(planned['fallbacks'])} of {len(planned['tensors'])} tensors have rows that are no"
        " multiple of the block size and fall back: "
        + ", ".join(f"{n} to {name}" for name, n in sorted(got.items()))
    )


def plan(source: Source, options: GgufOptions, out: Path) -> Plan:
    """The exact size of every asked type, from a header-only file; no weight is read. Takes as long
    as importing transformers.
    """
    # for planning nothing is refused for want of an imatrix
    check(
        source,
        options.model_copy(update={"imatrix": "builtin"}) if options.imatrix == "none" else options,
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = _convert(
            source,
            options,
            header=folder / "header.gguf",
            target=folder / "never.gguf",
            logs=folder / "log",
            types=list(options.types),
            outtype=_precision(source, options),
            room=None,
            need={},
            only_plan=True,
        )
    items = tuple(
        (
            PlanItem(p["type"], 0, 0.0, False, "", p["impossible"])
            if "impossible" in p
            else PlanItem(
                p["type"], p["bytes"], p["bits_per_weight"], p["needs_imatrix"], _fallback_note(p)
            )
        )
        for p in made["plans"]
    )
    intermediate = 0 if _direct(options) else made["intermediate"]
    download, free, refused = bytes_to_fetch(source), free_bytes(out), ""
    here = download if download and same_disk(out) else 0
    try:
        refuse(
            made["plans"],
            intermediate=intermediate,
            other=here,
            room=free,
            imatrix=options.imatrix != "none",
        )
    except InputError as error:
        refused = str(error)
    return Plan(
        "gguf",
        source,
        items,
        made["intermediate"],
        disk_needed=here + intermediate + sum(item.bytes for item in items),
        disk_free=free,
        memory_needed=CONVERTER_MEMORY + 8 * source.largest_tensor,
        memory_available=memory_available(),
        notes=(made["tokens"],) if made["tokens"] else (),
        download=download,
        refused=refused,
    )


def _direct(options: GgufOptions) -> bool:
    """Whether the converter can write the one asked file itself, with no file in between."""
    plain = (
        options.quantizing() == GgufOptions().quantizing()
        and options.imatrix == "none"
        and not options.keep_intermediate
    )
    return plain and len(options.types) == 1 and options.types[0] in (*UNQUANTIZED, "Q8_0")


def quantize(snapshot: Snapshot, options: GgufOptions, run: RunFolder) -> Made:
    """Convert, compute the importance matrix, quantize and verify. Steps that the journal knows are
    not done again.
    """
    source = snapshot.source
    tools = llama.locate(options.converter)
    env = llama.environment(tools)
    direct = _direct(options)
    outtype = options.types[0].lower() if direct else _precision(source, options)
    whole = outtype.upper()  # the type of the converted file, which may be one of the asked files
    stem = source.name
    kept = direct or options.keep_intermediate or whole in options.types
    converted = (run.folder if kept else run.work) / f"{stem}-{whole}.gguf"
    header = run.ours / "header.gguf"
    convert_key = key_of(
        snapshot.sha256, llama.installed_version(), outtype, options.pre_tokenizer, stem
    )
    imatrix_file, imatrix_key, imatrix_facts = _imatrix_of(options, run, convert_key)
    keys = {
        name: key_of(
            convert_key,
            None if name in UNQUANTIZED or name == "Q8_0" else imatrix_key,
            options.quantizing(),
            options.split_size,
        )
        for name in options.types
    }
    artifacts = {
        name: Artifact.from_json(facts)
        for name in options.types
        if (facts := run.done(f"quantize {name}", keys[name]))
    }
    for known in artifacts.values():
        run.passed(known)
    todo = [name for name in options.types if name not in artifacts]
    need_imatrix_file = imatrix_file is not None and imatrix_facts is None
    if todo or need_imatrix_file:
        facts = run.done("convert", convert_key)
        if facts is not None and header.is_file() and converted.is_file():
            if options.imatrix.endswith(".gguf"):
                process.call(
                    "autoquant.llama.library:refuse_other_models",
                    log=run.logs,
                    env=env,
                    imatrix=str(imatrix_file),
                    header=str(header),
                )
            plans = process.call(
                "autoquant.llama.library:dry_run",
                log=run.logs,
                env=env,
                header=str(header),
                types=list(options.types),
                imatrix=options.imatrix != "none",
                **options.quantizing(),
            )
            refuse(
                plans,
                intermediate=0,
                other=0,
                room=free_bytes(run.folder),
                imatrix=options.imatrix != "none",
                finished=set(artifacts),
            )
            facts = {**facts, "plans": plans}
        else:
            log.info(
                "converting %s (%s, %s million parameters) to %s",
                source.id,
                source.architecture,
                f"{source.parameters / 1e6:,.0f}",
                whole,
            )
            # write beside its place and rename: a killed run must not leave half a file under the
            # final name
            part = run.work / f"{stem}-{whole}.part.gguf"
            with Bar("convert") as progress:
                facts = _convert(
                    source,
                    options,
                    header=header,
                    target=part,
                    logs=run.logs,
                    types=list(options.types),
                    outtype=outtype,
                    room=free_bytes(run.folder),
                    need={"other": 0, "intermediate": 0 if whole in options.types else 1},
                    only_plan=False,
                    progress=progress,
                )
            os.replace(part, converted)
            run.record(
                "convert",
                convert_key,
                [converted],
                {"tokens": facts["tokens"], "intermediate": facts["intermediate"]},
            )
        plans = {planned["type"]: planned for planned in facts["plans"]}
        if facts["tokens"]:
            log.warning("%s: %s", source.id, facts["tokens"])
        if need_imatrix_file:
            assert imatrix_file is not None
            imatrix_facts = _collect(
                options, run, env, snapshot, converted, imatrix_file, imatrix_key
            )

        at_once = max(
            1,
            min(
                len(todo),
                options.cores,
                memory_available() // (WORKER_MEMORY + 4 * source.largest_tensor),
            ),
        )

        def finished(answer: dict[str, Any]) -> None:
            """Move one verified type into place and note it; runs while the others are still being
            made.
            """
            name, note = answer["type"], _fallback_note(plans[answer["type"]])
            artifact = Artifact(
                type=name,
                files=tuple(Stored(*stored) for stored in answer["files"]),
                bits_per_weight=answer["bits_per_weight"],
                notes=(note,) if note else (),
                checks=tuple(Check(*seen) for seen in answer["checks"]),
                facts={
                    "imatrix": imatrix_file is not None and TYPES[name].imatrix != "no",
                    "nominal": TYPES[name].bits_per_weight,
                },
            )
            outputs = [
                (
                    run.finish(run.work / stored.name)
                    if (run.work / stored.name).is_file()
                    else run.folder / stored.name
                )
                for stored in artifact.files
            ]
            run.record(
                f"quantize {name}",
                keys[name],
                outputs,
                artifact.to_json(),
                {stored.name: stored.sha256 for stored in artifact.files},
            )
            artifacts[name] = artifact
            run.passed(artifact)

        jobs = []
        # the slowest first, so that the last one to finish is a short one
        for name in sorted(
            todo, key=lambda name: (not name.startswith("IQ"), TYPES[name].bits_per_weight)
        ):
            # the converter has written that one
            target, ready = run.work / f"{stem}-{name}.gguf", name == whole
            if ready and options.split_bytes and converted.stat().st_size > options.split_bytes:
                shutil.copyfile(converted, target)
            elif ready:
                target = converted
            jobs.append(
                {
                    "type": name,
                    "target": str(target),
                    "plan": plans[name],
                    "ready": ready,
                    "imatrix": TYPES[name].imatrix != "no",
                }
            )
        if jobs:
            with Bar(f"quantize {', '.join(todo)}") as progress:
                process.call(
                    "autoquant.llama.check:quantize_and_verify",
                    log=run.logs,
                    env=env,
                    progress=progress,
                    on_part=finished,
                    source=str(converted),
                    header=str(header),
                    jobs=jobs,
                    at_once=at_once,
                    cores=options.cores,
                    imatrix=str(imatrix_file or ""),
                    dry=options.quantizing(),
                    split=options.split_bytes,
                )
        if (
            kept
            and options.split_bytes
            and not options.keep_intermediate
            and not direct
            and all(converted.name not in [f.name for f in a.files] for a in artifacts.values())
        ):
            converted.unlink()
    ordered = tuple(artifacts[name] for name in options.types)
    for artifact in ordered:
        for note in artifact.notes:
            log.warning("%s: %s", artifact.type, note)
        if options.modelfile:
            _write_modelfile(run.folder, artifact)
    provenance: dict[str, Any] = {
        "llama.cpp": f"of llama-cpp-python {llama.installed_version()}",
        "converted as": whole,
    }
    if options.pre_tokenizer:
        provenance["pre-tokenizer"] = (
            f"{options.pre_tokenizer} (assumed; token ids equal to the source tokenizer's on a"
            " sample)"
        )
    if imatrix_file is not None:
        facts = imatrix_facts or {}
        given = facts.get("chunks") == "given"
        length = facts.get("length", min(CONTEXT, source.context))
        provenance["importance matrix"] = facts["text"] + (
            "" if given else f", {facts['chunks']} {facts.get('unit', 'chunks')} of {length} tokens"
        )
        if "calibration sha256" in facts:
            provenance["calibration sha256"] = facts["calibration sha256"]
    made_here = imatrix_file is not None and imatrix_file.parent == run.folder
    extras = (
        *(["imatrix.gguf"] if made_here else []),
        *(
            f"{a.name.removesuffix('.gguf')}.Modelfile"
            for a in ordered
            if options.modelfile and len(a.files) == 1
        ),
    )
    return Made(ordered, converted if converted.is_file() else None, provenance, extras)


def _imatrix_of(
    options: GgufOptions, run: RunFolder, convert_key: str
) -> tuple[Path | None, str | None, dict[str, Any] | None]:
    """The imatrix file (made or to be made), its key, and its facts if it is there already."""
    if options.imatrix == "none":
        return None, None, None
    if options.imatrix.endswith(".gguf"):
        path = Path(options.imatrix).expanduser().resolve()
        return path, sha256_of(path), {"text": f"given file {path.name}", "chunks": "given"}
    if options.imatrix == CALIBRATED:
        key = key_of(
            convert_key,
            calibration.documents(options).texts,
            options.calibration_samples,
            options.calibration_length,
            options.calibration_seed,
        )
    else:
        key = key_of(
            convert_key, read_text(options.imatrix, "imatrix", CALIBRATION), options.imatrix_chunks
        )
    return run.folder / "imatrix.gguf", key, run.done("imatrix", key)


def _collect(
    options: GgufOptions,
    run: RunFolder,
    env: dict[str, str],
    snapshot: Snapshot,
    model: Path,
    target: Path,
    key: str | None,
) -> dict[str, Any]:
    ids: list[list[int]] = []
    text, about = "", dict[str, Any]()
    if options.imatrix == CALIBRATED:
        documents = calibration.documents(options)
        context, name = min(options.calibration_length, snapshot.source.context), documents.name
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
        about = {
            "unit": "samples",
            "length": context,
            "calibration sha256": calibration.digest(ids),
        }
    else:
        context = min(CONTEXT, snapshot.source.context)
        name = CALIBRATION.name if options.imatrix == "builtin" else Path(options.imatrix).name
        # 12 characters a token is more than any tokenizer needs
        text = read_text(options.imatrix, "imatrix", CALIBRATION)[
            : options.imatrix_chunks * context * 12
        ]
    part = run.work / target.name
    with Bar("importance matrix") as progress:
        facts = process.call(
            "autoquant.llama.library:collect_imatrix",
            log=run.logs,
            env=env,
            progress=progress,
            model=str(model),
            text=text,
            ids=ids,
            target=str(part),
            dataset=name,
            chunks=options.imatrix_chunks,
            threads=options.cores,
            context=context,
        )
    run.finish(part)
    facts = {**facts, "text": name, **about}
    run.record("imatrix", str(key), [target], facts, {target.name: sha256_of(target)})
    return facts


def _write_modelfile(folder: Path, artifact: Artifact) -> None:
    if len(artifact.files) > 1:
        log.warning("no Modelfile for %s: Ollama does not load split GGUF files", artifact.type)
        return
    from autoquant.core.files import write_atomically

    name = artifact.name.removesuffix(".gguf")
    write_atomically(
        folder / f"{name}.Modelfile",
        f"# ollama create {name.lower()} -f {name}.Modelfile\n# Ollama takes the chat template and"
        f" the stop tokens from the file itself.\nFROM ./{artifact.name}\n",
    )


def prepare(logs: Path) -> None:
    """Fetch the converter."""
    llama.environment(llama.locate(""))


def who_for(type: str) -> str:
    """One line: when to take this type."""
    return TYPES[type].when


def how_to_run(result: RunRecord) -> str:
    """The card's section on running the files."""
    pick = next((a for a in result.artifacts if a.type == "Q4_K_M"), result.artifacts[0])
    name = result.source.name.lower()
    ollama = f"""printf 'FROM ./{pick.name}\\n' > Modelfile
ollama create {name} -f Modelfile && ollama run {name}
ollama run hf.co/MODEL:{pick.type}    # the same, from the Hub"""
    if len(pick.files) > 1:
        ollama = "# takes one file: llama-gguf-split --merge (of llama.cpp) makes one of the shards"
    return f"""Give the name of the repository that holds these files for `MODEL`.

```bash
# llama.cpp
llama-cli -m {pick.name} -p "Once upon a time"
llama-cli -hf MODEL:{pick.type} -p "Once upon a time"    # the same, fetched from the Hub

# Ollama
{ollama}
```

```python
# llama-cpp-python
from llama_cpp import Llama

llm = Llama("{pick.name}", n_ctx={min(result.source.context, 4096)})
print(llm("Once upon a time", max_tokens=32)["choices"][0]["text"])
```"""


METHOD = Method(
    name="gguf",
    variants=lambda options: options.types,
    title="GGUF (llama.cpp)",
    summary=(
        "one file that runs on CPUs and GPUs with llama.cpp, Ollama, LM Studio; 1.5 to 8.5 bits"
    ),
    facts=Facts(
        bits="1.6 to 16, some thirty types",
        calibration="optional (importance matrix)",
        gpu_to_quantize="no",
        gpu_to_run="no",
        runtimes="llama.cpp, Ollama, LM Studio",
    ),
    options=GgufOptions,
    kind="gguf",
    library_name="gguf",
    demo={"types": ("Q4_K_M", "Q8_0")},
    beside=Beside(("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"), parse, "GGUF types"),
    survey=survey,
    settle=settle,
    check=check,
    plan=plan,
    quantize=quantize,
    environment=lambda options: llama.environment(llama.locate(options.converter)),
    who_for=who_for,
    how_to_run=how_to_run,
    folder_suffix=lambda options: "GGUF",
    prepare=prepare,
    packages=("llama-cpp-python", "torch", "transformers", "tokenizers", "numpy"),
)
