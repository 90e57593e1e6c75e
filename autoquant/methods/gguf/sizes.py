"""What a GGUF run takes on the disk: estimated, or as a plan has found it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp.types import TYPES
from autoquant.core import journal
from autoquant.core.cache import cache_folder
from autoquant.core.files import bytes_in, existing_parent, free_bytes, key_of
from autoquant.core.options import UploadOptions
from autoquant.core.records import Source
from autoquant.methods.gguf import feed
from autoquant.methods.gguf.convert import precision
from autoquant.methods.gguf.options import NEXT_TO, GgufOptions
from autoquant.methods.size import Size

RUN_BY = "Q8_0"  # the type that stands for an unquantized model which has no room
CHOICE = "choice"  # the journal's step of types that are chosen for sizes
WAITING = 3  # shards, see backends.llamacpp.shards.HELD, and the one that was finished last


@dataclass(frozen=True)
class Sizes:
    """Bytes: of all asked types, as far as they lie here at a time (``made``), of files beside them
    (``beside``), of the largest weight file (``shard``), of what is ``kept`` of files that are gone
    for tensors that lie in several, of a 16-bit ``copy`` of the source, and of files that would be
    ``running``, by type, unless they are asked for as well.
    """

    made: int
    beside: int
    shard: int
    kept: int
    copy: int
    running: dict[str, int]


_PLANNED: dict[str, Sizes] = {}  # what plans of this process have found


def _key(source: Source, options: GgufOptions) -> str:
    return key_of(source.where, str(source.folder), asked(options))


def asked(options: GgufOptions) -> dict[str, object]:
    """The options that say what is made, and how it is measured."""
    others = (*UploadOptions.model_fields, "download", "delete_uploaded")
    return {name: one for name, one in options.model_dump().items() if name not in others}


def of(source: Source, options: GgufOptions, *, streams: bool, copy: bool) -> Sizes:
    """The sizes of a run; ``streams`` says whether its files can come and go, ``copy`` whether a
    16-bit copy of the source would be made.
    """
    if (known := _PLANNED.get(_key(source, options))) is not None:
        return known
    made = sum(estimated(source, name) for name in options.files)
    if options.delete_uploaded:
        made = min(made, at_a_time(options, 2 * source.largest_tensor))
    unquantized = precision(source, options).upper()
    running = {name: estimated(source, name) for name in (unquantized, RUN_BY)}
    return Sizes(
        made,
        0,
        feed.largest(source) if streams else 0,
        0,
        2 * source.parameters if copy else 0,
        _not_asked(running, options),
    )


def plan(
    source: Source,
    options: GgufOptions,
    sizes: Sizes,
    *,
    made: int,
    beside: int,
    whole: int,
    kept: int,
    largest: int,
) -> Sizes:
    """The sizes with what a plan knows, for the run that follows: of all types (``made``), other
    files, the unquantized one (``whole``), of parts that are ``kept``, and of the largest tensor.
    """
    unquantized = precision(source, options).upper()
    running = {unquantized: whole, RUN_BY: estimated(source, RUN_BY)}
    if options.delete_uploaded:
        made = min(made, at_a_time(options, largest))
    running = _not_asked(running, options)
    exact = replace(sizes, made=made, beside=beside, kept=kept, running=running)
    _PLANNED[_key(source, options)] = exact
    return exact


def _not_asked(running: dict[str, int], options: GgufOptions) -> dict[str, int]:
    """Of files that are run those that lie beside what is asked for; of what is cut into shards
    there is a whole one.
    """
    return {
        name: size
        for name, size in running.items()
        if name not in options.files or options.split_bytes
    }


def estimated(source: Source, name: str) -> int:
    """Bytes of a type's file, by its usual bits per weight; or of one of a size, and of what that
    is compared with.
    """
    if name in TYPES:
        return int(source.parameters * TYPES[name].bits_per_weight / 8)
    return Size.parse(name.removeprefix(NEXT_TO)).bytes(source.parameters)


def at_a_time(options: GgufOptions, largest: int) -> int:
    """Bytes of shards that lie on the disk at a time where they are deleted as soon as they are
    sent: of each type the first, which has the output layer, and the two that one block's tensors
    may lie in; and those that wait to be sent. A tensor that is larger than a shard (``largest``)
    has its own.
    """
    return (3 * len(options.files) + WAITING) * max(options.split_bytes, largest)


def written(source: Source, options: GgufOptions, out: Path) -> int:
    """Bytes of what a run has written already of what is asked for."""
    files = (
        path
        for name in chosen_before(options, journal.read(out)[1]) or options.files
        for path in out.glob("*.gguf")
        if path.stem.startswith(f"{source.name}-{name}")
        and path.stem.removeprefix(f"{source.name}-{name}")[:1] in ("", "-")
    )
    ours = out / journal.OURS
    begun = sum(bytes_in(ours / name) for name in ("jobs", "work"))
    return begun + sum(path.stat().st_size for path in files)


def room(source: Source, options: GgufOptions, out: Path) -> int:
    """Free bytes for a run's results, with what it has written of them."""
    return free_bytes(out) + written(source, options, out)


def beside_copies(out: Path) -> bool:
    """Whether 16-bit copies of sources lie on the same disk as ``out``."""
    return cache_folder().stat().st_dev == existing_parent(out).stat().st_dev


def chosen_before(options: GgufOptions, steps: Mapping[str, Any]) -> tuple[str, ...]:
    """The types that were chosen for sizes and those that they were compared with, by a journal's
    steps; none if that is not known.
    """
    if not options.size or CHOICE not in steps:
        return ()
    facts = steps[CHOICE]["facts"]
    return (*facts["plans"], *facts["against"])
