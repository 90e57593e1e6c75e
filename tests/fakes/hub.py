"""A Hugging Face Hub on the loopback interface, for the real, unpatched huggingface_hub client
(HF_ENDPOINT).

Speaks what releases 1.27 and 2.4 of the client speak for model repositories: whoami, create,
delete, settings, preupload, LFS (basic and multipart), Xet (through hf_xet's own ``local://``
store), commit, branches, tags, tree, paths-info, refs, commits, resolve with HEAD, Range, ETag and
a redirect to another origin; and what it takes to read datasets, which are kept as
``datasets/owner/name``. State is kept in ``root`` and in this object, so that a server can be
stopped and started again.

Tests steer it: :meth:`Hub.fail` injects faults, ``latency`` and ``bandwidth`` slow it down,
:meth:`Hub.on` calls back on a request, ``log`` has every request. ``python -m tests.fakes.hub
PORT`` runs one to play with.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import re
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BLOCK = 1 << 18
LFS_NAMES = re.compile(r"\.(safetensors|bin|gguf|onnx|pt|pth|parquet|zip|png)$|^tokenizer\.json$")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Refused(Exception):
    """An answer that is an error."""

    def __init__(
        self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None
    ) -> None:
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


@dataclass(frozen=True)
class File:
    """A committed file: git's object id, bytes, and the sha256 if it is stored as LFS."""

    oid: str
    size: int
    sha256: str = ""


@dataclass(frozen=True)
class Commit:
    """A commit: its files by path."""

    sha: str
    files: dict[str, File]
    title: str
    parent: str
    date: str


class Repo:
    """A model repository."""

    def __init__(self, id: str, private: bool) -> None:
        self.id, self.private, self.gated = id, private, False
        self.allowed: set[str] = set()
        self.created = _now()
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.branches["main"] = self.add({}, "initial commit", "")

    def add(self, files: dict[str, File], title: str, parent: str) -> str:
        """Make a commit; returns its id."""
        sha = hashlib.sha1(
            json.dumps(
                [sorted((path, f.oid) for path, f in files.items()), title, parent, time.time_ns()]
            ).encode()
        ).hexdigest()
        self.commits[sha] = Commit(sha, files, title, parent, _now())
        return sha

    def at(self, revision: str) -> Commit:
        """The commit a branch, tag or id names."""
        sha = (
            self.branches.get(revision)
            or self.tags.get(revision)
            or (revision if revision in self.commits else None)
        )
        if sha is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]


@dataclass
class Fault:
    """An injected fault: the next ``times`` matching requests get ``status``, or are cut after
    ``cut`` body bytes, or dropped unanswered after being obeyed.
    """

    pattern: re.Pattern[str]
    status: int
    times: int
    skip: int
    cut: int | None
    drop: bool
    garble: bool
    headers: dict[str, str]
    message: str


@dataclass(frozen=True)
class Request:
    """One request as it came in: ``sent`` are its body's bytes, ``answered`` the bytes of the
    answer's body.
    """

    method: str
    path: str
    token: str
    sent: int
    range: str


@dataclass
class Hub:
    """The server. ``users``: token -> {name, role (read, write, fineGrained), orgs}. ``bandwidth``
    is bytes a second, for all transfers together.
    """

    root: Path
    users: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {TOKEN: {"name": "tester", "role": "write", "orgs": ["acme"]}}
    )
    lfs_threshold: int = 10 << 20
    part_size: int = 5 << 20
    xet: bool = False
    latency: float = 0.0
    bandwidth: float = 0.0
    port: int = 0

    def __post_init__(self) -> None:
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        self.repos: dict[str, Repo] = {}
        self.log: list[Request] = []
        self.xet_hash: dict[str, str] = {}
        self.served = 0
        self._faults: list[Fault] = []
        self._callbacks: list[tuple[re.Pattern[str], Callable[[], None]]] = []
        self.lock = threading.RLock()
        self._pipe = threading.Lock()
        self._free = 0.0
        self._server: ThreadingHTTPServer | None = None

    # --- running and steering ---------------------------------------------------------------------

    def start(self) -> Hub:
        """Listen, on the same port as before if there was one."""
        handler = type("Bound", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def stop(self) -> None:
        """Stop listening; what was committed and uploaded stays."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def fail(
        self,
        pattern: str,
        status: int = 503,
        *,
        times: int = 1,
        skip: int = 0,
        cut: int | None = None,
        drop: bool = False,
        headers: dict[str, str] | None = None,
        message: str = "injected fault",
    ) -> None:
        """Let the next ``times`` requests whose "METHOD /path" matches fail, after ``skip`` that do
        not.
        """
        self._faults.append(
            Fault(
                re.compile(pattern), status, times, skip, cut, drop, False, headers or {}, message
            )
        )

    def garble(self, pattern: str) -> None:
        """Answer the next matching request with 503 and HTML, as proxies do."""
        self._faults.append(Fault(re.compile(pattern), 503, 1, 0, None, False, True, {}, ""))

    def on(self, pattern: str, callback: Callable[[], None]) -> None:
        """Call back, once, when a request whose "METHOD /path" matches comes in, before it is
        answered.
        """
        self._callbacks.append((re.compile(pattern), callback))

    def _fault(self, line: str) -> Fault | None:
        with self.lock:
            for i, (pattern, callback) in enumerate(self._callbacks):
                if pattern.search(line):
                    del self._callbacks[i]
                    callback()
                    break
            for fault in self._faults:
                if fault.times > 0 and fault.pattern.search(line):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def throttle(self, n: int) -> None:
        """Let ``n`` bytes through when the pipe, which all transfers share, has room for them; the
        server's own work counts as waiting.
        """
        if self.bandwidth:
            with self._pipe:
                self._free = max(self._free, time.monotonic()) + n / self.bandwidth
                until = self._free
            time.sleep(max(0.0, until - time.monotonic()))

    def requests(self, pattern: str) -> list[Request]:
        """The requests whose "METHOD /path" matches."""
        return [
            request
            for request in self.log
            if re.search(pattern, f"{request.method} {request.path}")
        ]

    def sent(self) -> int:
        """Bytes of file contents that clients have sent through LFS."""
        return sum(request.sent for request in self.requests(r"^PUT /_lfs/"))

    # --- contents ---------------------------------------------------------------------------------

    def blob(self, key: str) -> Path:
        """Where a content lies, by sha256 or git id."""
        return self.root / "blobs" / key

    def seed(
        self,
        id: str,
        files: dict[str, bytes | Path],
        *,
        private: bool = False,
        gated: bool = False,
        branch: str = "main",
    ) -> str:
        """Put a commit there without HTTP; returns its id."""
        with self.lock:
            repo = self.repos.setdefault(id, Repo(id, private))
            repo.gated = gated or repo.gated
            head = repo.branches.get(branch) or repo.branches["main"]
            contents = {
                name: content if isinstance(content, bytes) else content.read_bytes()
                for name, content in files.items()
            }
            repo.branches[branch] = repo.add(
                {
                    **repo.commits[head].files,
                    **{name: self.store(name, content) for name, content in contents.items()},
                },
                "seed",
                head,
            )
            return repo.branches[branch]

    def store(self, name: str, content: bytes) -> File:
        """Keep a content as the Hub would: in git, or as LFS."""
        if len(content) >= self.lfs_threshold or LFS_NAMES.search(name):
            sha = hashlib.sha256(content).hexdigest()
            self.blob(sha).write_bytes(content)
            return File(
                _git_sha(
                    f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize"
                    f" {len(content)}\n".encode()
                ),
                len(content),
                sha,
            )
        oid = _git_sha(content)
        self.blob(oid).write_bytes(content)
        return File(oid, len(content))

    def content(self, id: str, path: str, revision: str = "main") -> bytes:
        """A committed file's bytes."""
        file = self.repos[id].at(revision).files[path]
        return (self.materialized(file) if file.sha256 else self.blob(file.oid)).read_bytes()

    def files(self, id: str, revision: str = "main") -> set[str]:
        """The names at a revision."""
        return set(self.repos[id].at(revision).files)

    def titles(self, id: str, branch: str = "main") -> list[str]:
        """Commit titles, newest first."""
        repo, out = self.repos[id], []
        commit = repo.commits.get(repo.branches[branch])
        while commit:
            out.append(commit.title)
            commit = repo.commits.get(commit.parent)
        return out

    def xet_index(self) -> None:
        """Learn which sha256 has which Xet hash from the shards hf_xet wrote (file-info section,
        48-byte records).
        """

        def text(raw: bytes) -> str:
            return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))

        for path in (self.root / "cas").rglob("*.mdb"):
            data, at = path.read_bytes(), 48
            while at + 48 <= len(data):
                hash_, flags, entries = (
                    data[at : at + 32],
                    *struct.unpack("<II", data[at + 32 : at + 40]),
                )
                if hash_ == b"\xff" * 32:
                    break
                at += 48 * (1 + entries) + (48 * entries if flags & (1 << 31) else 0)
                if flags & (1 << 30):
                    self.xet_hash[text(data[at : at + 32])] = text(hash_)
                    at += 48

    def materialized(self, file: File) -> Path:
        """A large file's content; one that came through Xet is put together by hf_xet first."""
        path = self.blob(file.sha256)
        if not path.exists() and file.sha256 in self.xet_hash:
            import hf_xet

            with hf_xet.XetSession().new_file_download_group(
                endpoint=f"local://{self.root / 'cas'}",
                token="xet",
                token_expiry_unix_secs=int(time.time()) + 3600,
            ) as group:
                group.start_download_file(
                    hf_xet.XetFileInfo(self.xet_hash[file.sha256], file.size), str(path)
                )
        return path

    def repo(
        self, id: str, user: dict[str, Any] | None, *, write: bool = False, content: bool = False
    ) -> Repo:
        """A repository, if that user may see (and write) it."""
        repo = self.repos.get(id)
        mine = bool(user and id.split("/")[-2] in [user["name"], *user.get("orgs", ())])
        if repo is None or (repo.private and not mine):
            raise Refused(
                404 if user else 401,
                "Repository not found" if user else "Invalid username or password.",
                "RepoNotFound",
            )
        if write and not (mine and user and user["role"] != "read"):
            raise Refused(403, "you must use a write token with access to this repo")
        if content and repo.gated and not mine and not (user and user["name"] in repo.allowed):
            raise Refused(
                403 if user else 401,
                f"Access to model {id} is restricted and you are not in the authorized list.",
                "GatedRepo",
            )
        return repo


TOKEN = "hf_" + "TesterTesterTesterTesterTesterTest"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def _blocks(self) -> Iterator[bytes]:
        """The request's body, piece by piece."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while n := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(n)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            block = self.rfile.read(min(BLOCK, left))
            if not block:
                raise ConnectionResetError
            left -= len(block)
            yield block

    def _body(self) -> bytes:
        return b"".join(self._blocks())

    def send(
        self,
        status: int = 200,
        value: Any = None,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> None:
        """Answer with JSON or raw bytes."""
        if self._dropped:
            self.close_connection = True
            raise ConnectionResetError
        data = raw if raw is not None else json.dumps({} if value is None else value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            "X-Request-Id": "fake",
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _dispatch(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        # stopped meanwhile: connections that were kept open end too
        if hub._server is not self.server:
            self.close_connection = True
            return
        self.query = parse_qs(url.query)
        if hub.latency:
            time.sleep(hub.latency)
        fault = hub._fault(f"{self.command} {url.path}")
        self._cut, self._dropped = (fault.cut if fault else None), bool(fault and fault.drop)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = hub.users.get(token)
        streamed = url.path.startswith("/_lfs/") and self.command == "PUT"
        self.data = b"" if streamed else self._body()
        hub.log.append(
            Request(
                self.command,
                self.path,
                token,
                int(self.headers.get("Content-Length") or 0),
                self.headers.get("Range", ""),
            )
        )
        try:
            if fault and fault.garble:
                self.send(
                    503, raw=b"<html>Bad gateway</html>", headers={"Content-Type": "text/html"}
                )
                return
            if fault and fault.cut is None and not fault.drop:
                for _ in self._blocks() if streamed else ():
                    pass
                raise Refused(fault.status, fault.message, headers=fault.headers)
            if token and not self.user and not url.path.startswith("/_"):
                raise Refused(401, "Invalid credentials in Authorization header")
            path = re.sub(
                r"^/(api/)?datasets/", lambda found: "/api/models/" if found[1] else "/", url.path
            )
            for methods, pattern, function in ROUTES:
                match = pattern.fullmatch(path)
                if self.command in methods and match:
                    named = {
                        name: unquote(text) if text else text
                        for name, text in match.groupdict().items()
                    }
                    if path != url.path:
                        named["id"] = f"datasets/{named['id']}"
                    with contextlib.nullcontext() if function in FREE else hub.lock:
                        function(self, **named)
                    return
            raise Refused(
                404,
                f"Sorry, we can't find the page you are looking for. ({self.command} {url.path})",
            )
        except Refused as refused:
            with contextlib.suppress(ConnectionError):
                self.send(
                    refused.status,
                    {"error": refused.message},
                    {
                        "X-Error-Message": refused.message,
                        **({"X-Error-Code": refused.code} if refused.code else {}),
                        **refused.headers,
                    },
                )
        except ConnectionError:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _dispatch

    # --- account and repositories -----------------------------------------------------------------

    def whoami(self) -> None:
        user = self._known()
        access = {
            "displayName": "test",
            "role": user["role"],
            "createdAt": _now(),
            **({"fineGrained": user["fineGrained"]} if "fineGrained" in user else {}),
        }
        self.send(
            value={
                "type": "user",
                "id": "0",
                "name": user["name"],
                "fullname": user["name"],
                "email": None,
                "canPay": False,
                "isPro": False,
                "orgs": [
                    {"name": org, "type": "org", "fullname": org} for org in user.get("orgs", ())
                ],
                "auth": {"type": "access_token", "accessToken": access},
            }
        )

    def _known(self) -> dict[str, Any]:
        if not self.user:
            raise Refused(401, "Invalid username or password.")
        return self.user

    def create(self) -> None:
        wanted, user = json.loads(self.data), self._known()
        owner = wanted.get("organization") or user["name"]
        id = f"{owner}/{wanted['name']}"
        if user["role"] == "read" or owner not in [user["name"], *user.get("orgs", ())]:
            raise Refused(
                403, f'You don\'t have the rights to create a model under the namespace "{owner}"'
            )
        if id in self.hub.repos:
            self.send(
                409,
                {
                    "error": f"You already created this model repo: {id}",
                    "url": f"{self.hub.url}/{id}",
                },
            )
            return
        self.hub.repos[id] = Repo(
            id, bool(wanted.get("private")) or wanted.get("visibility") == "private"
        )
        self.send(value={"url": f"{self.hub.url}/{id}", "name": id, "id": "0"})

    def delete(self) -> None:
        wanted = json.loads(self.data)
        id = f"{wanted.get('organization') or self._known()['name']}/{wanted['name']}"
        self.hub.repo(id, self.user, write=True)
        del self.hub.repos[id]
        self.send()

    def settings(self, id: str) -> None:
        repo, wanted = self.hub.repo(id, self.user, write=True), json.loads(self.data)
        repo.private = wanted.get(
            "private",
            wanted.get("visibility", "private" if repo.private else "public") == "private",
        )
        repo.gated = wanted.get("gated", repo.gated)
        self.send()

    def validate_yaml(self) -> None:
        """The Hub's check of a card's first lines: a few of its rules, written down anew and not
        taken from the package.
        """
        import yaml

        match = re.match(r"^---\r?\n(.*?)\r?\n---", json.loads(self.data)["content"], re.S)
        card = (yaml.safe_load(match[1]) or {}) if match else {}
        problems = []
        if "license" in card and card["license"] not in (
            "apache-2.0",
            "mit",
            "llama3.1",
            "gemma",
            "cc-by-nc-4.0",
            "other",
        ):
            problems.append('"license" must be one of [apache-2.0, mit, …]')
        if "base_model" in card and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(card["base_model"])):
            problems.append(
                f'"base_model" with value "{card["base_model"]}" is not valid. Use a model id from'
                " https://hf.co/models."
            )
        if problems:
            self.send(
                400, {"warnings": [], "errors": [{"message": problem} for problem in problems]}
            )
        else:
            self.send(value={"warnings": [], "errors": []})

    # --- reading ----------------------------------------------------------------------------------

    def info(self, id: str, rev: str | None = None) -> None:
        repo = self.hub.repo(id, self.user)
        commit, blobs = repo.at(rev or "main"), "blobs" in self.query
        siblings = [
            {
                "rfilename": path,
                **(
                    {
                        "size": f.size,
                        "blobId": f.oid,
                        **(
                            {"lfs": {"sha256": f.sha256, "size": f.size, "pointerSize": 135}}
                            if f.sha256
                            else {}
                        ),
                    }
                    if blobs
                    else {}
                ),
            }
            for path, f in sorted(commit.files.items())
        ]
        plain = id.removeprefix("datasets/")
        self.send(
            value={
                "_id": "0",
                "id": plain,
                "modelId": plain,
                "author": plain.split("/")[0],
                "sha": commit.sha,
                "lastModified": commit.date,
                "createdAt": repo.created,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": siblings,
            }
        )

    def _entry(self, path: str, file: File) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        if file.sha256:
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 135}
        if file.sha256 in self.hub.xet_hash:
            entry["xetHash"] = self.hub.xet_hash[file.sha256]
        return entry

    def tree(self, id: str, rev: str, sub: str | None = None) -> None:
        commit = self.hub.repo(id, self.user, content=True).at(rev)
        prefix = sub.strip("/") + "/" if sub else ""
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        out: list[dict[str, Any]] = []
        folders: set[str] = set()
        for path, file in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for i in range(1, len(parts) if recursive else min(2, len(parts))):
                folder = prefix + "/".join(parts[:i])
                if folder not in folders:
                    folders.add(folder)
                    out.append(
                        {
                            "type": "directory",
                            "oid": hashlib.sha1(folder.encode()).hexdigest(),
                            "size": 0,
                            "path": folder,
                        }
                    )
            if recursive or len(parts) == 1:
                out.append(self._entry(path, file))
        if sub and not out:
            raise Refused(404, f'{sub} does not exist on "{rev}"', "EntryNotFound")
        self.send(value=out)

    def paths_info(self, id: str, rev: str) -> None:
        commit = self.hub.repo(id, self.user, content=True).at(rev)
        wanted = (
            json.loads(self.data)["paths"]
            if self.data.startswith(b"{")
            else parse_qs(self.data.decode()).get("paths", [])
        )
        self.send(
            value=[
                self._entry(path.strip("/"), commit.files[path.strip("/")])
                for path in wanted
                if path.strip("/") in commit.files
            ]
        )

    def refs(self, id: str) -> None:
        repo = self.hub.repo(id, self.user)
        self.send(
            value={
                "branches": [
                    {"name": n, "ref": f"refs/heads/{n}", "targetCommit": s}
                    for n, s in repo.branches.items()
                ],
                "converts": [],
                "tags": [
                    {"name": n, "ref": f"refs/tags/{n}", "targetCommit": s}
                    for n, s in repo.tags.items()
                ],
                "pullRequests": [],
            }
        )

    def commits(self, id: str, rev: str) -> None:
        repo = self.hub.repo(id, self.user)
        commit: Commit | None = repo.at(rev)
        out = []
        while commit:
            out.append(
                {
                    "id": commit.sha,
                    "authors": [{"user": "tester"}],
                    "date": commit.date,
                    "title": commit.title,
                    "message": "",
                }
            )
            commit = repo.commits.get(commit.parent)
        self.send(value=out)

    def auth_check(self, id: str, write: str | None = None) -> None:
        self.hub.repo(id, self.user, write=bool(write), content=True)
        self.send()

    def branch(self, id: str, name: str) -> None:
        repo = self.hub.repo(id, self.user, write=True)
        if self.command == "DELETE":
            del repo.branches[name]
        elif name in repo.branches:
            raise Refused(409, "Reference already exists")
        else:
            repo.branches[name] = repo.at(
                json.loads(self.data or b"{}").get("startingPoint") or "main"
            ).sha
        self.send()

    # --- writing ----------------------------------------------------------------------------------

    def preupload(self, id: str, rev: str) -> None:
        commit, wanted = self.hub.repo(id, self.user, write=True).at(rev), json.loads(self.data)
        ignored = [
            line.strip() for line in (wanted.get("gitIgnore") or "").splitlines() if line.strip()
        ]
        out = []
        for f in wanted["files"]:
            there = commit.files.get(f["path"])
            large = f["size"] >= self.hub.lfs_threshold or LFS_NAMES.search(f["path"])
            out.append(
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": any(PurePath(f["path"]).match(glob) for glob in ignored),
                    "oid": (there.sha256 or there.oid) if there else None,
                }
            )
        self.send(value={"files": out, "commitOid": commit.sha})

    def lfs_batch(self, id: str) -> None:
        self.hub.repo(id, self.user, write=True)
        wanted, out = json.loads(self.data), []
        for item in wanted["objects"]:
            key, part = item["oid"], self.hub.part_size
            answer = dict(item)
            if not self.hub.blob(key).exists() and key not in self.hub.xet_hash:
                upload: dict[str, Any] = {"href": f"{self.hub.url}/_lfs/{key}", "header": {}}
                if item["size"] > part and "multipart" in wanted["transfers"]:
                    parts = {
                        str(i + 1): f"{self.hub.url}/_lfs/{key}/part/{i + 1}"
                        for i in range(-(-item["size"] // part))
                    }
                    upload = {
                        "href": f"{self.hub.url}/_lfs/{key}/complete",
                        "header": {"chunk_size": str(part), **parts},
                    }
                answer |= {
                    "authenticated": True,
                    "actions": {
                        "upload": upload,
                        "verify": {"href": f"{self.hub.url}/_lfs/{key}/verify", "header": {}},
                    },
                }
            out.append(answer)
        transfer = "xet" if self.hub.xet and "xet" in wanted["transfers"] else "multipart"
        self.send(
            value={"transfer": transfer, "objects": out},
            headers={"Content-Type": "application/vnd.git-lfs+json"},
        )

    def lfs_put(self, oid: str, part: str | None = None) -> None:
        target = self.hub.blob(
            f"{oid}.part{part}" if part else f"{oid}.whole{threading.get_ident()}"
        )
        digest, etag = hashlib.sha256(), hashlib.md5()
        with open(target, "wb") as out:
            for block in self._blocks():
                self.hub.throttle(len(block))
                out.write(block)
                digest.update(block)
                etag.update(block)
        if not part:
            if digest.hexdigest() != oid:
                target.unlink()
                raise Refused(400, "sha256 mismatch")
            target.rename(self.hub.blob(oid))
        self.send(raw=b"", headers={"ETag": f'"{etag.hexdigest()}"'})

    def lfs_complete(self, oid: str) -> None:
        digest, whole = hashlib.sha256(), self.hub.blob(f"{oid}.whole")
        parts = [
            self.hub.blob(f"{oid}.part{p['partNumber']}")
            for p in sorted(json.loads(self.data)["parts"], key=lambda p: p["partNumber"])
        ]
        with open(whole, "wb") as out:
            for path in parts:
                with open(path, "rb") as piece:
                    while block := piece.read(BLOCK):
                        digest.update(block)
                        out.write(block)
                path.unlink()
        if digest.hexdigest() != oid:
            whole.unlink()
            raise Refused(400, "sha256 mismatch")
        whole.rename(self.hub.blob(oid))
        self.send()

    def lfs_verify(self, oid: str) -> None:
        if (
            not self.hub.blob(oid).exists()
            or self.hub.blob(oid).stat().st_size != json.loads(self.data)["size"]
        ):
            raise Refused(404, "not found")
        self.send()

    def commit(self, id: str, rev: str) -> None:
        repo = self.hub.repo(id, self.user, write=True)
        if rev not in repo.branches:
            raise Refused(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        base, title, files = repo.at(rev), "", dict(repo.at(rev).files)
        for line in filter(None, self.data.split(b"\n")):
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "header":
                title = value.get("summary", "")
                if value.get("parentCommit") and not base.sha.startswith(value["parentCommit"]):
                    raise Refused(412, "A commit has happened since. Please refresh and try again.")
            elif kind == "file":
                content = base64.b64decode(value["content"])
                self.hub.blob(_git_sha(content)).write_bytes(content)
                files[value["path"]] = File(_git_sha(content), len(content))
            elif kind == "lfsFile":
                sha = value["oid"]
                if not self.hub.blob(sha).exists():
                    self.hub.xet_index()
                    if sha not in self.hub.xet_hash:
                        raise Refused(
                            400,
                            f"LFS pointer pointed to a file that does not exist: {value['path']}",
                        )
                size = (
                    value["size"]
                    if value.get("size") is not None
                    else self.hub.blob(sha).stat().st_size
                )
                files[value["path"]] = File(
                    _git_sha(
                        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize"
                        f" {size}\n".encode()
                    ),
                    size,
                    sha,
                )
            elif kind == "deletedFile":
                del files[value["path"]]
        repo.branches[rev] = repo.add(files, title, base.sha)
        self.send(
            value={
                "success": True,
                "commitOid": repo.branches[rev],
                "commitUrl": f"{self.hub.url}/{id}/commit/{repo.branches[rev]}",
                "hookOutput": "",
            }
        )

    # --- file contents ----------------------------------------------------------------------------

    def resolve(self, id: str, rev: str, path: str) -> None:
        commit = self.hub.repo(id, self.user, content=True).at(rev)
        file = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if file is None:
            raise Refused(404, "Entry not found", "EntryNotFound", headers)
        if not file.sha256:
            self._ranged(
                self.hub.blob(file.oid),
                {**headers, "ETag": f'"{file.oid}"', "Content-Type": "text/plain; charset=utf-8"},
            )
            return
        headers |= {
            "X-Linked-Size": str(file.size),
            "X-Linked-Etag": f'"{file.sha256}"',
            # another origin, as on the Hub: the client must drop its token
            "Location": f"http://localhost:{self.hub.port}/_cdn/{file.sha256}",
        }
        if self.hub.xet and file.sha256 in self.hub.xet_hash:
            headers |= {
                "X-Xet-Hash": self.hub.xet_hash[file.sha256],
                "Link": (
                    f'<{self.hub.url}/api/models/{id}/xet-read-token/{commit.sha}>; rel="xet-auth"'
                ),
            }
            self.hub.materialized(file)
        self.send(302, headers=headers, raw=b"")

    def cdn(self, sha: str) -> None:
        if self.headers.get("Authorization"):
            raise Refused(400, "a token was sent to another origin")
        if not self.hub.blob(sha).exists():
            raise Refused(404, "no such blob")
        self._ranged(
            self.hub.blob(sha),
            {
                "ETag": f'"{sha}"',
                "Content-Type": "application/octet-stream",
                "Accept-Ranges": "bytes",
            },
        )

    def _ranged(self, path: Path, headers: dict[str, str]) -> None:
        size = path.stat().st_size
        match = re.match(r"bytes=(\d*)-(\d*)$", self.headers.get("Range", ""))
        first, last, status = 0, size - 1, 200
        if match:
            first = int(match[1]) if match[1] else size - int(match[2])
            last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
            status = 206
            if first >= size:
                raise Refused(416, "range", headers={"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(last - first + 1)}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command == "HEAD":
            return
        left = last - first + 1 if self._cut is None else min(self._cut, last - first + 1)
        with open(path, "rb") as file:
            file.seek(first)
            while left > 0 and (block := file.read(min(BLOCK, left))):
                self.hub.throttle(len(block))
                self.wfile.write(block)
                self.hub.served += len(block)
                left -= len(block)
        if self._cut is not None:
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True

    def xet_token(self, id: str, rev: str, kind: str) -> None:
        if not self.hub.xet:
            raise Refused(404, "xet is off")
        self.hub.repo(id, self.user, write=kind == "write")
        store, end = f"local://{self.hub.root / 'cas'}", int(time.time()) + 3600
        self.send(
            value={"casUrl": store, "exp": end, "accessToken": "xet"},
            headers={
                "X-Xet-Cas-Url": store,
                "X-Xet-Access-Token": "xet",
                "X-Xet-Token-Expiration": str(end),
            },
        )


_ID, _REV = r"(?P<id>[^/]+/[^/]+)", r"(?P<rev>[^/]+)"
_MODEL = rf"/api/models/{_ID}"
FREE = (Handler.lfs_put, Handler.cdn)  # long transfers do not hold the lock
ROUTES: list[tuple[list[str], re.Pattern[str], Callable[..., None]]] = [
    (methods.split(), re.compile(pattern), function)
    for methods, pattern, function in (
        ("GET", r"/api/whoami-v2", Handler.whoami),
        ("POST", r"/api/repos/create", Handler.create),
        ("DELETE", r"/api/repos/delete", Handler.delete),
        ("POST", r"/api/validate-yaml", Handler.validate_yaml),
        ("PUT", rf"{_MODEL}/settings", Handler.settings),
        ("GET", _MODEL, Handler.info),
        ("GET", rf"{_MODEL}/revision/{_REV}", Handler.info),
        ("GET", rf"{_MODEL}/tree/{_REV}(?:/(?P<sub>.+))?", Handler.tree),
        ("POST", rf"{_MODEL}/paths-info/{_REV}", Handler.paths_info),
        ("GET", rf"{_MODEL}/refs", Handler.refs),
        ("GET", rf"{_MODEL}/commits/{_REV}", Handler.commits),
        ("GET", rf"{_MODEL}/auth-check(?P<write>/write)?", Handler.auth_check),
        ("POST DELETE", rf"{_MODEL}/branch/(?P<name>[^/]+)", Handler.branch),
        ("POST", rf"{_MODEL}/preupload/{_REV}", Handler.preupload),
        ("POST", rf"{_MODEL}/commit/{_REV}", Handler.commit),
        ("GET", rf"{_MODEL}/xet-(?P<kind>read|write)-token/{_REV}", Handler.xet_token),
        ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", Handler.lfs_batch),
        ("PUT", r"/_lfs/(?P<oid>\w{64})(?:/part/(?P<part>\d+))?", Handler.lfs_put),
        ("POST", r"/_lfs/(?P<oid>\w{64})/complete", Handler.lfs_complete),
        ("POST", r"/_lfs/(?P<oid>\w{64})/verify", Handler.lfs_verify),
        ("GET HEAD", r"/_cdn/(?P<sha>\w{64})", Handler.cdn),
        ("GET HEAD", rf"/{_ID}/(?:resolve|raw)/{_REV}/(?P<path>.+)", Handler.resolve),
    )
]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        running = Hub(Path(scratch), port=int(sys.argv[1]) if len(sys.argv) > 1 else 8800).start()
        print(f"HF_ENDPOINT={running.url} HF_TOKEN={TOKEN}", flush=True)
        threading.Event().wait()
