"""Sending files, committing them and comparing the server's hashes with ours.

Files are sent before the commit that makes them visible (huggingface_hub calls it preupload), so
each can go up while the next is still being quantized, and a repeated call sends only what has not
arrived. The journal notes what is about to be committed and what was.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoquant.core.errors import CheckFailed
from autoquant.core.options import UploadOptions
from autoquant.core.progress import hidden
from autoquant.core.records import Receipt, RunRecord, Stored
from autoquant.hub.client import Client, with_retries
from autoquant.hub.look import RemoteFile
from autoquant.publish.upload import (
    Item,
    Target,
    ask_state,
    journaled,
    notes,
    plan,
    state_of,
    step_of,
)

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

    from autoquant.core.journal import RunFolder


log = logging.getLogger(__name__)


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """huggingface_hub's own bars, which count bytes: in the foreground only, and only where
    somebody looks.
    """
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled() or (shown and (hidden() is False or sys.stderr.isatty())):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


class Sender:
    """Sends files ahead of their commit. Each is sent once; a file whose bytes are not those that
    were checked is not committed.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._sent: dict[tuple[str, str, str], CommitOperationAdd] = {}
        self._sending: dict[tuple[str, str, str], threading.Lock] = {}
        self._lock = threading.Lock()

    def make(self, repo: str, branch: str, private: bool) -> None:
        """Create repository and branch where they are missing. A branch starts from the
        repository's first commit, so that it holds its own files only.
        """
        client = self.client
        with_retries(
            lambda: client.api.create_repo(repo, private=private, exist_ok=True),
            f"creating {repo}",
            client,
            repo,
        )
        if branch != "main":
            first = with_retries(
                lambda: client.api.list_repo_commits(repo)[-1].commit_id,
                f"looking at {repo}",
                client,
                repo,
            )
            with_retries(
                lambda: client.api.create_branch(
                    repo, branch=branch, revision=first, exist_ok=True
                ),
                f"creating branch {branch} of {repo}",
                client,
                repo,
            )

    def remember(self, steps: Mapping[str, dict[str, Any]]) -> None:
        """Take from a journal's steps which files have been sent and are no more here: they can be
        committed without being read.
        """
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.lfs import UploadInfo

        for step, record in dict(steps).items():
            if not step.startswith("sent "):
                continue
            name, facts = step.removeprefix("sent "), record["facts"]
            operation = CommitOperationAdd(name, b"")
            sha256 = bytes.fromhex(facts["sha256"])
            operation.upload_info = UploadInfo(sha256=sha256, size=facts["bytes"], sample=b"")
            operation._upload_mode, operation._is_uploaded = "lfs", True
            with self._lock:
                self._sent.setdefault((facts["repo"], facts["branch"], name), operation)

    def send(self, repo: str, branch: str, item: Item) -> CommitOperationAdd:
        """Send one file, unless this object has or is about to; return its commit operation. Raises
        CheckFailed if its bytes have changed since the checks.
        """
        key = (repo, branch, item.name)
        with self._lock:
            sending = self._sending.setdefault(key, threading.Lock())
        with sending:
            return self._send(repo, branch, item)

    def forget(self, repo: str, branch: str, item: Item) -> None:
        """Send a file anew if it is asked for again."""
        with self._lock:
            self._sent.pop((repo, branch, item.name), None)

    def _send(self, repo: str, branch: str, item: Item) -> CommitOperationAdd:
        from huggingface_hub import CommitOperationAdd

        key = (repo, branch, item.name)
        with self._lock:
            known = self._sent.get(key)
        if known is not None and known.upload_info.sha256.hex() == item.sha256:
            return known
        if isinstance(item.content, Path) and (
            not item.content.is_file() or item.content.stat().st_size != item.bytes
        ):
            raise CheckFailed(
                f"{item.content} is gone or has another size than when it was checked; run the same"
                " quantize command again to make it again"
            )
        operation = CommitOperationAdd(item.name, item.content)
        doing = f"sending {item.name} to {repo}"
        with_retries(
            lambda: self.client.api.preupload_lfs_files(
                repo, [operation], revision=branch, free_memory=False
            ),
            doing,
            self.client,
            repo,
        )
        if operation.upload_info.sha256.hex() != item.sha256:
            raise CheckFailed(
                f"{item.name} has changed since it was checked: sha256"
                f" {operation.upload_info.sha256.hex()}, it was {item.sha256}. Nothing was"
                " committed; run the same quantize command again to make it again"
            )
        with self._lock:
            self._sent[key] = operation
        return operation


def refuse_lost(sender: Sender, target: Target, result: RunRecord, run: RunFolder) -> None:
    """Refuse to commit shards that were sent and deleted here, and that the Hub has not kept: it
    does so for a limited time. The journal forgets them and their types, so that they are made
    again. Raises CheckFailed.
    """
    from huggingface_hub.lfs import post_lfs_batch_info

    client, repo = sender.client, target.repo
    gone = [one for one in target.due if isinstance(one.content, Path) and not one.content.exists()]
    if not gone:
        return
    token = client.secret if isinstance(client.secret, str) else None
    infos = [sender.send(repo, target.branch, one).upload_info for one in gone]
    answers, _, _ = with_retries(
        lambda: post_lfs_batch_info(
            infos, token, "model", repo, target.branch, endpoint=client.endpoint
        ),
        f"looking at what {repo} has",
        client,
        repo,
    )
    # what is to be uploaded is not there
    lost = {answer["oid"] for answer in answers if answer.get("actions")}
    names = [one.name for one in gone if one.sha256 in lost]
    if not names:
        return
    for name in names:
        run.forget(f"sent {name}")
    for artifact in result.artifacts:
        if {stored.name for stored in artifact.files} & set(names):
            run.forget(f"quantize {artifact.type}")
    raise CheckFailed(
        f"{repo} has lost {len(names)} of the files that were sent and deleted here ({names[0]} …):"
        " the Hub keeps what is not committed for a limited time. Run the same quantize command"
        " again: they are made and sent again"
    )


def intend(run: RunFolder, repo: str, branch: str) -> None:
    """Note that this folder uploads there, before anything is created: if it is killed, the next
    run knows.
    """
    if step_of(repo, branch) not in run.steps:
        run.record(step_of(repo, branch), "", [], {"files": {}, "commit": ""})


def upload(
    sender: Sender, result: RunRecord, options: UploadOptions, run: RunFolder
) -> tuple[Receipt, ...]:
    """Send what is missing, commit, compare the server's sizes and hashes with ours, and note the
    receipts in the journal.
    """
    client = sender.client
    sender.remember(run.steps)
    planned = plan(client, result, options, journaled(run.steps))
    receipts = []
    # the others have been said before the run
    for note in planned.notes[len(notes(options, result.source, result.base_model)) :]:
        log.warning("upload: %s", note)
    with _bars(shown=True):
        for target in planned.targets:
            intend(run, target.repo, target.branch)
            if target.head is None:
                sender.make(target.repo, target.branch, target.private)
            commit = commit_files(sender, target, result, run) if target.due else str(target.head)
            receipts.append(_verified(client, target, commit))
            run.record(
                target.step,
                commit,
                [],
                {"files": _ids(run, target), "commit": commit, "receipt": receipts[-1].to_json()},
            )
            log.info("uploaded and compared: %s", receipts[-1].url)
    return tuple(receipts)


def _ids(run: RunFolder, target: Target) -> dict[str, list[str]]:
    """Everything this folder has ever put there, by file: sha256 and git's hash. A later upload may
    replace it.
    """
    known: dict[str, list[str]] = dict(run.steps[target.step]["facts"]["files"])
    for item in target.items:
        known[item.name] = sorted({*known.get(item.name, ()), item.sha256, item.git_sha} - {""})
    return known


def commit_files(sender: Sender, target: Target, result: RunRecord, run: RunFolder) -> str:
    """Commit a target's due files at once; the new commit."""
    client, repo = sender.client, target.repo
    # of a new one: a commit that is repeated must not be made twice
    parent = target.head or (state_of(client, repo, target.branch) or ("",))[0]
    refuse_lost(sender, target, result, run)
    operations = [sender.send(repo, target.branch, item) for item in target.due]
    # if we are killed before the answer, these are ours
    run.record(target.step, "", [], {"files": _ids(run, target), "commit": ""})

    def arrived() -> str | None:
        state = ask_state(client, repo, target.branch)
        there = state and all(
            item.name in state[1] and item.same_as(state[1][item.name]) for item in target.due
        )
        return state[0] if state and there else None

    types = (
        ", ".join(
            a.type
            for a in result.offered
            if any(item.content == run.folder / s.name for item in target.due for s in a.files)
        )
        or "card"
    )

    def send() -> str:
        answer = client.api.create_commit(
            repo,
            [*operations],
            commit_message=f"{types}: {result.source.id} quantized by AutoQuant",
            revision=target.branch,
            parent_commit=parent or None,
        )
        return str(answer.oid)

    return with_retries(send, f"committing to {repo}", client, repo, arrived=arrived)


def _verified(client: Client, target: Target, commit: str) -> Receipt:
    """Ask the server for sizes and hashes at the commit and compare them with ours. Raises
    CheckFailed.
    """
    names = [item.name for item in target.items]
    infos: list[Any] = with_retries(
        lambda: client.api.get_paths_info(target.repo, names, revision=commit),
        f"comparing {target.repo}",
        client,
        target.repo,
    )
    there = {
        info.path: RemoteFile(
            info.path, int(info.size), str(info.lfs.sha256) if info.lfs else "", str(info.blob_id)
        )
        for info in infos
        if hasattr(info, "blob_id")
    }
    wrong = [
        item.name
        for item in target.items
        if item.name not in there or not item.same_as(there[item.name])
    ]
    if wrong:
        raise CheckFailed(
            f"{target.repo} at commit {commit} does not hold what was sent: {', '.join(wrong[:4])}:"
            " other contents or missing. Run the same again to repair it"
        )
    url = f"{client.endpoint}/{target.repo}" + (
        f"/tree/{target.branch}" if target.branch != "main" else ""
    )
    return Receipt(
        target.repo,
        target.branch,
        url,
        commit,
        tuple(Stored(item.name, item.bytes, item.sha256) for item in target.items),
    )
