"""What of a model fits on a device: which method and type, how good, how to start it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from html import escape
from typing import cast

from autoquant.backends.llamacpp.types import TYPES, nearest
from autoquant.core.errors import AutoQuantError, InputError
from autoquant.core.records import Source
from autoquant.display import html, tables
from autoquant.evaluate import planning
from autoquant.methods.gguf import Gguf
from autoquant.methods.gguf.options import GgufOptions
from autoquant.sizing import asked, choices, memory, starting
from autoquant.sizing.asked import File
from autoquant.sizing.choices import LADDER, LLAMA, Choice
from autoquant.sizing.devices import Device
from autoquant.sizing.memory import KV_TYPES, Beside, KvType
from autoquant.source import structure
from autoquant.source.headers import read_json

CONTEXT = 8192  # tokens, unless the model's is shorter: what chats need; more costs memory
HEAD = ("method", "type", "fits", "runs with", "quality", "bits/weight", "weights", "memory")
LEFT = 5
WIDE = 118  # columns of text below the table


@dataclass(frozen=True, repr=False)
class Advice:
    """What fits on a device. Prints as a table, the best first; in a notebook too.

    ``beside`` is what the model takes beside its weights at ``context`` tokens (one conversation at
    a time) with keys and values of ``kv_type``. ``choices`` are all that were looked at, ``notes``
    what to know of the figures, ``commands`` make and start the best.
    """

    model: str
    device: Device
    context: int
    kv_type: KvType
    beside: Beside
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]

    @property
    def best(self) -> Choice | None:
        """The first that fits; None if nothing does."""
        return next((one for one in self.choices if one.fits != "no"), None)

    @property
    def room(self) -> int:
        """Bytes that weights may have on the device, to run whole there."""
        return max(0, self.device.usable - self.beside.total)

    def __str__(self) -> str:
        return "\n".join(
            [
                *(_wrapped(line) for line in self._above()),
                "",
                tables.table(HEAD, self._rows(), left=LEFT),
                "",
                *(_wrapped(line) for line in self._below()),
                *(("", *self.commands) if self.commands else ()),
            ]
        )

    __repr__ = __str__  # what a Python prompt shows

    def _repr_html_(self) -> str:
        above, below = (
            "".join(f"<div>{escape(line)}</div>" for line in part)
            for part in (self._above(), self._below())
        )
        shown = html.table(HEAD, self._rows(), left=LEFT)
        started = escape("\n".join(self.commands))
        return f"<div>{above}{shown}{below}<pre>{started}</pre></div>"

    def _above(self) -> list[str]:
        size, beside, device = tables.size, self.beside, self.device
        state = f", {size(beside.state)} for recurrent states" if beside.state else ""
        tower = f", {size(beside.tower)} for what it sees or hears with" if beside.tower else ""
        cache = size(beside.cache) if beside.cache else "nothing"
        return [
            f"{self.model} on {device.name}: {size(device.usable)} of {size(device.memory)} can be"
            f" used ({device.why})",
            f"beside the weights, for a context of {self.context:,} tokens:"
            f" {cache} for keys and values ({self.kv_type}){state},"
            f" {size(beside.compute)} for llama.cpp's compute buffers{tower}",
        ]

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                one.method,
                one.type,
                {"whole": "yes", "no": "no"}.get(one.fits, f"{one.layers} layers"),
                one.runs,
                one.quality or "–",
                f"{one.bits:.2f}",
                ("" if one.exact else "≈ ") + tables.size(one.weights),
                tables.size(one.memory),
            )
            for one in self.choices
        ]

    def _below(self) -> list[str]:
        return [self.verdict, *(f"note: {note}" for note in self.notes)]

    @property
    def verdict(self) -> str:
        """What to take, in a sentence; or what to do where nothing fits."""
        best, size = self.best, tables.size
        if best is None:
            least = min(self.choices, key=lambda one: one.memory, default=None)
            lacking = least.memory - self.device.usable if least else 0
            return (
                f"nothing fits: the smallest needs {size(lacking)} more. Try a shorter context"
                " (--context), a smaller cache (--kv-type q8_0 or q4_0), or a smaller model"
            )
        if best.fits == "partly":
            return (
                f"nothing fits whole; of {best.type}, {best.layers} layers fit on the card and"
                f" {size(best.elsewhere)} stay in the machine's memory: slower. The smaller the"
                " type, the more of it runs on the card"
            )
        spare = size(self.device.usable - best.memory)
        why = "the most bits per weight that fit whole"
        if best.runs == LLAMA and best.type in TYPES and TYPES[best.type].special:
            why = "what the model was trained for"
        return f"take {best.method} {best.type}: {why}, {spare} to spare"


def advise(
    source: Source,
    device: Device,
    context: int | str | None = None,
    kv_type: str = "f16",
    *,
    pre_tokenizer: str = "",
) -> Advice:
    """What of a source fits on a device at a context (tokens; default: 8192, or the model's if that
    is less) with keys and values of ``kv_type``: f16, q8_0 or q4_0. ``pre_tokenizer`` is the option
    of GGUF, for a model whose own llama.cpp does not know.

    Sizes of GGUF files and buffers are llama.cpp's own, from a header and without a weight, where
    its converter takes the model; else they are computed, and a note says so. Raises InputError for
    a context beyond the model's, or another type of cache.
    """
    tokens, notes = context_of(source, context)
    kv = kv_type_of(kv_type)
    if not source.gguf:
        structure.refuse(source)
    files, beside, why = _sized(source, tokens, kv, _types(source), pre_tokenizer)
    found = None if source.gguf else structure.structure(source)
    rows = choices.of_gguf(files, beside, device)
    notes += [why] if why else []
    if found is not None and device.cuda:
        refused = choices.why_not(source)
        rows += choices.of_others(source, found, _f16(beside, kv), device, refused)
        notes += [f"{method} is not offered: {reason}" for method, reason in refused.items()]
    ranked = choices.ranked(rows)
    room = device.usable - beside.total
    whole = [one.weights for one in ranked if one.type == LADDER[0]]
    if not source.gguf and planning.known(source) and whole and 0 < room < whole[0]:
        notes.append(
            "a file that takes all the room there is, each tensor in the type that loses the"
            f" least: autoquant quantize gguf {starting.named(source)} --size"
            f" {room // 10**7 / 100:.2f}GB"
        )
    sees = bool(found and found.towers) or bool(source.mmproj)
    notes += _notes(ranked, device, files, sees=sees, tower=bool(beside.tower))
    tower = asked.tower_name(source) if beside.tower else ""
    return Advice(
        source.id,
        device,
        tokens,
        kv,
        beside,
        tuple(ranked),
        tuple(notes),
        tuple(starting.commands(source, ranked, device, tokens, kv, pre_tokenizer, tower)),
    )


def room_for(
    source: Source,
    device: Device,
    types: tuple[str, ...],
    context: int | str | None = None,
    kv_type: str = "f16",
    *,
    pre_tokenizer: str = "",
    mmproj: bool = True,
) -> tuple[int, dict[str, int]]:
    """The bytes that a GGUF file of a source may have to run whole on a device, at a context and
    with keys and values as :func:`advise` takes them: what can be used of its memory, without the
    cache and llama.cpp's compute buffers. Embeddings, which llama.cpp may leave in the machine's
    own memory, are counted, and so is what the model sees or hears with, if it is taken along
    (``mmproj``). Also the bytes of its files of some ``types``. Raises InputError if
    nothing is left for weights, and as :func:`advise`.
    """
    tokens, _ = context_of(source, context)
    kv = kv_type_of(kv_type)
    files, beside, _ = _sized(source, tokens, kv, types, pre_tokenizer)
    if not mmproj:
        beside = replace(beside, tower=0)
    room = device.usable - beside.total
    if room <= 0:
        size = tables.size
        raise InputError(
            f"fits: a context of {tokens:,} tokens takes {size(beside.total)} beside the weights,"
            f" and {device.name} has {size(device.usable)}: nothing is left for them. Ask for a"
            " shorter context (--context), a smaller cache (--kv-type q8_0 or q4_0), or name a"
            " larger device"
        )
    return room, {file.type: file.bytes for file in files}


def context_of(source: Source, context: int | str | None) -> tuple[int, list[str]]:
    """The context to reckon with, in tokens, and what to say of it. Raises InputError for one
    beyond the model's, which it has not learned to use.
    """
    limit = _limit(source)
    if context is None:
        tokens = min(CONTEXT, limit or CONTEXT)
        of = f" of the model's {limit:,}" if limit and limit > tokens else ""
        return tokens, [f"the context is {tokens:,} tokens{of}: name another with --context"]
    allowed = f"allowed: 1 to {limit} tokens" if limit else "allowed: 1 token or more"
    if not str(context).isdecimal() or int(context) < 1:
        raise InputError(f"context: {context!r} is no number of tokens; {allowed}, e.g. 4096")
    if limit and int(context) > limit:
        raise InputError(
            f"context: {context} tokens are more than {source.id} was made for; {allowed}. Name at"
            " most that many"
        )
    return int(context), []


def _limit(source: Source) -> int | None:
    """The longest context that the model was made for; None if it has no limit."""
    config = source.folder / "config.json"
    if source.gguf or not config.is_file():
        return source.context
    return memory.context_limit(read_json(config))


def kv_type_of(name: str) -> KvType:
    """The type of keys and values. Raises InputError for another, with the nearest."""
    if name.lower() not in KV_TYPES:
        raise InputError(
            f"kv_type: {name!r} is not allowed; allowed: {', '.join(KV_TYPES)}. Nearest:"
            f" {nearest(name.lower(), KV_TYPES)[0]}"
        )
    return cast(KvType, name.lower())


def _sized(
    source: Source, context: int, kv_type: KvType, types: tuple[str, ...], pre_tokenizer: str
) -> tuple[tuple[File, ...], Beside, str]:
    """The files and what is taken beside them, and why they are only computed, if they are."""
    try:
        said = asked.ask(source, context, kv_type, types, pre_tokenizer)
        return said.files, said.beside, ""
    except AutoQuantError as error:
        if source.gguf:
            raise
        config = read_json(source.folder / "config.json")
        beside = memory.beside(config, context, kv_type)
        return asked.by_bits(source, types), beside, asked.why_not(error)


def _types(source: Source) -> tuple[str, ...]:
    """The types to choose from: of a model whose experts are MXFP4, that first."""
    usual = Gguf().resolve_defaults(source, GgufOptions()).types
    types = (*usual, *LADDER) if usual[0] not in LADDER else LADDER
    return tuple(one for one in types if not (source.gguf and one == source.dtype))


def _f16(beside: Beside, kv_type: KvType) -> Beside:
    """The same with keys and values of 16 bits: other runtimes have no types of llama.cpp's."""
    cache = int(beside.cache * 16 / memory.KV_BITS[kv_type])
    return Beside(cache, beside.state, beside.compute, beside.asked)  # a folder has its towers


def _notes(
    ranked: list[Choice],
    device: Device,
    files: tuple[File, ...],
    *,
    sees: bool,
    tower: bool,
) -> list[str]:
    """What to know of the figures."""
    notes = []
    if any(not one.exact for one in ranked):
        notes.append("sizes with ≈ are reckoned by bits per weight; the others are exact")
    if any(one.runs != LLAMA for one in ranked):
        notes.append(
            "other methods than GGUF are reckoned with keys and values of 16 bits; vLLM takes nine"
            " tenths of the card, of which 1 GiB is set aside for its graphs and batches"
        )
    elif not device.cuda:
        notes.append("GPTQ, AWQ, EXL2, EXL3 and W8A8 want an NVIDIA GPU: name one to see them")
    if sees:
        what = "what the model sees or hears with (mmproj)"
        notes.append(f"the buffers of {what} come on top" if tower else f"{what} comes on top")
    fallen = {file.note for file in files if file.note}
    if fallen:
        notes.append(
            f"{len([file for file in files if file.note])} types have tensors that fall back to"
            " others, which their sizes count"
        )
    return notes


def _wrapped(line: str) -> str:
    return textwrap.fill(line, WIDE, subsequent_indent="    ", break_long_words=False)
