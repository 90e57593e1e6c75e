"""Parts of files on the Hub, read when a worker asks for them: workers are offline and have no
token, so the process that started one fetches what it asks for into a folder, and the worker takes
it away from there.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoquant.core.errors import InputError, ProcessFailed
from autoquant.hub.client import Client, connect, with_retries
from autoquant.hub.look import Look

AT_ONCE = 4  # requests
PIECE = 64 << 20  # bytes of one request
GOING = "going"  # the mark that is gone when a request has failed
KEPT = 4  # tensors of which parts are read that stay on the disk
POLL = 0.01  # seconds
_NUMBERS = itertools.count()
Bytes = npt.NDArray[np.uint8]


class Asked:
    """The worker's side: ``spans`` gives each stored tensor's file, offset and bytes, ``folder`` is
    where they come, ``ask`` tells the other side.
    """

    def __init__(
        self, spans: Mapping[str, tuple[str, int, int]], folder: str, ask: Callable[[Any], None]
    ) -> None:
        self._spans, self._folder, self._ask = spans, Path(folder), ask
        self._coming: set[str] = set()
        self._parts: list[str] = []
        self._number = next(_NUMBERS)  # several read into one folder

    def expect(self, names: Iterable[str]) -> None:
        """Have tensors come that will be read soon."""
        wanted = [name for name in names if name in self._spans and name not in self._coming]
        if wanted:
            self._coming |= set(wanted)
            self._ask({"ranges": [[self._key(name), *self._spans[name]] for name in wanted]})

    def read(self, name: str) -> Bytes:
        """A tensor's bytes, which are gone from the disk then."""
        place = self._come(name)
        found = np.fromfile(place, np.uint8)
        place.unlink()
        self._coming.discard(name)
        return found

    def part(self, name: str, first: int, end: int) -> Bytes:
        """Some of a tensor's bytes; all of them stay on the disk for a while, for there will be
        more to read.
        """
        place = self._come(name)
        self._parts = [one for one in self._parts if one != name] + [name]
        for old in self._parts[:-KEPT]:
            (self._folder / self._key(old)).unlink(missing_ok=True)
            self._coming.discard(old)
        self._parts = self._parts[-KEPT:]
        return np.fromfile(place, np.uint8, end - first, offset=first)

    def _come(self, name: str) -> Path:
        self.expect([name])
        place = self._folder / self._key(name)
        while not place.is_file():
            if not (self._folder / GOING).exists():
                raise ProcessFailed("reading from the Hub has failed")
            time.sleep(POLL)
        return place

    def _key(self, name: str) -> str:
        file, offset, _ = self._spans[name]
        return f"{self._number}-{file}-{offset}"


class Serving:
    """The other side: fetches parts of a repository's files into ``folder``. Use as a context
    manager; ``told`` gets what the worker emits. What went wrong is raised at the end.
    """

    def __init__(self, listing: Look, folder: Path) -> None:
        self.listing, self.folder = listing, folder
        self._stopped = threading.Event()
        self._client: Client | None = None
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._failure: Exception | None = None

    def told(self, part: Any) -> None:
        """Fetch what is asked for."""
        for key, file, offset, size in part.get("ranges", ()) if isinstance(part, dict) else ():
            self._pool.submit(self._fetch, key, file, offset, size).add_done_callback(self._look)

    def _fetch(self, key: str, file: str, offset: int, size: int) -> None:
        self._client = self._client or connect()
        part = self.folder / f"{key}.part"
        with open(part, "wb") as out:
            for at in range(offset, offset + size, PIECE):
                if self._stopped.is_set():
                    return
                end = min(at + PIECE, offset + size)
                out.write(ranged(self._client, self.listing, file, at, end))
        part.replace(self.folder / key)

    def _look(self, done: Future[None]) -> None:
        failure = None if done.cancelled() else done.exception()
        if isinstance(failure, Exception) and self._failure is None:
            self._failure = failure
            self._stopped.set()
            (self.folder / GOING).unlink(missing_ok=True)

    def __enter__(self) -> Serving:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / GOING).touch()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()  # nobody waits for what still comes
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._failure is not None:
            raise self._failure from None


def ranged(client: Client, listing: Look, name: str, first: int, end: int) -> bytes:
    """The bytes ``first`` to ``end`` (not with it) of a file."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils._http import hf_raise_for_status

    url = hf_hub_url(listing.id, name, revision=listing.revision, endpoint=client.endpoint)
    headers = {
        **client.api._build_hf_headers(token=client.secret),
        "Range": f"bytes={first}-{end - 1}",
    }

    def get() -> bytes:
        with get_session().stream("GET", url, headers=headers, timeout=60) as response:
            if response.status_code >= 400:
                response.read()
            hf_raise_for_status(response)
            if response.status_code != 206:
                raise InputError(
                    f"{listing.id}: the server gives no parts of files, so {name} cannot be read"
                    " without downloading it"
                )
            got = b"".join(response.iter_bytes())
        if len(got) != end - first:
            raise OSError(f"{name}: {len(got)} bytes came instead of {end - first}")
        return got

    return with_retries(get, f"reading {name} of {listing.id}", client, listing.id)


def spans_of(folder: Path, names: Iterable[str]) -> dict[str, tuple[str, int, int]]:
    """The place of each tensor (file, offset, bytes) by the headers of safetensors files."""
    found = {}
    for name in names:
        with open(folder / name, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        for tensor, entry in entries.items():
            begin, end = entry["data_offsets"]
            found[tensor] = (name, 8 + length + begin, end - begin)
    return found
