"""How the unquantized model comes for files that are measured after their run: downloaded whole,
or, where the disk does not hold it, read from the Hub tensor by tensor while it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from autoquant.core.cache import cache_folder
from autoquant.core.errors import InputError
from autoquant.core.files import free_bytes
from autoquant.core.records import Snapshot, Source
from autoquant.display.tables import size
from autoquant.evaluate import planning
from autoquant.evaluate.evaluator import Evaluator
from autoquant.forward import cost
from autoquant.forward.blockwise import EMBEDDING
from autoquant.hub.fetch import cache_free, same_disk
from autoquant.source import bytes_to_fetch, fetch, remote

log = logging.getLogger(__name__)


def snapshot_of(source: Source) -> Snapshot:
    """A source to measure against: at hand, where there is room for its files (and for the 16-bit
    copy of one that is quantized, or an adapter's); else left on the Hub, which is said. Raises
    InputError, before anything is downloaded, for one that can neither be held nor read in parts.
    """
    if not remote.origin(source).remote:
        return fetch(source)
    download, free = bytes_to_fetch(source), cache_free()
    copy = remote.copy_bytes(source)
    beside = copy if same_disk(cache_folder()) else 0
    if download + beside <= free and copy <= free_bytes(cache_folder()):
        return fetch(source)
    why = remote.why_not(source)
    if not why and not planning.known(source):
        why = f"transformers does not know its architecture, {source.architecture}"
    if why and download > free:
        raise InputError(
            f"measuring against {source.id} needs {size(download)} for its files, {size(free)} are"
            f" free, and it cannot be read from the Hub in parts: {why}."
            " Free some space or set HF_HOME to a larger disk"
        )
    if why or download <= free:  # only its copy has no room: its tensors are made as they are read
        return fetch(source, make=bool(why) or remote.needs_made(source))
    log.warning(
        "%s: its files need %s, %s are free: they stay on the Hub",
        source.id,
        size(download),
        size(free),
    )
    return remote.snapshot(source)


def passes(folders: Sequence[bool], *, by_weights: bool) -> int:
    """In how many passes artifacts are measured that are ``folders`` or GGUF files: all folders in
    one; files too, or one by one where llama.cpp runs them.
    """
    files = len(folders) - sum(folders)
    return any(folders) + (min(1, files) if by_weights else files)


def said(source: Source, evaluator: Evaluator, passes: int) -> str:
    """What is read from the Hub to measure against a source that is left there, in words: all of
    it, unless that was done before, and in each of the ``passes`` over files what lies outside its
    blocks: the output head, and embeddings that are small.
    """
    whole, found = remote.weight_bytes(source), cost.of(source)
    ends = found.outside + found.head * (2 if found.head <= EMBEDDING else 1)
    needed = passes * int(whole * ends / max(1, source.parameters))
    needed += 0 if evaluator.is_kept() else whole
    return (
        f"{source.id}: about {size(needed)} are read from the Hub while files are measured,"
        f" and not kept; {planning.how_long(needed)}"
    )
