"""What a client changes on the loopback Hub: repositories, large files, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from pathlib import PurePath
from typing import Any

from tests.fakes.hub.connection import Connection
from tests.fakes.hub.contents import BLOCK, LFS_NAMES, File, Refused, Repo, git_sha, now


def _kind(wanted: dict[str, Any]) -> str:
    """What the name of a repository begins with here."""
    return "datasets/" if wanted.get("type") == "dataset" else ""


class Writing(Connection):
    """The account, and requests that change something."""

    def whoami(self) -> None:
        user = self._known()
        access = {
            "displayName": "test",
            "role": user["role"],
            "createdAt": now(),
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
        id = f"{_kind(wanted)}{owner}/{wanted['name']}"
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
        owner = wanted.get("organization") or self._known()["name"]
        id = f"{_kind(wanted)}{owner}/{wanted['name']}"
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

    # --- writing ----------------------------------------------------------------------------------

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
                self.hub.blob(git_sha(content)).write_bytes(content)
                files[value["path"]] = File(git_sha(content), len(content))
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
                    git_sha(
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
