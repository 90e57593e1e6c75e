"""How a model's weights come: all at once, or file by file while GGUF types are made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoquant.core import journal
from autoquant.core.errors import InputError
from autoquant.core.files import key_of
from autoquant.core.records import Source
from autoquant.evaluate import planning
from autoquant.hub.fetch import cache_free, same_disk
from autoquant.methods.gguf import feed, sizes
from autoquant.methods.gguf.convert import precision
from autoquant.methods.gguf.options import GgufOptions
from autoquant.methods.gguf.sizes import RUN_BY, Sizes
from autoquant.source import bytes_to_fetch, remote

MADE = "made"  # the journal's step of a run that has made all that was asked for


@dataclass(frozen=True)
class Way:
    """``stream``: the source's files come and go. ``runs`` is the type of the file that llama.cpp
    runs, to collect an importance matrix or to measure; empty if none is needed, or the model is
    at hand. With ``twice`` it is not kept while types are made, which needs all files again.
    """

    stream: bool = False
    runs: str = ""
    twice: bool = False

    def disk(self, sizes: Sizes) -> int:
        """Bytes that a run needs at a time where results lie, without the cache of downloads."""
        one = sizes.beside + (sizes.shard + sizes.kept if self.stream else 0)
        running = sizes.running.get(self.runs, 0)
        return one + (max(sizes.made, running) if self.twice else sizes.made + running)


def will_be_measured(source: Source, options: GgufOptions, way: Way) -> bool:
    """Whether files are measured, if there is room for it."""
    if options.evaluate == "off" or options.delete_uploaded:
        return False
    if options.evaluate == "on":
        return True
    again = to_measure(source, options, way)
    return not planning.of(source, options, len(options.files), again=again).why_not


def to_measure(source: Source, options: GgufOptions, way: Way) -> int:
    """Bytes of the source that measuring reads from the Hub: those of its files, where they have
    gone and no unquantized file has its very weights (see Work.output).
    """
    kept = way.runs and not way.twice and options.precision == "auto"
    if not way.stream or kept or not planning.known(source):
        return 0
    return remote.weight_bytes(source)


def collects_in_blocks(source: Source) -> bool:
    """Whether an importance matrix is collected by transformers, block by block: of large models,
    and where there is a GPU.
    """
    return planning.by_weights(source) and planning.possible(source)


def sizes_of(source: Source, options: GgufOptions) -> Sizes:
    """The sizes of a run, as far as they are known."""
    made_first = source.stored_in is not None or source.adapter is not None
    copy = made_first and remote.needs_made(source)
    return sizes.of(source, options, streams=not remote.why_not(source), copy=copy)


def check(source: Source, options: GgufOptions) -> None:
    """Refuse to stream what cannot be."""
    if options.download == "auto":
        return
    if not remote.origin(source).remote:
        raise InputError(f"download: {source.id} is not on the Hub; leave download out")
    if options.download == "stream" and (why := remote.why_not(source)):
        raise InputError(f"download: {source.id} cannot be streamed: {why}")


def stands_in(source: Source) -> bool:
    """Whether llama.cpp runs an unquantized file to measure a source, which has to be made: of
    pickles, and architectures that transformers does not know.
    """
    return not (source.gguf or planning.known(source))


def ways(source: Source, options: GgufOptions) -> list[Way]:
    """What can be done, the best first."""
    unquantized = precision(source, options).upper()
    runs = options.collects and not collects_in_blocks(source)
    asked = (runs or options.keep_intermediate) and not source.gguf
    # to measure it is not indispensable
    spared = not asked and stands_in(source) and will_be_measured(source, options, Way())
    file = unquantized if asked or spared else ""
    whole, streamed = [Way(False, file)], [Way(True, file)]
    if runs and not options.keep_intermediate:
        streamed.append(Way(True, RUN_BY, twice=True))
    which = "whole" if remote.why_not(source) else options.download
    every = {"whole": whole, "stream": streamed}.get(which, whole + streamed)
    return every + [Way(one.stream) for one in every if spared]


def choose(source: Source, options: GgufOptions, out: Path, known: Sizes | None = None) -> Way:
    """The best way that there is room for; if there is none, the one that needs the least. What a
    run has written into ``out`` already counts as free.
    """
    known = known or sizes_of(source, options)
    every = ways(source, options)
    for way in every[:-1]:
        here = way.disk(known)
        if not way.stream:
            download = bytes_to_fetch(source)
            if not download and not (way.runs and Way() in every):
                return way
            if not same_disk(out) and download > cache_free():
                continue
            here += beside(out, download, known)
        if here <= sizes.room(source, options, out):
            return way
    return every[-1]


def beside(out: Path, download: int, known: Sizes) -> int:
    """Bytes on the disk of the results of what a whole source takes: its files, and a copy."""
    copy = known.copy if sizes.beside_copies(out) else 0
    return (download if same_disk(out) else 0) + copy


def refuse_without_room(source: Source, options: GgufOptions, out: Path, way: Way) -> None:
    """Refuse a run whose results go away again, and need too much room at a time all the same."""
    needed, room = way.disk(sizes_of(source, options)), sizes.room(source, options, out)
    if options.delete_uploaded and needed > room:
        raise InputError(
            f"not enough room on the disk: {needed / 1e9:.3f} GB are needed at a time,"
            f" {room / 1e9:.3f} GB are free. Take a smaller split_size, or fewer types in a run"
        )


def note(source: Source, options: GgufOptions, way: Way) -> str:
    """What a plan says of a way."""
    download = bytes_to_fetch(source)
    if not way.stream:
        alone = not any(one.stream for one in ways(source, options))
        why = remote.why_not(source) if alone and options.download != "whole" else ""
        asked = "as asked" if options.download == "whole" else "there is room for them"
        return f"all weight files are kept in the cache ({why or asked})" if download else ""
    why = "as asked" if options.download == "stream" else "there is no room for all of them"
    count = len(remote.names(source))
    said = (
        f"the {count} weight files come one after the other and are removed again"
        f" ({why}): the disk holds one of at most {feed.largest(source) / 1e9:.3f} GB beside the"
        " results, or two where there is room"
    )
    if kept := sizes_of(source, options).kept:
        said += f", and up to {kept / 1e9:.3f} GB of tensors that lie in several"
    if way.twice:
        said += (
            f"; the importance matrix is collected on a {way.runs} file, there being no room for"
            " the unquantized model, and then all files come again"
        )
    elif options.collects and collects_in_blocks(source):
        said += "; they come once before, to collect the importance matrix block by block"
    if options.gradients:
        said += "; they come twice before, for gradients"
    if to_measure(source, options, way) and will_be_measured(source, options, way):
        said += "; and once more, to measure"
    times = downloads(source, options, way)
    if times > 1:
        said += f": {times * download / 1e9:.3f} GB to download in all"
    if way.runs and not way.twice and not options.keep_intermediate:
        said += f"; an unquantized file ({way.runs}) stays until the end, to be run"
    return said


def unmeasured(source: Source, options: GgufOptions, way: Way) -> str:
    """Why a run's files are not measured, though that is wanted; empty if they can be."""
    there = (way.runs and not way.twice) or not stands_in(source)
    if there or not will_be_measured(source, options, way):
        return ""
    return (
        f"measuring needs the unquantized model, and there is no room for {source.id}"
        " (autoquant evaluate measures it where there is)"
    )


def downloads(source: Source, options: GgufOptions, way: Way) -> int:
    """How many times a source's files come: to be made into types, to collect an importance matrix
    before, for gradients (forward and backward), and to measure.
    """
    if not way.stream:
        return 1
    collected = way.twice or (options.collects and collects_in_blocks(source))
    again = to_measure(source, options, way) and will_be_measured(source, options, way)
    return 1 + collected + 2 * options.gradients + bool(again)


def made(source: Source, options: GgufOptions, out: Path) -> bool:
    """Whether a run has made of this model what is asked for now: its files are not needed then.
    Should something be missing all the same, they come while it is made anew.
    """
    identity, steps = journal.read(out)
    if remote.why_not(source) or identity.get("source_sha256") != remote.snapshot(source).sha256:
        return False
    wanted = {MADE}
    if will_be_measured(source, options, Way()):
        types = sizes.chosen_before(options, steps) or options.files
        wanted |= {"evaluate unquantized", *(f"evaluate {name}" for name in types)}
    return wanted <= set(steps) and steps[MADE]["key"] == key_of(sizes.asked(options))
