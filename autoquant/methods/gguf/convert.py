"""Converting a source to GGUF: what the converter is asked, and what its plans say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import converter as llama
from autoquant.backends.llamacpp.taking import taking
from autoquant.core.bundled import CALIBRATION_TEXT
from autoquant.core.records import Source
from autoquant.methods.gguf.options import GgufOptions
from autoquant.runtime import environments, process
from autoquant.source.adapter import EXTRA
from autoquant.source.merge import made_of


def precision(source: Source, options: GgufOptions) -> str:
    """The type of the unquantized file: as asked, or as the source has it."""
    if options.precision != "auto":
        return options.precision
    return {"F32": "f32", "F16": "f16"}.get(source.dtype, "bf16")


def python_for(source: Source, logs: Path) -> str:
    """The interpreter of a worker that merges an adapter, which takes peft."""
    return environments.beside(EXTRA, logs) if source.adapter else ""


def fallback_note(planned: dict[str, Any]) -> str:
    """What to say of tensors whose rows do not fit a type's blocks; empty if there are none."""
    lacking = planned.get("uncovered")
    said = f"the importance matrix has nothing for {lacking} of the matrices" if lacking else ""
    got: dict[str, int] = {}
    for _, instead in planned["fallbacks"].values():
        got[instead] = got.get(instead, 0) + 1
    if not got:
        return said
    return f"{said}; " * bool(said) + (
        f"{len(planned['fallbacks'])} of {len(planned['tensors'])} tensors have rows that are no"
        " multiple of the block size and fall back: "
        + ", ".join(f"{n} to {name}" for name, n in sorted(got.items()))
    )


def convert(
    source: Source,
    options: GgufOptions,
    *,
    header: Path,
    logs: Path,
    types: list[str],
    outtype: str,
    room: int | None,
    need: dict[str, int],
    progress: process.Progress | None = None,
    one_pass: dict[str, Any] | None = None,
    streamed: bool = False,
    on_part: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The converter in a worker: plan, and with ``one_pass`` make the types. The plan of one whose
    files may come and go, ``streamed``, says what would be kept of them.
    """
    tools = llama.locate(options.converter)
    sample = CALIBRATION_TEXT.read_text(encoding="utf-8")[:4000]
    return dict(
        process.call(
            "autoquant.backends.llamacpp.convert:convert",
            log=logs,
            python=python_for(source, logs) if one_pass else "",
            progress=progress,
            env=llama.environment(tools),
            model=str(source.folder),
            converter=str(tools),
            header=str(header),
            outtype=outtype,
            name=source.name,
            pre_tokenizer=options.pre_tokenizer,
            sample=sample,
            types=types,
            dry=options.quantizing(),
            room=room,
            need=need,
            imatrix=options.imatrix != "none",
            imatrix_file=str(options.given_imatrix or ""),
            taking=taking(source),
            one_pass=one_pass,
            streamed={"made": made_of(source)} if streamed else None,
            on_part=on_part,
        )
    )
