"""Uploading a run: only what passed its checks, nothing twice, nothing overwritten unasked, compared with the server afterwards.

Files are sent before the commit that makes them visible (huggingface_hub calls it preupload), so each can go up while the next is still
being quantized, and a repeated call sends only what has not arrived. The journal notes what is about to be committed and what was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoquant import hub, licenses
from autoquant.errors import CheckFailed, InputError
from autoquant.hub import Client, RemoteFile, patiently
from autoquant.options import UploadOptions
from autoquant.progress import hidden
from autoquant.results import Artifact, Receipt, Result, Stored
from autoquant.source import Source, sha256_of

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

    from autoquant.journal import RunFolder

log = logging.getLogger(__name__)
SMALL = 10 << 20  # bytes; the Hub keeps files below this, and of a text type, in git itself
CARD = "README.md"


@dataclass(frozen=True)
class Item:
    """One file to be in a repository. ``state`` compares it with what is there: new, unchanged or changes."""

    name: str
    content: Path | bytes
    bytes: int
    sha256: str
    state: str = "new"

    @property
    def git_sha(self) -> str:
        """Git's name of its content, for files small enough to be kept in git; else empty."""
        if self.bytes >= SMALL:
            return ""
        return hub.git_sha(self.content if isinstance(self.content, bytes) else self.content.read_bytes())

    def same_as(self, remote: RemoteFile) -> bool:
        """Whether a file on the Hub has this content."""
        return remote.bytes == self.bytes and (remote.sha256 == self.sha256 if remote.sha256 else remote.blob == self.git_sha)


@dataclass(frozen=True)
class Target:
    """One branch of one repository, and what it is to hold. ``head`` is its newest commit, None if it does not exist yet."""

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
        from autoquant import report

        lines: list[str] = []
        for target in self.targets:
            where = target.repo + (f", branch {target.branch}" if target.branch != "main" else "")
            how = "is there and is" if target.exists else "would be created,"
            lines += [f"{where} ({how} {'private' if target.private else 'public'})",
                      report.table(("file", "would be", "size", "sha256"), [(i.name, {"new": "added", "unchanged": "left as it is", "changes": "replaced"}[i.state],
                                                                           report.size(i.bytes), i.sha256[:12]) for i in target.items], left=2), ""]
        due = [item for target in self.targets for item in target.due]
        lines += [f"to send: {len(due)} file{'s' if len(due) != 1 else ''}, {report.size(sum(item.bytes for item in due))}", *(f"note: {note}" for note in self.notes)]
        return "\n".join(lines)


def step_of(repo: str, branch: str) -> str:
    """The journal's name for an upload."""
    return f"upload {repo}@{branch}"


# --- before a run -------------------------------------------------------------------------------------------------------


def check(options: UploadOptions, source: Source, known: Sequence[str]) -> Client:
    """Test, before anything is downloaded, that the upload will be allowed: a token, its rights, and an existing repository's contents.

    ``known`` are the names of the journal's steps: a repository that this run's folder has uploaded to may hold files. Logs what the licence asks.
    Raises InputError.
    """
    repo = options.upload
    if not licenses.is_repo_id(repo):
        raise InputError(f"upload: {repo!r} is no repository; write owner/name, e.g. yourname/{source.name}-GGUF")
    if hub.offline():
        raise InputError("upload: HF_HUB_OFFLINE is set, and uploading needs the network")
    client = hub.connect()
    if client.token is None:
        raise InputError(f"upload: no token. Make one with write access at {client.endpoint}/settings/tokens; then, in Colab, store it as the secret HF_TOKEN "
                         "(key symbol on the left) and let this notebook read it; elsewhere set the environment variable HF_TOKEN or run `hf auth login`")
    me = patiently(lambda: client.api.whoami(), "asking the Hub whose token this is", client)
    owner = repo.split("/")[0]
    mine = [me["name"], *(org["name"] for org in me.get("orgs", ()))]
    if owner not in mine:
        raise InputError(f"upload: {client.who()} belongs to {me['name']}, who cannot write to {owner!r}; allowed: {', '.join(mine)}")
    access = (me.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise InputError(f"upload: {client.who()} may only read. Make one with write access at {client.endpoint}/settings/tokens")
    if access.get("role") == "fineGrained" and not _may_write(access.get("fineGrained") or {}, owner, repo):
        raise InputError(f"upload: {client.who()} is fine-grained and has no write access to {owner}. Give it \"Write access to contents of all repos\" of {owner} "
                         f"at {client.endpoint}/settings/tokens")
    for note in notes(options, source):
        log.warning("upload: %s", note)
    state = _state(client, repo, "main")
    if state is not None:
        patiently(lambda: client.api.auth_check(repo, write=True), f"testing write access to {repo}", client, repo)
        files = [name for name in state[1] if name != ".gitattributes"]
        if files and not options.overwrite and not any(step.startswith(f"upload {repo}@") for step in known):
            some = ", ".join(files[:3]) + (" …" if len(files) > 3 else "")
            raise InputError(f"upload: {repo} is there already and holds files ({some}) that this folder has not put there. "
                             "Name another repository, or pass overwrite=True (--overwrite) to replace files of the same name")
    return client


def _may_write(fine: dict[str, Any], owner: str, repo: str) -> bool:
    """Whether a fine-grained token's scopes hold repo.write for the owner or the repository; true if the Hub does not tell."""
    scopes = fine.get("scoped")
    if not isinstance(scopes, list):
        return True
    return any("repo.write" in scope.get("permissions", ()) and str((scope.get("entity") or {}).get("name")) in (owner, repo) for scope in scopes)


def notes(options: UploadOptions, source: Source) -> list[str]:
    """What to know before uploading: licence, gate, base model, visibility."""
    out = licenses.advice(source.license, gated=source.gated, name=source.license_name)
    if not licenses.is_repo_id(options.base_model or source.id):
        out.append(f"{source.id} is a folder: the card will name no base model. If it is on the Hub, say which it is: base_model='owner/name' (--base-model)")
    if private(options, source) and options.private == "auto":
        out.append(f"the repository will be private, because the source is {'gated' if source.gated else 'private'}; private='no' (--private no) makes it public")
    return out


def private(options: UploadOptions, source: Source) -> bool:
    """Whether a new repository is made private."""
    return options.private == "yes" or (options.private == "auto" and (source.private or source.gated))


# --- planning -----------------------------------------------------------------------------------------------------------


def place(options: UploadOptions, type: str) -> tuple[str, str]:
    """The repository and branch of one artifact type."""
    if options.layout == "repo-per-type":
        return f"{options.upload}-{type}", "main"
    return options.upload, type if options.layout == "branch-per-type" else "main"


def _state(client: Client, repo: str, branch: str) -> tuple[str, dict[str, RemoteFile], bool] | None:
    """A branch's newest commit, its files, and whether the repository is private; None if repository or branch is not there."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    def ask() -> Any:
        try:
            return client.api.model_info(repo, revision=branch, files_metadata=True)
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if getattr(error.response, "status_code", 0) == 401:  # the token is not accepted any more
                raise
            return None

    info = patiently(ask, f"looking at {repo}", client, repo)
    if info is None:
        return None
    files = {s.rfilename: RemoteFile(s.rfilename, int(s.size or 0), str(s.lfs.sha256) if s.lfs else "", str(s.blob_id or "")) for s in info.siblings or ()}
    return str(info.sha), files, bool(info.private)


def _wanted(result: Result, options: UploadOptions, endpoint: str) -> dict[tuple[str, str], list[Item]]:
    """What each branch of each repository is to hold."""
    from autoquant import card

    extras = [_item(result.folder / name) for name in result.extras if (result.folder / name).is_file()]
    on_disk = (result.folder / CARD).read_text(encoding="utf-8")
    where = {artifact.type: place(options, artifact.type) for artifact in result.artifacts}
    wanted: dict[tuple[str, str], list[Item]] = {}
    for artifact in result.artifacts:
        wanted.setdefault(where[artifact.type], []).extend(Item(s.name, result.folder / s.name, s.bytes, s.sha256) for s in artifact.files)
    if options.layout == "one-repo":
        cards = {(options.upload, "main"): on_disk}
    else:
        cards = {where[a.type]: card.text(dataclasses.replace(result, artifacts=(a,))) for a in result.artifacts}
        if options.layout == "branch-per-type":
            links = {a.type: f"{endpoint}/{options.upload}/blob/{a.type}/" for a in result.artifacts}
            cards[options.upload, "main"] = card.text(result, links=links)
            wanted.setdefault((options.upload, "main"), [])
    for key, text in cards.items():
        problems = licenses.card_problems(card.metadata(text))
        if problems:
            raise InputError(f"{CARD}: the Hub would not take this card: {'; '.join(problems)}. Edit its first lines and upload again")
        data = text.encode()
        wanted[key] += [*(extra for extra in extras if extra.name != CARD), Item(CARD, data, len(data), hashlib.sha256(data).hexdigest())]
    return wanted


def _item(path: Path) -> Item:
    return Item(path.name, path, path.stat().st_size, sha256_of(path))


def journaled(steps: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The facts of earlier uploads, by step name, out of a journal's steps."""
    return {name: record["facts"] for name, record in steps.items() if name.startswith("upload ")}


def plan(client: Client, result: Result, options: UploadOptions, earlier: Mapping[str, dict[str, Any]]) -> UploadPlan:
    """Compare what is to be there with what is there.

    ``earlier`` are the facts of earlier uploads by step name. Raises InputError if a file on the Hub differs that neither this
    folder has put there nor ``overwrite`` allows to replace, or if the card's metadata are wrong.
    """
    targets, foreign = [], []
    for (repo, branch), items in _wanted(result, options, client.endpoint).items():
        state = _state(client, repo, branch)
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
        exists = state is not None or _state(client, repo, "main") is not None
        targets.append(Target(repo, branch, exists, state[2] if state else private(options, result.source), state[0] if state else None, tuple(judged)))
    if foreign and not options.overwrite:
        raise InputError(f"upload: {len(foreign)} file{'s' if len(foreign) != 1 else ''} on the Hub would be replaced that this folder has not put there: {', '.join(foreign[:4])}"
                         f"{' …' if len(foreign) > 4 else ''}. Pass overwrite=True (--overwrite), or name another repository")
    return UploadPlan(tuple(targets), tuple(notes(options, result.source)))


# --- sending ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """huggingface_hub's own bars, which count bytes: in the foreground only, and only where somebody looks."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or (shown and (hidden() is False or sys.stderr.isatty())):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


class Sender:
    """Sends files ahead of their commit. Each is sent once; a file whose bytes are not those that were checked is not committed."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._sent: dict[tuple[str, str, str], CommitOperationAdd] = {}
        self._lock = threading.Lock()

    def make(self, repo: str, branch: str, private: bool) -> None:
        """Create repository and branch where they are missing. A branch starts from the repository's first commit, so that it holds its own files only."""
        client = self.client
        patiently(lambda: client.api.create_repo(repo, private=private, exist_ok=True), f"creating {repo}", client, repo)
        if branch != "main":
            first = patiently(lambda: client.api.list_repo_commits(repo)[-1].commit_id, f"looking at {repo}", client, repo)
            patiently(lambda: client.api.create_branch(repo, branch=branch, revision=first, exist_ok=True), f"creating branch {branch} of {repo}", client, repo)

    def send(self, repo: str, branch: str, item: Item) -> CommitOperationAdd:
        """Send one file, unless this object has; return its commit operation. Raises CheckFailed if its bytes have changed since the checks."""
        from huggingface_hub import CommitOperationAdd

        key = (repo, branch, item.name)
        with self._lock:
            known = self._sent.get(key)
        if known is not None and known.upload_info.sha256.hex() == item.sha256:
            return known
        if isinstance(item.content, Path) and (not item.content.is_file() or item.content.stat().st_size != item.bytes):
            raise CheckFailed(f"{item.content} is gone or has another size than when it was checked; run the same quantize command again to make it anew")
        operation = CommitOperationAdd(item.name, item.content)
        doing = f"sending {item.name} to {repo}"
        patiently(lambda: self.client.api.preupload_lfs_files(repo, [operation], revision=branch, free_memory=False), doing, self.client, repo)
        if operation.upload_info.sha256.hex() != item.sha256:
            raise CheckFailed(f"{item.name} has changed since it was checked: sha256 {operation.upload_info.sha256.hex()}, it was {item.sha256}. Nothing was committed; "
                              "run the same quantize command again to make it anew")
        with self._lock:
            self._sent[key] = operation
        return operation


class Background:
    """A thread that sends files while others are being made. Its first error is raised by :meth:`join`; the files are then sent again, if they must."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="autoquant-upload")  # daemon: an interrupt need not wait for a large file
        self._thread.start()

    def _work(self) -> None:
        with _bars(shown=False):
            while (job := self._jobs.get()) is not None:
                if self._error is None:
                    try:
                        job()
                    except Exception as error:  # noqa: BLE001 (raised by join, in the thread that waits)
                        self._error = error

    def submit(self, job: Callable[[], None]) -> None:
        """Add a job; they run one after the other."""
        self._jobs.put(job)

    def join(self) -> None:
        """Wait for all jobs and raise the first error."""
        self._jobs.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """Do not start the jobs that are still waiting."""
        self._error = self._error or InterruptedError()
        self._jobs.put(None)


class Ahead:
    """What a run uses to send each artifact as soon as it has passed its checks."""

    def __init__(self, options: UploadOptions, client: Client, source: Source, run: RunFolder) -> None:
        self.options, self.source, self.run = options, source, run
        self.sender, self._background = Sender(client), Background()
        self._made: set[tuple[str, str]] = set()

    def artifact(self, artifact: Artifact) -> None:
        """Send the files of an artifact that has passed its checks."""
        repo, branch = place(self.options, artifact.type)

        def job() -> None:
            if (repo, branch) not in self._made:
                _intend(self.run, repo, branch)
                self.sender.make(repo, branch, private(self.options, self.source))
                self._made.add((repo, branch))
            for stored in artifact.files:
                self.sender.send(repo, branch, Item(stored.name, self.run.folder / stored.name, stored.bytes, stored.sha256))

        self._background.submit(job)

    def finish(self, result: Result) -> tuple[Receipt, ...]:
        """Wait for what is on its way, then commit and compare."""
        self._background.join()
        return upload(self.sender, result, self.options, self.run)

    def abandon(self) -> None:
        """Stop after the file that is on its way."""
        self._background.abandon()


def _intend(run: RunFolder, repo: str, branch: str) -> None:
    """Note that this folder uploads there, before anything is created: if it is killed, the next run knows."""
    if step_of(repo, branch) not in run.steps:
        run.record(step_of(repo, branch), "", [], {"files": {}, "commit": ""})


def upload(sender: Sender, result: Result, options: UploadOptions, run: RunFolder) -> tuple[Receipt, ...]:
    """Send what is missing, commit, compare the server's sizes and hashes with ours, and note the receipts in the journal."""
    client = sender.client
    planned = plan(client, result, options, journaled(run.steps))
    receipts = []
    with _bars(shown=True):
        for target in planned.targets:
            _intend(run, target.repo, target.branch)
            if target.head is None:
                sender.make(target.repo, target.branch, target.private)
            commit = _commit(sender, target, result, run) if target.due else str(target.head)
            receipts.append(_verified(client, target, commit))
            run.record(target.step, commit, [], {"files": _ids(run, target), "commit": commit, "receipt": receipts[-1].to_json()})
            log.info("uploaded and compared: %s", receipts[-1].url)
    return tuple(receipts)


def _ids(run: RunFolder, target: Target) -> dict[str, list[str]]:
    """Everything this folder has ever put there, by file: sha256 and git's hash. A later upload may replace it."""
    known: dict[str, list[str]] = dict(run.steps[target.step]["facts"]["files"])
    for item in target.items:
        known[item.name] = sorted({*known.get(item.name, ()), item.sha256, item.git_sha} - {""})
    return known


def _commit(sender: Sender, target: Target, result: Result, run: RunFolder) -> str:
    client, repo = sender.client, target.repo
    operations = [sender.send(repo, target.branch, item) for item in target.due]
    run.record(target.step, "", [], {"files": _ids(run, target), "commit": ""})  # if we are killed before the answer, these are ours

    def arrived() -> str | None:
        state = _state(client, repo, target.branch)
        there = state and all(item.name in state[1] and item.same_as(state[1][item.name]) for item in target.due)
        return state[0] if state and there else None

    types = ", ".join(a.type for a in result.artifacts if any(item.name == s.name for item in target.due for s in a.files)) or "card"

    def send() -> str:
        answer = client.api.create_commit(repo, [*operations], commit_message=f"{types}: {result.source.id} quantized by AutoQuant", revision=target.branch,
                                          parent_commit=target.head)
        return str(answer.oid)

    return patiently(send, f"committing to {repo}", client, repo, arrived=arrived)


def _verified(client: Client, target: Target, commit: str) -> Receipt:
    """Ask the server for sizes and hashes at the commit and compare them with ours. Raises CheckFailed."""
    names = [item.name for item in target.items]
    infos: list[Any] = patiently(lambda: client.api.get_paths_info(target.repo, names, revision=commit), f"comparing {target.repo}", client, target.repo)
    there = {info.path: RemoteFile(info.path, int(info.size), str(info.lfs.sha256) if info.lfs else "", str(info.blob_id)) for info in infos if hasattr(info, "blob_id")}
    wrong = [item.name for item in target.items if item.name not in there or not item.same_as(there[item.name])]
    if wrong:
        raise CheckFailed(f"{target.repo} at commit {commit} does not hold what was sent: {', '.join(wrong[:4])}: other contents or missing. "
                          "Run the same again to repair it")
    url = f"{client.endpoint}/{target.repo}" + (f"/tree/{target.branch}" if target.branch != "main" else "")
    return Receipt(target.repo, target.branch, url, commit, tuple(Stored(item.name, item.bytes, item.sha256) for item in target.items))
