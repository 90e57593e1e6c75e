"""A source that is a GGUF file: llama.cpp makes other types of it, and nothing is converted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import converter as llama
from autoquant.backends.llamacpp.types import refuse
from autoquant.core import gguf_head
from autoquant.core.errors import InputError
from autoquant.core.files import bytes_in, free_bytes
from autoquant.core.journal import RunFolder
from autoquant.core.records import Source
from autoquant.methods.gguf.options import GgufOptions
from autoquant.runtime import process
from autoquant.source import from_gguf

log = logging.getLogger(__name__)
NO_LIMIT = 1 << 62  # bytes: results go away again, so what is needed was asked before
# options of converting and of checkpoints, which have no effect here
OTHERS = (
    "precision",
    "keep_intermediate",
    "pre_tokenizer",
    "mmproj_type",
    "allow_pickle",
)


def check(source: Source, options: GgufOptions) -> None:
    """Refuse options that do not go with a source that is a GGUF file, or with one that is not."""
    fields = GgufOptions.model_fields
    if not source.gguf:
        if options.allow_requantize:
            raise InputError(
                f"allow_requantize: {source.id} is no GGUF file; leave allow_requantize out"
            )
        return
    for name in OTHERS if source.mmproj else ("mmproj", *OTHERS):
        if getattr(options, name) != fields[name].default:
            raise InputError(
                f"{name}: {source.id} is a GGUF file, which is not converted; leave {name} out"
            )
    if options.imatrix == "calibration":
        raise InputError(
            f"imatrix: {source.id} is a GGUF file, and calibration samples are cut by a tokenizer"
            " of transformers. Take builtin or a text file"
        )
    if source.dtype in options.types:
        raise InputError(f"types: {source.id} is {source.dtype} already; leave that out")
    if source.dtype not in from_gguf.FREELY and not options.allow_requantize:
        base = f" ({source.base_model})" if source.base_model else ""
        raise InputError(
            f"{source.id} is {source.dtype}, which has lost too much to be quantized again well."
            f" Take its F16, BF16 or Q8_0 file or the model that it was made of{base}; or say"
            " allow_requantize=True (--allow-requantize)"
        )


def note(source: Source) -> str:
    """What to say of types made of this source; empty if nothing is lost beforehand."""
    if source.dtype in ("F32", "F16", "BF16"):
        return ""
    return (
        f"the source is quantized itself ({source.dtype}): what that has lost stays lost, and"
        " quality is measured against that file"
    )


def plans(
    source: Source,
    options: GgufOptions,
    types: list[str],
    *,
    folder: Path,
    header: Path,
    logs: Path,
) -> list[dict[str, Any]]:
    """The plan of each type, from the heads of the source's files in ``folder`` alone. ``header``
    is where they are left, joined.
    """
    gguf_head.write_joined(from_gguf.heads(folder, source.weights), header)
    return list(
        process.call(
            "autoquant.backends.llamacpp.quantize:plans",
            log=logs,
            env=llama.environment(llama.locate(options.converter)),
            fresh=True,  # it needs nothing that takes seconds to import
            header=str(header),
            types=types,
            imatrix=options.imatrix != "none",
            imatrix_file=str(options.given_imatrix or ""),
            **options.quantizing(),
        )
    )


def plans_of_file(
    source: Source,
    options: GgufOptions,
    types: list[str],
    *,
    folder: Path,
    header: Path,
    run: RunFolder,
    env: Mapping[str, str],
    chosen: Mapping[str, dict[str, Any]],
    finished: set[str],
) -> dict[str, dict[str, Any]]:
    """The plan of each type of a GGUF file: of a source that is one in ``folder``, or of a
    converted one, whose ``header`` is there; and those that are ``chosen`` already. Raises
    InputError for what cannot be made, or has no room beside what is ``finished``.
    """
    if source.gguf:
        if said := note(source):
            log.warning("%s: %s", source.id, said)
        found = plans(source, options, types, folder=folder, header=header, logs=run.logs)
    else:
        found = process.call(
            "autoquant.backends.llamacpp.quantize:plans",
            log=run.logs,
            env=env,
            header=str(header),
            types=types,
            imatrix=options.imatrix != "none",
            imatrix_file=str(options.given_imatrix or ""),
            **options.quantizing(),
        )
    found += chosen.values()
    room = free_bytes(run.folder) + bytes_in(run.jobs)
    refuse(
        found,
        intermediate=0,
        other=0,
        room=NO_LIMIT if options.delete_uploaded else room,
        imatrix=options.imatrix != "none",
        finished=finished,
    )
    return {planned["type"]: planned for planned in found}
