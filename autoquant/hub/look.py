"""A model on the Hub: its commit, files and weight headers. Nothing large is downloaded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
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
from autoquant.hub.hollow import hollow

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
    followed by a hole (no bytes on the disk). ``gguf`` are the files of a model that is GGUF.
    """

    id: str
    revision: str
    gated: bool
    private: bool
    files: tuple[RemoteFile, ...]
    folder: Path
    gguf: tuple[str, ...] = ()


def git_sha(content: bytes) -> str:
    """Git's name of a file's content, which the Hub gives for small files."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def parse(model: str) -> tuple[str, str | None, str] | None:
    """``owner/name``, ``owner/name@revision`` or a Hub URL -> (id, revision, tag); None if it is
    none of them. The tag names a GGUF file, as llama.cpp and Ollama have it: ``owner/name:Q8_0``,
    or the file itself, in a URL too, or there its folder, with a slash behind.
    """
    hosts = {
        "huggingface.co",
        "www.huggingface.co",
        "hf.co",
        urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc,
    }
    url = re.fullmatch(
        r"(?:https?://)?(huggingface\.co|hf\.co|(?<=//)[^/]+)/([^/?#]+/[^/?#:]+?)"
        r"(?:/(?:tree|blob|resolve|commit)/([^/?#]+)/?([^?#]*))?(?::([\w.-]+))?/?(?:[?#].*)?",
        model,
    )
    plain = re.fullmatch(r"([^@/:]+/[^@/:]+)(?:@([\w./-]+))?(?::(.+))?", model)
    if url and url[1] in hosts:
        repo, revision = url[2], unquote(url[3]) if url[3] else None
        file = unquote(url[4] or "")
        shown = re.search(r"[?&]show_file_info=([^&#]+)", model)  # a file on the Hub's own page
        file = unquote(shown[1]) if shown else file.rstrip("/")
        folder = f"{file}/" if file and "/tree/" in model else ""
        tag = url[5] or (file if file.endswith(".gguf") else folder)
    elif plain:
        repo, revision, tag = plain[1], plain[2], plain[3] or ""
    else:
        return None
    return (repo, revision, tag) if licenses.is_repo_id(repo) else None


def headers_folder(repo: str, revision: str, tag: str = "") -> Path:
    """Where the small files and headers of one commit are kept."""
    name = f"{repo.replace('/', '--')}@{revision}{':' if tag else ''}{tag.replace('/', '--')}"
    return cache_folder() / "headers" / name


def look(
    repo: str,
    revision: str | None,
    tag: str,
    side_files: Iterable[str],
    choose: Callable[[list[str], str, str], list[str]],
) -> Look:
    """Look at a repository without fetching a weight: small files, and the header of each weight
    file by a ranged request.

    ``side_files`` are the patterns of small files that are wanted. ``choose`` gives a model's GGUF
    files among names, by the ``tag``: they are taken where one is named, or nothing else is there
    (then they are the look's ``gguf``). The result is cached under
    ``headers/`` in the cache folder. Without a connection an earlier look is used. Raises
    InputError (no such repository or revision, gated, no access) or HubFailed.
    """
    from huggingface_hub.errors import HfHubHTTPError

    client = connect()
    transport = transport_error()
    doing = f"looking at {repo}"
    commit = _resolve(client, repo, revision, doing)
    kept = headers_folder(repo, commit, tag)
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
        if not {"", ".", ".."} & set(s.rfilename.split("/"))  # they become paths here
    )
    wanted = [
        f.name
        for f in files
        if any(_at(f.name, pattern) for pattern in side_files) and f.bytes <= LARGEST_SIDE_FILE
    ]
    other = [f for f in files if f.name.endswith((".safetensors", ".bin"))]
    names = [f.name for f in files if f.name.endswith(".gguf")]
    whole = {"config.json", ADAPTER_CONFIG} & set(wanted) and other
    if tag.endswith("/") and not any(name.startswith(tag) for name in names):
        tag = ""  # a folder of something else
    where = f"{repo}@{revision}" if revision else repo
    gguf = choose(names, tag, where) if tag or (names and not whole) else []
    if not gguf and not {"config.json", ADAPTER_CONFIG} & set(wanted):
        raise InputError(
            f"{repo} holds no transformers checkpoint: it has no config.json. It has:"
            f" {', '.join(f.name for f in files[:6]) or 'nothing'}{' …' if len(files) > 6 else ''}"
        )
    snapshot = download(client, repo, commit, wanted) if wanted else kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        model = Path(scratch) / "model"
        model.mkdir()
        for name in wanted:
            (model / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(snapshot / name, model / name)
        weights = [f for f in files if f.name in gguf] if gguf else needed_weights(other, model)
        for file in weights:
            (model / file.name).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(
                pool.map(
                    lambda file: hollow(
                        client, repo, commit, file.name, file.bytes, model / file.name, doing
                    ),
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
                    "gguf": gguf,
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
    plain = headers_folder(repo, revision)
    tagged = plain.parent.glob(f"{plain.name}:*/look.json")
    looks = [look_from(one) for one in (plain / "look.json", *tagged) if one.is_file()]
    return any(one.gated for one in looks), any(one.private for one in looks)


def known(repo: str, revision: str, tag: str = "") -> Look:
    """A look that has been taken at this commit already; sends nothing."""
    return look_from(headers_folder(repo, revision, tag) / "look.json")


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
        tuple(data.get("gguf", ())),
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
