"""Whether, how and how long a run's files are measured: planned before it begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant.core import rates
from autoquant.core.cache import cache_folder
from autoquant.core.errors import InputError
from autoquant.core.files import free_bytes, key_of
from autoquant.core.machine import memory_available, nvidia_gpu
from autoquant.core.options import MethodOptions
from autoquant.core.records import Source
from autoquant.display.tables import size
from autoquant.evaluate.scoring import CONTEXT
from autoquant.forward import cost
from autoquant.source.structure import counted, structure

SMALL = 2_000_000_000  # parameters; GGUF files of up to as many are run by llama.cpp on a CPU
# how much longer llama.cpp takes for an F16 file than torch for the same products in float32; for
# Q4_K_M as long (measured in turns: 369 million weights, two cores, 1.37 to 1.46 and 0.83 to 1.09)
IN_F16 = 1.4
BESIDE = 1 << 30  # bytes of libraries, logits and llama.cpp's buffers
FEWEST = 2  # chunks that are worth a statement; fewer are not taken


STEP = "measuring"  # the journal's: on how many chunks, as was decided


def key(options: MethodOptions) -> str:
    """What that decision depends on."""
    return key_of(options.evaluate, options.eval_text, options.eval_chunks, options.eval_minutes)


@dataclass(frozen=True)
class Measuring:
    """How the files of a run are measured: on how many ``chunks``, by what arguments of
    blockwise.Blockwise (``how``; None where llama.cpp alone can run the model), about how many
    ``minutes`` it takes, of which ``reading`` are for what it reads from the Hub. ``note`` and
    ``read`` (on that) are for the user, and ``needs`` for who plans: what it takes where llama.cpp
    runs the whole model. ``why_not`` says why they cannot be; empty if they can.
    """

    chunks: int
    how: Mapping[str, Any] | None
    minutes: float
    note: str = ""
    why_not: str = ""
    needs: str = ""
    reading: float = 0.0
    read: str = ""


def by_weights(source: Source, *, compared: bool = False) -> bool:
    """Whether GGUF files of a source are measured by their weights, block by block, and not by
    llama.cpp. ``compared``: with what only transformers runs, or with files that are measured so.
    """
    large = source.parameters > SMALL or nvidia_gpu()
    return not source.gguf and known(source) and (compared or large)


def known(source: Source) -> bool:
    """Whether transformers runs a source: its tensors stand in safetensors, and it knows their
    architecture.
    """
    if source.gguf or source.pickle:
        return False
    return bool(structure(source).auto)


def possible(source: Source) -> bool:
    """Whether a block of a source fits into memory here, with all of its experts."""
    here = cost.of(source).how(FEWEST, min(CONTEXT, source.context), memory_available())
    return here is not None and not here["single"]


def of(
    source: Source, options: MethodOptions, files: int, begun: int = 0, again: int = 0
) -> Measuring:
    """How ``files`` of a source are measured; ``begun``: on how many chunks, if that was decided in
    an earlier run with the same options. ``again``: bytes of the source that are read from the Hub
    once more for it; their time counts where downloads have shown how fast they are here.
    """
    reading = minutes_to_read(again)
    found = _of(source, options, files, begun, reading or 0.0)
    if not again:
        return found
    said = f"to measure, {size(again)} are read from the Hub once more, {how_long(again)}"
    return dataclasses.replace(found, reading=reading or 0.0, read=said)


def how_long(count: int) -> str:
    """How long it takes to read as many bytes from the Hub, in words."""
    minutes = minutes_to_read(count)
    if minutes is None:
        return "how fast is not known: nothing was downloaded here before"
    return f"which takes about {spoken(minutes)}"


def minutes_to_read(count: int) -> float | None:
    """Minutes that as many bytes take to come from the Hub; None where no download has shown it."""
    rate = rates.known().get("download")
    return count / rate / 60 if rate else None


def _of(
    source: Source, options: MethodOptions, files: int, begun: int, reading: float
) -> Measuring:
    """The same, with the minutes of ``reading`` what is read from the Hub."""
    length, wanted = min(CONTEXT, source.context), options.eval_chunks
    ours = known(source)
    found = cost.of(source) if ours else None

    def minutes(chunks: int) -> float:
        if found is not None:
            return reading + (1 + files) * found.seconds(chunks, length) / 60
        products = 2 * source.parameters * chunks * length
        return reading + (IN_F16 + files) * products / (cost.SHARE * cost.rate(gpu=False)) / 60

    of_which = f" ({spoken(reading)} of it to read the model from the Hub)" if reading else ""
    fewest = min(FEWEST, wanted)
    chunks, note = begun or wanted, ""
    if options.evaluate == "auto" and not begun and minutes(wanted) > options.eval_minutes:
        while chunks > fewest and minutes(chunks) > options.eval_minutes:
            chunks -= 1
        if minutes(chunks) > options.eval_minutes:
            return Measuring(
                wanted,
                None,
                minutes(wanted),
                why_not=(
                    f"measuring takes about {spoken(minutes(chunks))}{of_which} on"
                    f" {counted(chunks, 'chunk')} of text, more than {options.eval_minutes:g}"
                    " (eval_minutes); evaluate='on' (--evaluate on) measures all the same"
                ),
            )
    if chunks < wanted:
        note = (
            f"measured on {counted(chunks, 'chunk')} of text instead of {wanted}, for {wanted}"
            f" would take about {spoken(minutes(wanted))}; eval_minutes (--eval-minutes) allows"
            f" {options.eval_minutes:g}"
        )
    available = memory_available()
    if found is None:
        return _by_llama_cpp(source, options, chunks, minutes(chunks), note, available)
    here = found.how(chunks, length, available)
    if here is None:
        return Measuring(
            chunks,
            None,
            minutes(chunks),
            why_not=_no_memory(found, chunks, length, available),
        )
    return Measuring(chunks, here, minutes(chunks), note)


def _by_llama_cpp(
    source: Source,
    options: MethodOptions,
    chunks: int,
    minutes: float,
    note: str,
    available: int,
) -> Measuring:
    """How a source is measured that is run as a GGUF file, or of which one stands in: whole, and
    with log-probabilities that are kept for every word of the vocabulary.
    """
    width = 4 if getattr(options, "precision", "") == "f32" else 2
    file = source.bytes if source.gguf else width * source.parameters
    memory, kept = file + BESIDE, kept_bytes(source, chunks)
    place = cache_folder()
    needs = (
        f"it is measured by llama.cpp, which runs the whole model: {memory / 1e9:.1f} GB of memory,"
        f" and {kept / 1e9:.1f} GB on the disk, in {place}, for the log-probabilities of"
        f" {counted(chunks, 'chunk')}"
    )
    if memory > available:
        note = "; ".join(
            filter(
                None,
                (
                    note,
                    f"llama.cpp runs the whole model to measure it: of {memory / 1e9:.1f} GB of"
                    f" memory {available / 1e9:.1f} GB are free, so it reads the file again for"
                    " each chunk, and takes longer than is said",
                ),
            )
        )
    why_not = no_room(kept, place) if kept > free_bytes(place) else ""
    return Measuring(chunks, None, minutes, note, why_not, needs)


def kept_bytes(source: Source, chunks: int) -> int:
    """Bytes that are kept of the unquantized model: of each prediction what enters its output head,
    or where llama.cpp runs it, the log-probabilities of the whole vocabulary.
    """
    width = cost.of(source).width if known(source) else source.vocab_size
    return 4 * width * chunks * (min(CONTEXT, source.context) // 2)


def no_room(kept: int, place: Path) -> str:
    """What is said without room for that."""
    return (
        f"measuring needs {kept / 1e9:.2f} GB in {place} for what is kept of the unquantized model;"
        " take fewer eval_chunks, set AUTOQUANT_CACHE to a larger disk, or evaluate='off'"
    )


def how(source: Source, chunks: int) -> dict[str, Any] | None:
    """How a source is run block by block on as many chunks. Raises InputError without memory."""
    if not known(source):
        return None
    found, length = cost.of(source), min(CONTEXT, source.context)
    here = found.how(chunks, length, memory_available())
    if here is None:
        raise InputError(_no_memory(found, chunks, length, memory_available()))
    return here


def _no_memory(found: cost.Cost, chunks: int, length: int, available: int) -> str:
    return (
        f"measuring needs {found.least(chunks, length) / 1e9:.1f} GB of memory for a block of the"
        f" model at a time, {available / 1e9:.1f} GB are free. Close other programs"
    )


def spoken(minutes: float) -> str:
    """Minutes in words."""
    if minutes < 1:
        return "a minute"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
