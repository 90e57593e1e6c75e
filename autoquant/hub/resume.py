"""Going on with a large file where a killed process has stopped.

huggingface_hub (1.27, 2.4) resumes a download within one call, but gives each call's unfinished
file a name of its own and starts over after a kill. So large files are fetched here with the same
library's ``http_get`` into a file with a lasting name, and then moved to where its cache looks for
them (``blobs/<sha256>``). Files that come through Xet are left to the library: it fetches their
pieces in parallel.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BufferedRandom
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from autoquant.hub.client import Client, status_of, with_retries

log = logging.getLogger(__name__)
LARGE = 16 << 20  # bytes; below, starting over costs little (http_get keeps whole pieces of 10 MiB)
AT_ONCE = 4


def fetch_large(
    client: Client, repo: str, commit: str, files: list[tuple[str, str, int]], repo_cache: Path
) -> dict[str, str]:
    """Fetch files (name, sha256, bytes) into ``repo_cache/blobs``, resuming what is there. The
    sha256 of those that were fetched, taken as they came; to compare them is the caller's.
    """

    def one(file: tuple[str, str, int]) -> str:
        name, sha256, size = file
        return with_retries(
            lambda: _fetch(client, repo, commit, name, sha256, size, repo_cache),
            f"downloading {name} of {repo}",
            client,
            repo,
        )

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(one, files)
        return {name: hash for (name, _, _), hash in zip(files, found, strict=True) if hash}


def _fetch(
    client: Client, repo: str, commit: str, name: str, sha256: str, size: int, repo_cache: Path
) -> str:
    """Fetch one; its hash, or "" if it was left to the library, or is there."""
    from filelock import FileLock
    from huggingface_hub import constants

    metadata = _metadata(client, repo, commit, name)
    if (
        metadata.xet_file_data is not None
        and not constants.HF_HUB_DISABLE_XET
        and importlib.util.find_spec("hf_xet")
    ):
        return ""
    blob = repo_cache / "blobs" / sha256
    part, lock = (
        blob.with_name(f"{sha256}.part"),
        repo_cache.parent / ".locks" / repo_cache.name / f"{sha256}.lock",
    )
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # the library's own lock for this file
        if blob.exists():
            return ""
        found = _get(client, metadata, name, size, part)
        os.replace(part, blob)
        return found


def fetch_to(
    client: Client,
    repo: str,
    commit: str,
    name: str,
    size: int,
    part: Path,
    stopped: Callable[[], bool],
) -> str:
    """Fetch one file to ``part``, going on with what is there of it. Its sha256, taken as it came,
    is the caller's to compare. Ends early, with an error, when it is ``stopped``; who comes after
    it waits for that.
    """
    return with_retries(
        lambda: _get(client, _metadata(client, repo, commit, name), name, size, part, stopped),
        f"downloading {name} of {repo}",
        client,
        repo,
    )


def _metadata(client: Client, repo: str, commit: str, name: str) -> Any:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    return get_hf_file_metadata(
        hf_hub_url(repo, name, revision=commit, endpoint=client.endpoint),
        token=client.secret,
        endpoint=client.endpoint,
    )


class _Hashing:
    """A file that is written from its beginning to its end, and its hash beside."""

    def __init__(self, file: BufferedRandom, stopped: Callable[[], bool]) -> None:
        self._file, self._stopped = file, stopped
        file.seek(0)
        self._hash = hashlib.file_digest(file, "sha256")

    def write(self, data: bytes) -> int:
        """Write at the end. Raises InterruptedError if nobody wants it any more."""
        if self._stopped():
            raise InterruptedError("the download is not wanted any more")
        self._hash.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        """How long it is."""
        return self._file.tell()

    def seek(self, place: int) -> int:
        """Only back to the beginning: a server that knows no ranges sends everything again."""
        assert place == 0, place
        self._hash = hashlib.sha256()
        return self._file.seek(0)

    def truncate(self) -> int:
        """Cut what was there."""
        return self._file.truncate()

    @property
    def sha256(self) -> str:
        """Of what was written."""
        return self._hash.hexdigest()


def _get(
    client: Client,
    metadata: Any,
    name: str,
    size: int,
    part: Path,
    stopped: Callable[[], bool] = lambda: False,
) -> str:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    from autoquant.core.progress import ByteBar

    if part.exists() and part.stat().st_size > size:
        part.unlink()
    with open(part, "a+b") as file:
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(file, fcntl.LOCK_EX)  # of an interrupted run that has not ended yet
        out = _Hashing(file, stopped)
        begun = out.tell()
        if begun:
            log.info("resuming %s at %.0f of %.0f MB", name, begun / 1e6, size / 1e6)
        if begun < size:
            # a token goes to the Hub only, not to where it redirects
            here = urlsplit(metadata.location).netloc == urlsplit(client.endpoint).netloc
            try:
                http_get(
                    metadata.location,
                    cast(BinaryIO, out),
                    resume_size=begun,
                    headers=build_hf_headers(
                        token=client.secret if here else False, library_name="autoquant"
                    ),
                    expected_size=size,
                    displayed_filename=name,
                    tqdm_class=ByteBar,
                )
            except HfHubHTTPError as error:
                if status_of(error) == 403 and not here:
                    # the next try gets a new one
                    raise ConnectionError("the signed address of the file has expired") from None
                raise
        return out.sha256
