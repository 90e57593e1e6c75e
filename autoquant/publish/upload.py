"""What an upload would do: whether it is allowed, before a run; and what is new, unchanged or
foreign in a repository, after it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant.core import licenses
from autoquant.core.errors import InputError
from autoquant.core.files import sha256_of
from autoquant.core.options import UploadOptions
from autoquant.core.records import Artifact, RunRecord, Source
from autoquant.hub.client import Client, status_of, with_retries
from autoquant.hub.look import RemoteFile, git_sha

SMALL = 10 << 20  # bytes; the Hub keeps files below this, and of a text type, in git itself

CARD = "README.md"


@dataclass(frozen=True)
class Item:
    """One file to be in a repository. ``state`` compares it with what is there: new, unchanged or
    changes.
    """

    name: str
    content: Path | bytes
    bytes: int
    sha256: str
    state: str = "new"

    @property
    def git_sha(self) -> str:
        """Git's name of its content, for files small enough to be kept in git; else empty, as it is
        of one that was sent and deleted.
        """
        gone = isinstance(self.content, Path) and not self.content.exists()
        if self.bytes >= SMALL or gone:
            return ""
        return git_sha(
            self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        )

    def same_as(self, remote: RemoteFile) -> bool:
        """Whether a file on the Hub has this content."""
        return remote.bytes == self.bytes and (
            remote.sha256 == self.sha256 if remote.sha256 else remote.blob == self.git_sha
        )


@dataclass(frozen=True)
class Target:
    """One branch of one repository, and what it is to hold. ``head`` is its newest commit, None if
    it does not exist yet.
    """

    repo: str
    branch: str
    exists: bool
    private: bool
    head: str | None
    items: tuple[Item, ...]

    @property
    def step(self) -> str:
        """Its name in the journal."""
        return step_of(self.repo, self.branch)

    @property
    def due(self) -> tuple[Item, ...]:
        """The files to commit."""
        return tuple(item for item in self.items if item.state != "unchanged")


@dataclass(frozen=True)
class UploadPlan:
    """Exactly what an upload would send, and what to know before it."""

    targets: tuple[Target, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        from autoquant.display import tables

        lines: list[str] = []
        for target in self.targets:
            where = where_in_words(target.repo, target.branch)
            how = "exists and is" if target.exists else "would be created,"
            lines += [
                f"{where} ({how} {'private' if target.private else 'public'})",
                tables.table(
                    ("file", "would be", "size", "sha256"),
                    [
                        (
                            i.name,
                            {"new": "added", "unchanged": "left as it is", "changes": "replaced"}[
                                i.state
                            ],
                            tables.size(i.bytes),
                            i.sha256[:12],
                        )
                        for i in target.items
                    ],
                    left=2,
                ),
                "",
            ]
        due = [item for target in self.targets for item in target.due]
        lines += [
            (
                f"to send: {len(due)} file{'s' if len(due) != 1 else ''},"
                f" {tables.size(sum(item.bytes for item in due))}"
            ),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def step_of(repo: str, branch: str) -> str:
    """The journal's name for an upload."""
    return f"upload {repo}@{branch}"


def where_in_words(repo: str, branch: str) -> str:
    """A repository, or a branch of one."""
    return repo if branch == "main" else f"branch {branch} of {repo}"


def private(options: UploadOptions, source: Source) -> bool:
    """Whether a new repository is made private."""
    return options.private == "yes" or (
        options.private == "auto" and (source.private or source.gated)
    )


# --- planning -------------------------------------------------------------------------------------


def place(options: UploadOptions, type: str) -> tuple[str, str]:
    """The repository and branch of one artifact type."""
    if options.layout == "repo-per-type":
        return f"{options.upload}-{type}", "main"
    return options.upload, type if options.layout == "branch-per-type" else "main"


def remote_name(options: UploadOptions, artifact: Artifact, name: str) -> str:
    """The name of an artifact's file in its repository: one that has a branch or a repository to
    itself does not lie in a folder of its own there.
    """
    own = artifact.name.rpartition("/")[0]
    return name if options.layout == "one-repo" or not own else name.removeprefix(f"{own}/")


def state_of(
    client: Client, repo: str, branch: str
) -> tuple[str, dict[str, RemoteFile], bool] | None:
    """A branch's newest commit, its files, and whether the repository is private; None if
    repository or branch is not there.
    """
    return with_retries(lambda: ask_state(client, repo, branch), f"looking at {repo}", client, repo)


def ask_state(
    client: Client, repo: str, branch: str
) -> tuple[str, dict[str, RemoteFile], bool] | None:
    """The same, asked once."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = client.api.model_info(repo, revision=branch, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        if status_of(error) == 401:  # the token is not accepted any more
            raise
        return None
    files = {
        s.rfilename: RemoteFile(
            s.rfilename, int(s.size or 0), str(s.lfs.sha256) if s.lfs else "", str(s.blob_id or "")
        )
        for s in info.siblings or ()
    }
    return str(info.sha), files, bool(info.private)


def _wanted(
    result: RunRecord, options: UploadOptions, endpoint: str, card_text: str | None
) -> dict[tuple[str, str], list[Item]]:
    """What each branch of each repository is to hold."""
    from autoquant.publish import card

    extras = [
        _item(result.folder / name) for name in result.extras if (result.folder / name).is_file()
    ]
    if not (result.folder / CARD).is_file():
        raise InputError(
            f"{result.folder} has no {CARD} any more; run the same quantize command again to"
            " write it"
        )
    on_disk = (
        card_text if card_text is not None else (result.folder / CARD).read_text(encoding="utf-8")
    )
    compared = [one for one in result.artifacts if one not in result.offered]
    where = {artifact.type: place(options, artifact.type) for artifact in result.offered}
    wanted: dict[tuple[str, str], list[Item]] = {}
    for artifact in result.offered:
        wanted.setdefault(where[artifact.type], []).extend(
            Item(remote_name(options, artifact, s.name), result.folder / s.name, s.bytes, s.sha256)
            for s in artifact.files
        )
    if options.layout == "one-repo":
        cards = {(options.upload, "main"): on_disk}
    else:
        placed = [
            dataclasses.replace(
                a,
                files=tuple(
                    dataclasses.replace(s, name=remote_name(options, a, s.name)) for s in a.files
                ),
            )
            for a in result.offered
        ]
        cards = {
            where[a.type]: card.text(dataclasses.replace(result, artifacts=(a, *compared)))
            for a in placed
        }
        if options.layout == "branch-per-type":
            links = {a.type: f"{endpoint}/{options.upload}/blob/{a.type}/" for a in result.offered}
            cards[options.upload, "main"] = card.text(
                dataclasses.replace(result, artifacts=(*placed, *compared)), links=links
            )
            wanted.setdefault((options.upload, "main"), [])
    for key, said in cards.items():
        # a branch is not what a bare name leads to, unless the card says how to fetch one
        text = (
            card.at(said, key[0])
            if options.layout != "branch-per-type"
            or "--revision" in said.partition(card.RUNNING)[2]
            else said
        )
        problems = licenses.card_problems(card.metadata(text))
        if problems:
            raise InputError(
                f"{CARD}: the Hub would not take this card: {'; '.join(problems)}. Edit its first"
                " lines and upload again"
            )
        data = text.encode()
        wanted[key] += [
            *(extra for extra in extras if extra.name != CARD),
            Item(CARD, data, len(data), hashlib.sha256(data).hexdigest()),
        ]
    return wanted


def _item(path: Path) -> Item:
    return Item(path.name, path, path.stat().st_size, sha256_of(path))


def journaled(steps: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The facts of earlier uploads, by step name, out of a journal's steps."""
    return {name: record["facts"] for name, record in steps.items() if name.startswith("upload ")}


def plan(
    client: Client,
    result: RunRecord,
    options: UploadOptions,
    earlier: Mapping[str, dict[str, Any]],
    card_text: str | None = None,
) -> UploadPlan:
    """Compare what is to be there with what is there.

    ``earlier`` are the facts of earlier uploads by step name, ``card_text`` a card to take instead
    of the folder's. Raises InputError if a file on the Hub differs that neither this folder has put
    there nor ``overwrite`` allows to replace, or if the card's metadata are wrong.
    """
    targets, foreign, unlisted = [], [], []
    for (repo, branch), items in _wanted(result, options, client.endpoint, card_text).items():
        state = state_of(client, repo, branch)
        there = state[1] if state else {}
        ours = earlier.get(step_of(repo, branch), {}).get("files", {})
        judged = []
        for item in items:
            remote = there.get(item.name)
            if remote is None:
                judged.append(item)
            elif item.same_as(remote):
                judged.append(dataclasses.replace(item, state="unchanged"))
            else:
                judged.append(dataclasses.replace(item, state="changes"))
                if (remote.sha256 or remote.blob) not in ours.get(item.name, ()):
                    foreign.append(f"{item.name} in {repo}")
        unlisted += [
            name
            for name in sorted(set(ours) & set(there))
            if name.endswith((".gguf", ".safetensors"))
            and name not in {item.name for item in items}
        ]
        exists = state is not None or state_of(client, repo, "main") is not None
        targets.append(
            Target(
                repo,
                branch,
                exists,
                state[2] if state else private(options, result.source),
                state[0] if state else None,
                tuple(judged),
            )
        )
    if foreign and not options.overwrite:
        raise InputError(
            f"upload: {len(foreign)} file{'s' if len(foreign) != 1 else ''} on the Hub would be"
            " replaced that were not uploaded from this folder:"
            f" {', '.join(foreign[:4])}{' …' if len(foreign) > 4 else ''}. Pass overwrite=True"
            " (--overwrite), or name another repository"
        )
    more = []
    if unlisted:
        more = [
            f"from earlier runs there are also {', '.join(unlisted)}, which stay, but this run's"
            " card does not list them: name all types in one run to have them in one card (what is"
            " finished is not made again)"
        ]
    return UploadPlan(tuple(targets), (*notes(options, result.source, result.base_model), *more))


def notes(options: UploadOptions, source: Source, base_model: str = "") -> list[str]:
    """What to know before uploading: licence, gate, base model, visibility."""
    out = licenses.advice(source.license, gated=source.gated, name=source.license_name)
    if not licenses.is_repo_id(options.base_model or base_model or source.id):
        out.append(
            f"{source.id} is a folder: the card will name no base model. If it is on the Hub, say"
            " which it is: base_model='owner/name' (--base-model)"
        )
    if private(options, source) and options.private == "auto":
        out.append(
            "a new repository will be private, because the source is"
            f" {'gated' if source.gated else 'private'}; private='no' (--private no) makes it"
            " public"
        )
    return out
