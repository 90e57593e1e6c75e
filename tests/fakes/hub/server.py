"""The loopback Hub itself: running, steering, and what it holds."""

from __future__ import annotations

import hashlib
import re
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.fakes.hub.connection import Fault, Request
from tests.fakes.hub.contents import LFS_NAMES, File, Refused, Repo, git_sha
from tests.fakes.hub.jobs import Running
from tests.fakes.hub.routes import Handler

TOKEN = "hf_" + "TesterTesterTesterTesterTesterTest"


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
        self.running = Running(self.root / "jobs")
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
                git_sha(
                    f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize"
                    f" {len(content)}\n".encode()
                ),
                len(content),
                sha,
            )
        oid = git_sha(content)
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
