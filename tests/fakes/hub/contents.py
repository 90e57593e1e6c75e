"""What the loopback Hub keeps: repositories, their commits, and the files of these."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import time
from dataclasses import dataclass

BLOCK = 1 << 18
LFS_NAMES = re.compile(r"\.(safetensors|bin|gguf|onnx|pt|pth|parquet|zip|png)$|^tokenizer\.json$")


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def git_sha(content: bytes) -> str:
    """git's object id of a content."""
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
        self.created = now()
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
        self.commits[sha] = Commit(sha, files, title, parent, now())
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
