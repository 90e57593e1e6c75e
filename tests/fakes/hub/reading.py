"""What a client reads of the loopback Hub: what is there, and the bytes of it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from tests.fakes.hub.connection import Connection
from tests.fakes.hub.contents import BLOCK, Commit, File, Refused


class Reading(Connection):
    """Requests that change nothing."""

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
