"""The Hugging Face Hub: token, access, looking at a repository, fetching from it, and what went wrong in words.

All talking to the Hub happens here and in upload.py, in the parent process: worker processes are offline and have no token.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from autoquant.errors import AutoQuantError, CheckFailed, HubFailed, InputError
from autoquant.redact import RedactingFilter, redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
log = logging.getLogger(__name__)
TRIES = 6  # of a call that fails in a way that may pass; with the waits below, at least two minutes in all
LONGEST_WAIT = 330.0  # seconds: the Hub's rate limits count over five minutes
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may pass
LARGEST_SIDE_FILE = 100 << 20  # bytes: config, tokenizer and card files are smaller than that


# --- token --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """A token and where it was found. Its value is shown nowhere."""

    value: str = field(repr=False)
    origin: str


def find_token() -> Token | None:
    """The token to use: the Colab secret HF_TOKEN, else the environment variable HF_TOKEN, else what ``hf auth login`` stored."""
    secret = _colab_secret()
    if secret:
        return Token(secret, "the Colab secret HF_TOKEN")
    from huggingface_hub import get_token

    value = get_token()
    if not value:
        return None
    return Token(value, "the environment variable HF_TOKEN" if os.environ.get("HF_TOKEN", "").strip() == value else "the login stored by `hf auth login`")


def _colab_secret() -> str:
    """Colab's secret HF_TOKEN; empty outside Colab, or if there is none or the notebook may not read it."""
    if "COLAB_RELEASE_TAG" not in os.environ:
        return ""
    try:
        from google.colab import userdata
    except ImportError:
        return ""
    try:
        return str(userdata.get("HF_TOKEN") or "").strip()
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError, userdata.TimeoutException, TimeoutError) as error:
        log.info("no token from Colab's secrets (%s)", type(error).__name__)
        return ""


# --- client and errors --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Client:
    """huggingface_hub's API object with the token in use. ``endpoint`` is HF_ENDPOINT or https://huggingface.co."""

    api: HfApi
    token: Token | None
    endpoint: str

    @property
    def secret(self) -> str | bool:
        """What huggingface_hub's functions take as ``token``: the value, or False for none."""
        return self.token.value if self.token else False

    def who(self) -> str:
        """The token in words."""
        return f"the token from {self.token.origin}" if self.token else "no token"


def connect() -> Client:
    """A client with the token that is found. Sends nothing."""
    from huggingface_hub import HfApi, constants

    for handler in logging.getLogger("huggingface_hub").handlers:  # it has a handler of its own
        if not any(isinstance(one, RedactingFilter) for one in handler.filters):
            handler.addFilter(RedactingFilter())
    token = find_token()
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(constants.ENDPOINT)
    return Client(HfApi(endpoint=endpoint, token=token.value if token else False, library_name="autoquant"), token, endpoint)


def _transport_error() -> type[Exception]:
    """The base error of the HTTP library that huggingface_hub uses: httpx in its release 1, httpx2 in release 2."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(kind for kind in HfHubHTTPError.__mro__ if kind.__module__.split(".")[0].startswith("httpx") and kind.__name__ == "HTTPError")


def _status(error: BaseException) -> int:
    response = getattr(error, "response", None)
    return int(getattr(response, "status_code", 0) or 0)


def offline() -> bool:
    """Whether the user has forbidden the network (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _wait_after(error: BaseException, attempt: int) -> float:
    """Seconds to wait before the next try: what the server asks for (Retry-After, or the ratelimit header's t), else 1, 2, 4 … 32."""
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", None) or {}
    asked = headers.get("retry-after", "")
    if asked.isdigit():
        return min(LONGEST_WAIT, float(asked))
    match = re.search(r"\bt=(\d+)", headers.get("ratelimit", "")) if _status(error) == 429 else None
    return min(LONGEST_WAIT, float(match[1])) if match else min(32.0, 2.0**attempt)


def patiently(call: Callable[[], T], doing: str, client: Client, repo: str = "", *, arrived: Callable[[], T | None] | None = None) -> T:
    """Call; after a failure that may pass (rate limit, server error, broken connection) wait as long as the server asks and try again.

    ``arrived`` looks, after a failed call that changes something, whether it took effect all the same, and returns its result if so:
    an answer can be lost after the work was done. Raises InputError or HubFailed with one line.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, XetDownloadError

    transport = _transport_error()
    for attempt in range(TRIES):
        try:
            return call()
        except (transport, OSError, RuntimeError, XetDownloadError) as caught:
            if isinstance(caught, RuntimeError) and type(caught) is not RuntimeError:
                raise  # hf_xet raises plain RuntimeErrors; anything more special is a bug, ours or a library's
            error = caught.__cause__ if isinstance(caught, LocalEntryNotFoundError) and caught.__cause__ is not None else caught
            status = _status(error)
            passing = status in PASSING or (not status and (isinstance(error, (transport, ConnectionError, RuntimeError, XetDownloadError))
                                                            or "Consistency check failed" in str(error)))
            if not passing:
                raise explain(error, doing, client, repo) from None
            if arrived is not None:
                with contextlib.suppress(HfHubHTTPError, transport):
                    there = arrived()
                    if there is not None:
                        return there
            if offline() or attempt == TRIES - 1:
                raise explain(error, doing, client, repo) from None
            wait = _wait_after(error, attempt)
            log.warning("%s: %s; trying again in %.0f s", doing, _short(error), wait)
            time.sleep(wait)
    raise AssertionError("the loop returns or raises")


def _short(error: BaseException) -> str:
    status = _status(error)
    if status:
        reason = {429: "the Hub limits the rate of requests", 401: "not authorized", 403: "forbidden", 404: "not found"}.get(status, "the Hub has an error")
        return f"{reason} (HTTP {status})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}{': ' + lines[0][:160] if lines else ''}"


def explain(error: BaseException, doing: str, client: Client, repo: str = "") -> AutoQuantError:
    """What really happened, and what to do: the error to raise instead of a library's."""
    from huggingface_hub import errors

    page = f"{client.endpoint}/{repo}"
    said = str(getattr(error, "server_message", "") or "").strip().splitlines()
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        way = (f"ask for access at {page} with the account of that token" if client.token else
               f"accept its terms at {page}, make a token with read access at {client.endpoint}/settings/tokens, and set HF_TOKEN or run `hf auth login`")
        return InputError(f"{repo} is gated, and {client.who()} has no access to it: {way}; then run again")
    if status == 401 and client.token and not isinstance(error, errors.RepositoryNotFoundError):
        return InputError(f"{doing}: the Hub does not accept {client.who()} (expired, revoked or mistyped). Make a new one at {client.endpoint}/settings/tokens "
                          "and run again; what is finished is kept")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{repo} has no such revision; see {page}/tree/main for its branches")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return InputError(f"{doing}: {repo} has no such file ({_short(error)})")
    if isinstance(error, errors.RepositoryNotFoundError):
        hidden = f"or {client.who()} does not let you see it" if client.token else "or it is private: set HF_TOKEN or run `hf auth login`"
        return InputError(f"{doing}: there is no repository {repo} at {client.endpoint}, {hidden}. Check the spelling")
    if status == 403:
        return InputError(f"{doing}: {client.who()} may not do that{f' (the Hub says: {redact(said[0])})' if said else ''}. Make a token with write access to "
                          f"{repo.split('/')[0]} at {client.endpoint}/settings/tokens")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return InputError(f"{doing}: HF_HUB_OFFLINE is set, and that needs the network")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return InputError(f"{doing}: no space left on the disk ({redact(str(error))}). Free some space, or set HF_HOME to a larger disk, and run again; finished files are kept")
    if status == 412:
        return HubFailed(f"{doing}: somebody else has changed it meanwhile. Look at {page}, then run the same again; what has arrived is not sent again")
    if status == 429:
        return HubFailed(f"{doing}: the Hub still limits the rate of requests. Run the same again later; what has arrived is not sent again")
    detail = f" (it says: {redact(said[0])})" if said and status else ""
    return HubFailed(f"{doing}: {_short(error)}{detail}. Run the same again: it continues, and what has arrived is not sent again")


# --- looking ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RemoteFile:
    """A file on the Hub: bytes, sha256 (large files), and git's SHA-1 of a small file's content."""

    name: str
    bytes: int
    sha256: str
    blob: str

    def same_as(self, path: Path, sha256: str) -> bool:
        """Whether a local file of that sha256 has the same content."""
        if self.bytes != path.stat().st_size:
            return False
        return self.sha256 == sha256 if self.sha256 else self.blob == git_sha(path.read_bytes())


@dataclass(frozen=True)
class Look:
    """A repository at one commit. ``folder`` has its small files, and its weights as headers followed by a hole (no bytes on the disk)."""

    id: str
    revision: str
    gated: bool
    private: bool
    files: tuple[RemoteFile, ...]
    folder: Path


def git_sha(content: bytes) -> str:
    """Git's name of a file's content, which the Hub gives for small files."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def parse(model: str) -> tuple[str, str | None] | None:
    """``owner/name``, ``owner/name@revision`` or a Hub URL -> (id, revision); None if it is none of them."""
    url = re.fullmatch(r"https?://[^/]+/([^/?#]+/[^/?#]+?)(?:/(?:tree|blob|resolve)/([^/?#]+)[^?#]*)?/?(?:[?#].*)?", model)
    if url:
        return url[1], url[2]
    plain = re.fullmatch(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?", model)
    return (plain[1], plain[2]) if plain else None


def _headers_folder(repo: str, revision: str) -> Path:
    from autoquant.llama.converter import cache_folder

    return cache_folder() / "headers" / f"{repo.replace('/', '--')}@{revision}"


def look(repo: str, revision: str | None, side_files: Iterable[str]) -> Look:
    """Look at a repository without fetching a weight: small files, and the header of each safetensors file by a ranged request.

    ``side_files`` are the patterns of small files that are wanted. The result is cached under ``headers/`` in the cache folder.
    Without a connection an earlier look is used. Raises InputError (no such repository or revision, gated, no access) or HubFailed.
    """
    from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError

    client = connect()
    transport = _transport_error()
    doing = f"looking at {repo}"
    try:
        commit = str(patiently(lambda: client.api.resolve_revision(repo, revision=revision).resolved, doing, client, repo))
    except HubFailed:
        raise
    except RevisionResolutionError:
        raise _not_cached(repo, revision, client) from None
    kept = _headers_folder(repo, commit)
    record = kept / "look.json"
    if record.is_file() and all(path.exists() for path in (kept / "model").iterdir()):
        if not offline():
            with contextlib.suppress(transport):  # access may have been withdrawn; if only the connection is gone, go on
                try:
                    client.api.auth_check(repo)
                except HfHubHTTPError as error:
                    if _status(error) not in PASSING:
                        raise explain(error, doing, client, repo) from None
        return _look_from(record)
    if offline():
        raise _not_cached(repo, revision, client)

    info = patiently(lambda: client.api.model_info(repo, revision=commit, files_metadata=True), doing, client, repo)
    if info.gated:
        patiently(lambda: client.api.auth_check(repo), doing, client, repo)
    files = tuple(RemoteFile(s.rfilename, int(s.size or 0), str(s.lfs.sha256) if s.lfs else "", str(s.blob_id or "")) for s in info.siblings or ())
    at_top = [file for file in files if "/" not in file.name]
    wanted = [f.name for f in at_top if any(Path(f.name).match(pattern) for pattern in side_files) and f.bytes <= LARGEST_SIDE_FILE]
    if "config.json" not in wanted:
        raise InputError(f"{repo} holds no transformers checkpoint: it has no config.json. It has: {', '.join(f.name for f in files[:6]) or 'nothing'}"
                         f"{' …' if len(files) > 6 else ''}")
    snapshot = _download(client, repo, commit, wanted)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        model = Path(scratch) / "model"
        model.mkdir()
        for name in wanted:
            (model / name).symlink_to((snapshot / name).resolve())
        weights = _needed_weights([f for f in at_top if f.name.endswith((".safetensors", ".bin"))], model)
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(lambda file: _hollow(client, repo, commit, file, model / file.name, doing), weights))
        (Path(scratch) / "look.json").write_text(json.dumps({"id": repo, "revision": commit, "gated": bool(info.gated), "private": bool(info.private),
                                                             "files": [asdict(f) for f in files if f.name in wanted or f in weights]}), encoding="utf-8")
        shutil.rmtree(kept, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was first: theirs is the same
            os.replace(scratch, kept)
            Path(scratch).mkdir()  # for TemporaryDirectory to remove
    return _look_from(record)


def _not_cached(repo: str, revision: str | None, client: Client) -> InputError:
    return InputError(f"{client.endpoint} cannot be reached{' (HF_HUB_OFFLINE is set)' if offline() else ''}, and {repo}{'@' + revision if revision else ''} "
                      "is not in the cache. Connect to the network, or give a folder")


def known(repo: str, revision: str) -> Look:
    """A look that has been taken at this commit already; sends nothing."""
    return _look_from(_headers_folder(repo, revision) / "look.json")


def _look_from(record: Path) -> Look:
    data = json.loads(record.read_text(encoding="utf-8"))
    return Look(data["id"], data["revision"], data["gated"], data["private"], tuple(RemoteFile(**f) for f in data["files"]), record.parent / "model")


def _needed_weights(files: list[RemoteFile], model: Path) -> list[RemoteFile]:
    """The weight files that a checkpoint consists of: safetensors and not the duplicate .bin, what the index names and not other copies."""
    names = {file.name: file for file in files}
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = model / f"{single}.index.json"
        if index.is_file():
            try:
                listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, AttributeError):
                continue  # source.resolve says what is wrong with it
            return [names[name] for name in sorted(listed) if name in names]
        if single in names:
            return [names[single]]
    return []


def _hollow(client: Client, repo: str, commit: str, file: RemoteFile, path: Path, doing: str) -> None:
    """A file of the right size that has the safetensors header and then a hole; of a pickle, only the hole."""
    head = b""
    if file.name.endswith(".safetensors"):
        from huggingface_hub.errors import SafetensorsParsingError

        try:
            parsed = patiently(lambda: client.api.parse_safetensors_file_metadata(repo, file.name, revision=commit), doing, client, repo)
        except SafetensorsParsingError as error:
            raise InputError(f"{repo}: {file.name} has no valid safetensors header ({str(error).splitlines()[0]})") from None
        tensors = {name: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": list(t.data_offsets)} for name, t in parsed.tensors.items()}
        text = json.dumps({**({"__metadata__": parsed.metadata} if parsed.metadata else {}), **tensors}, separators=(",", ":")).encode()
        length = file.bytes - 8 - max((t.data_offsets[1] for t in parsed.tensors.values()), default=0)
        if length < len(text):
            raise InputError(f"{repo}: {file.name} is {file.bytes:,} bytes long, too short for the tensors in its header")
        head = struct.pack("<Q", length) + text.ljust(length)
    with open(path, "wb") as out:
        out.write(head)
        out.truncate(file.bytes)


# --- fetching -----------------------------------------------------------------------------------------------------------


def _download(client: Client, repo: str, commit: str, names: list[str]) -> Path:
    """Files at a commit through huggingface_hub's cache; those that are there already are not fetched again."""
    from huggingface_hub import snapshot_download

    from autoquant.progress import ByteBar

    return Path(patiently(lambda: str(snapshot_download(repo, revision=commit, allow_patterns=[glob.escape(name) for name in names], token=client.secret, endpoint=client.endpoint,
                                                        tqdm_class=ByteBar)), f"downloading {repo}", client, repo))


def missing(seen: Look) -> list[RemoteFile]:
    """The files of a look that are not in huggingface_hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    return [file for file in seen.files if not isinstance(try_to_load_from_cache(seen.id, file.name, revision=seen.revision), str)]


def fetch(seen: Look) -> tuple[Path, dict[str, str]]:
    """Fetch the files of a look, check each one's size and hash, and return the folder and the sha256 by name.

    What a killed download left of a file is removed; files that are complete are kept. Raises InputError (no room, no access),
    CheckFailed (a file's bytes are not those the Hub lists: it is removed from the cache) or HubFailed.
    """
    client = connect()
    from huggingface_hub import constants, try_to_load_from_cache

    cache = Path(constants.HF_HUB_CACHE)
    absent = missing(seen)
    if absent:
        if offline():
            raise _not_cached(seen.id, None, client)
        _remove_leftovers(cache / f"models--{seen.id.replace('/', '--')}", absent)
        standing = next(parent for parent in (cache, *cache.parents) if parent.exists())
        needed, free = sum(file.bytes for file in absent), shutil.disk_usage(standing).free
        if needed > free:
            raise InputError(f"downloading {seen.id} needs {needed / 1e9:.2f} GB in {cache}, {free / 1e9:.2f} GB are free. Free some space or set HF_HOME to a larger disk")
        log.info("downloading %s: %d files, %.1f MB", seen.id, len(absent), needed / 1e6)
    folder = _download(client, seen.id, seen.revision, [file.name for file in seen.files]) if absent else Path(
        str(try_to_load_from_cache(seen.id, seen.files[0].name, revision=seen.revision))).parent
    with ThreadPoolExecutor(max_workers=4) as pool:
        hashes = dict(zip([file.name for file in seen.files], pool.map(lambda file: _verified(folder / file.name, file, seen), seen.files), strict=True))
    return folder, hashes


def _verified(path: Path, file: RemoteFile, seen: Look) -> str:
    """The sha256 of a fetched file; if it is not what the Hub lists, the file is removed from the cache and CheckFailed raised."""
    from autoquant.source import sha256_of

    found = sha256_of(path)
    if file.same_as(path, found):
        return found
    size = path.stat().st_size
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise CheckFailed(f"{seen.id}: {file.name} has arrived with {size:,} bytes and sha256 {found}, but the Hub lists {file.bytes:,} bytes"
                      f"{' and ' + file.sha256 if file.sha256 else ''}. It was removed; run again to fetch it anew. If that does not help, the file on the Hub is damaged")


def _remove_leftovers(repo_cache: Path, files: Iterable[RemoteFile]) -> None:
    """Remove what killed downloads have left of these files: huggingface_hub (1.27, 2.4) neither goes on with it nor removes it."""
    from filelock import FileLock, Timeout

    for file in files:
        name = file.sha256 or file.blob
        lock = repo_cache.parent / ".locks" / repo_cache.name / f"{name}.lock"
        left = list((repo_cache / "blobs").glob(f"{name}*.incomplete"))
        if not left:
            continue
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock, timeout=0):
                for path in left:
                    path.unlink(missing_ok=True)
        except Timeout:
            continue  # somebody is fetching it right now
