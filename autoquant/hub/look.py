"""A model on the Hub: its commit, files and weight headers. Nothing large is downloaded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from autoquant.core import licenses
from autoquant.core.cache import cache_folder
from autoquant.core.errors import HubFailed, InputError
from autoquant.hub.client import (
    PASSING,
    Client,
    connect,
    explain,
    offline,
    status_of,
    transport_error,
    with_retries,
)
from autoquant.hub.download import download, not_cached

log = logging.getLogger(__name__)

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
LARGEST_SIDE_FILE = 100 << 20  # bytes: config, tokenizer and card files are smaller than that


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
    """A repository at one commit. ``folder`` has its small files, and its weights as headers
    followed by a hole (no bytes on the disk).
    """

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
    """``owner/name``, ``owner/name@revision`` or a Hub URL -> (id, revision); None if it is none of
    them.
    """
    hosts = {
        "huggingface.co",
        "www.huggingface.co",
        "hf.co",
        urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc,
    }
    url = re.fullmatch(
        r"(?:https?://)?(huggingface\.co|hf\.co|(?<=//)[^/]+)/([^/?#]+/[^/?#]+?)(?:/(?:tree|blob|resolve|commit)/([^/?#]+)[^?#]*)?/?(?:[?#].*)?",
        model,
    )
    plain = re.fullmatch(r"([^@/]+/[^@/]+)(?:@([\w./-]+))?", model)
    if url and url[1] in hosts:
        repo, revision = url[2], unquote(url[3]) if url[3] else None
    elif plain:
        repo, revision = plain[1], plain[2]
    else:
        return None
    return (repo, revision) if licenses.is_repo_id(repo) else None


def headers_folder(repo: str, revision: str) -> Path:
    """Where the small files and headers of one commit are kept."""
    return cache_folder() / "headers" / f"{repo.replace('/', '--')}@{revision}"


def look(repo: str, revision: str | None, side_files: Iterable[str]) -> Look:
    """Look at a repository without fetching a weight: small files, and the header of each
    safetensors file by a ranged request.

    ``side_files`` are the patterns of small files that are wanted. The result is cached under
    ``headers/`` in the cache folder. Without a connection an earlier look is used. Raises
    InputError (no such repository or revision, gated, no access) or HubFailed.
    """
    from huggingface_hub.errors import HfHubHTTPError

    client = connect()
    transport = transport_error()
    doing = f"looking at {repo}"
    commit = _resolve(client, repo, revision, doing)
    kept = headers_folder(repo, commit)
    record = kept / "look.json"
    if record.is_file() and all(path.exists() for path in (kept / "model").iterdir()):
        if not offline():
            # access may have been withdrawn; if only the connection is gone, go on
            with contextlib.suppress(transport):
                try:
                    client.api.auth_check(repo)
                except HfHubHTTPError as error:
                    if status_of(error) not in PASSING:
                        raise explain(error, doing, client, repo) from None
        return look_from(record)
    if offline():
        raise not_cached(repo, revision, client)

    info = with_retries(
        lambda: client.api.model_info(repo, revision=commit, files_metadata=True),
        doing,
        client,
        repo,
    )
    if info.gated:
        with_retries(lambda: client.api.auth_check(repo), doing, client, repo)
    files = tuple(
        RemoteFile(
            s.rfilename, int(s.size or 0), str(s.lfs.sha256) if s.lfs else "", str(s.blob_id or "")
        )
        for s in info.siblings or ()
    )
    wanted = [
        f.name
        for f in files
        if any(_at(f.name, pattern) for pattern in side_files) and f.bytes <= LARGEST_SIDE_FILE
    ]
    if not {"config.json", ADAPTER_CONFIG} & set(wanted):
        raise InputError(
            f"{repo} holds no transformers checkpoint: it has no config.json. It has:"
            f" {', '.join(f.name for f in files[:6]) or 'nothing'}{' …' if len(files) > 6 else ''}"
        )
    snapshot = download(client, repo, commit, wanted)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        model = Path(scratch) / "model"
        model.mkdir()
        for name in wanted:
            (model / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(snapshot / name, model / name)
        weights = needed_weights(
            [f for f in files if f.name.endswith((".safetensors", ".bin"))], model
        )
        for file in weights:
            (model / file.name).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(
                pool.map(
                    lambda file: hollow(client, repo, commit, file, model / file.name, doing),
                    weights,
                )
            )
        (Path(scratch) / "look.json").write_text(
            json.dumps(
                {
                    "id": repo,
                    "revision": commit,
                    "gated": bool(info.gated),
                    "private": bool(info.private),
                    "files": [asdict(f) for f in files if f.name in wanted or f in weights],
                }
            ),
            encoding="utf-8",
        )
        os.chmod(scratch, 0o755)  # made for one user only, but the cache may be shared
        shutil.rmtree(kept, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was first: theirs is the same
            os.replace(scratch, kept)
            Path(scratch).mkdir()  # for TemporaryDirectory to remove
    return look_from(record)


def _resolve(client: Client, repo: str, revision: str | None, doing: str) -> str:
    """The commit that a revision names now; if the Hub cannot be reached, the one it named when it
    was last looked at.
    """
    from huggingface_hub.errors import RevisionResolutionError

    try:
        cached = str(
            client.api.resolve_revision(repo, revision=revision, local_files_only=True).resolved
        )
    except RevisionResolutionError:
        cached = ""
    if offline():
        if not cached:
            raise not_cached(repo, revision, client)
        return cached
    try:
        with_retries(
            lambda: client.api.model_info(repo, revision=revision),
            doing,
            client,
            repo,
            tries=2 if cached else 5,
        )
        # notes it in the cache, too
        return str(client.api.resolve_revision(repo, revision=revision).resolved)
    except HubFailed as failure:
        if not cached:
            raise HubFailed(f"{failure}. {not_cached(repo, revision, client)}") from None
        log.warning(
            "%s cannot be reached; using %s from the cache, commit %s",
            client.endpoint,
            repo,
            cached[:10],
        )
        return cached


def restricted(repo: str, revision: str) -> tuple[bool, bool]:
    """Whether a repository was gated, and private, when it was last looked at; false if it never
    was.
    """
    record = headers_folder(repo, revision) / "look.json"
    listing = look_from(record) if record.is_file() else None
    return (listing.gated, listing.private) if listing else (False, False)


def known(repo: str, revision: str) -> Look:
    """A look that has been taken at this commit already; sends nothing."""
    return look_from(headers_folder(repo, revision) / "look.json")


def look_from(record: Path) -> Look:
    """What an earlier look has noted."""
    data = json.loads(record.read_text(encoding="utf-8"))
    return Look(
        data["id"],
        data["revision"],
        data["gated"],
        data["private"],
        tuple(RemoteFile(**f) for f in data["files"]),
        record.parent / "model",
    )


def needed_weights(files: list[RemoteFile], model: Path) -> list[RemoteFile]:
    """The weight files that a checkpoint consists of: safetensors and not the duplicate .bin, what
    the index names and not other copies; an adapter if there is no model.
    """
    names = {file.name: file for file in files}
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = model / f"{single}.index.json"
        if index.is_file():
            try:
                listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, AttributeError, TypeError):
                continue  # source.resolve says what is wrong with it
            return [names[name] for name in sorted(listed) if name in names]
        if single in names:
            return [names[single]]
    # under another name; what is no whole model is told apart by who describes it
    others = [file for file in files if "/" not in file.name and file.name.endswith(".safetensors")]
    whole = [file for file in others if file.name != ADAPTER]
    return whole or others


def _at(name: str, pattern: str) -> bool:
    """Whether a pattern means a file, in the very folder that it names."""
    return name.count("/") == pattern.count("/") and Path(name).match(pattern)


def hollow(
    client: Client, repo: str, commit: str, file: RemoteFile, path: Path, doing: str
) -> None:
    """A file of the right size that has the safetensors header and then a hole; of a pickle, only
    the hole.
    """
    head = b""
    if file.name.endswith(".safetensors"):
        from huggingface_hub.errors import SafetensorsParsingError

        try:
            parsed = with_retries(
                lambda: client.api.parse_safetensors_file_metadata(
                    repo, file.name, revision=commit
                ),
                doing,
                client,
                repo,
            )
        except SafetensorsParsingError as error:
            raise InputError(
                f"{repo}: {file.name} has no valid safetensors header"
                f" ({str(error).splitlines()[0]})"
            ) from None
        tensors = {
            name: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": list(t.data_offsets)}
            for name, t in parsed.tensors.items()
        }
        text = json.dumps(
            {**({"__metadata__": parsed.metadata} if parsed.metadata else {}), **tensors},
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()
        length = (
            file.bytes - 8 - max((t.data_offsets[1] for t in parsed.tensors.values()), default=0)
        )
        if length < len(text):
            raise InputError(
                f"{repo}: {file.name} is {file.bytes:,} bytes long, too short for the tensors in"
                " its header"
            )
        head = struct.pack("<Q", length) + text.ljust(length)
    with open(path, "wb") as out:
        out.write(head)
        out.truncate(file.bytes)
