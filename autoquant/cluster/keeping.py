"""What of a job outlives its machine, in private datasets of the user's: while it runs, its
finished steps, so that one that is stopped and started again goes on; at its end the journal and
the card, for whoever started it.

Finished steps lie in a dataset of the job's own, which is deleted when the job is done. What they
made is the run's own files: where the Hub has their contents already (of the upload that they are
sent to as well), they are not stored twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from autoquant.core import journal
from autoquant.core.errors import AutoQuantError, HubFailed
from autoquant.hub.client import Client, status_of, with_retries

log = logging.getLogger(__name__)
EVERY = 300.0  # seconds between two looks for steps that are to be kept
JOURNAL = f"{journal.OURS}/journal.json"
SCRATCH = f"{journal.OURS}/work/"
SMALL = 2_000_000  # bytes of a file that is handed over with the journal
TRIES = 6  # of a commit, while other jobs commit to the same repository


def unfinished(user: str, key: str) -> str:
    """The dataset that keeps a job's finished steps."""
    return f"{user}/autoquant-unfinished-{key}"


class Keeper:
    """Keeps the finished steps of a run in ``folder``, now and then and at the end of a ``with``
    block. What goes wrong is logged: the run itself goes on.
    """

    def __init__(self, client: Client, repo: str, folder: Path, every: float = EVERY) -> None:
        self.client, self.repo, self.folder, self.every = client, repo, folder, every
        self._kept: dict[str, tuple[int, int]] = {}
        self._over, self._made, self._text = threading.Event(), False, ""
        self._mutex = threading.Lock()
        self._thread = threading.Thread(target=self._work, daemon=True, name="autoquant-keep")

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.wait(self.every):
            try:
                self.keep()
            except (AutoQuantError, OSError) as error:
                log.warning("finished steps could not be kept: %s", error)

    def keep(self) -> list[str]:
        """Commit what has been finished since the last time; the names of its files."""
        with self._mutex:
            return self._keep()

    def _keep(self) -> list[str]:
        from huggingface_hub import CommitOperationAdd

        path = self.folder / JOURNAL
        if not path.is_file():
            return []
        text = path.read_text(encoding="utf-8")
        due: dict[str, tuple[int, int]] = {}
        for step in json.loads(text)["steps"].values():
            for output in step["outputs"]:
                name, state = output["name"], (output["bytes"], output["mtime_ns"])
                here = self.folder / name
                if name.startswith(SCRATCH) or self._kept.get(name) == state:
                    continue
                if here.is_file() and here.stat().st_size == output["bytes"]:
                    due[name] = state
        if text == self._text:
            return []
        operations = [CommitOperationAdd(name, self.folder / name) for name in due]
        operations.append(CommitOperationAdd(JOURNAL, text.encode()))
        self._make()
        commit(self.client, self.repo, operations, "finished steps")
        self._kept |= due
        self._text = text
        return list(due)

    def _make(self) -> None:
        if not self._made:
            api, repo = self.client.api, self.repo
            with_retries(
                lambda: api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True),
                f"creating the private dataset {repo}",
                self.client,
                repo,
            )
            self._made = True

    def forget(self) -> None:
        """Delete what was kept: the run is done."""
        api, repo = self.client.api, self.repo
        with_retries(
            lambda: api.delete_repo(repo, repo_type="dataset", missing_ok=True),
            f"deleting the dataset {repo}",
            self.client,
            repo,
        )


def commit(client: Client, repo: str, operations: list[Any], title: str) -> None:
    """Commit to a dataset, again where somebody else was first."""

    def once() -> None:
        client.api.create_commit(repo, operations, repo_type="dataset", commit_message=title)

    for attempt in range(TRIES):
        try:
            with_retries(once, f"committing to the dataset {repo}", client, repo)
        except HubFailed as failure:
            if attempt == TRIES - 1 or "somebody else" not in str(failure):
                raise
        else:
            return


def restore(client: Client, repo: str, folder: Path, *, journal_only: bool = False) -> list[str]:
    """Put what was kept into a folder that has none of it: the names of the files. Their times are
    those in the journal, by which a run knows them as its own.
    """
    names = _names(client, repo, "")
    if JOURNAL not in names:
        return []
    wanted = [JOURNAL] if journal_only else [name for name in names if name != ".gitattributes"]
    _download(client, repo, {name: folder / name for name in wanted})
    for step in journal.read(folder)[1].values():
        for output in step["outputs"]:
            path = folder / output["name"]
            if path.is_file():
                os.utime(path, ns=(output["mtime_ns"], output["mtime_ns"]))
    return wanted


def hand_over(client: Client, repo: str, key: str, folder: Path, outcome: str) -> None:
    """Commit what is left of a job to the jobs' dataset: the ``outcome``, and of a finished run its
    journal, card, picture and other small files that its upload has too.
    """
    from huggingface_hub import CommitOperationAdd

    steps = journal.read(folder)[1] if (folder / JOURNAL).is_file() else {}
    operations = [CommitOperationAdd(f"results/{key}/outcome.json", outcome.encode())]
    if "result" in steps:
        extras = [str(name) for name in steps["result"]["facts"].get("extras", ())]
        for name in (JOURNAL, *extras):
            path = folder / name
            if path.is_file() and path.stat().st_size <= SMALL:
                operations.append(CommitOperationAdd(f"results/{key}/{name}", path))
    commit(client, repo, operations, f"a job ended: {key}")


def collect(
    client: Client, repo: str, key: str, folder: Path, attempt: str = ""
) -> dict[str, Any] | None:
    """Put what a job has handed over into its folder; how it ended, or None if it has handed over
    nothing, or another ``attempt`` has. The files it made stay on the Hub: the journal says where.
    """
    prefix = f"results/{key}/"
    names = _names(client, repo, prefix.rstrip("/"))
    if f"{prefix}outcome.json" not in names:
        return None
    with _beside(folder) as scratch:
        _download(client, repo, {f"{prefix}outcome.json": scratch / "outcome.json"})
        ended = dict(json.loads((scratch / "outcome.json").read_text(encoding="utf-8")))
    if attempt and ended.get("attempt") != attempt:
        return None
    left = [name for name in names if name != f"{prefix}outcome.json"]
    if f"{prefix}{JOURNAL}" in left:
        _download(client, repo, {name: folder / name.removeprefix(prefix) for name in left})
        elsewhere(folder)
    return ended


def elsewhere(folder: Path) -> None:
    """Note in a journal that its files are where they were uploaded to, and not here."""
    path = folder / JOURNAL
    data = json.loads(path.read_text(encoding="utf-8"))
    steps = data["steps"]
    places = {
        stored["name"]: receipt["repo"]
        for step in steps.values()
        if (receipt := step["facts"].get("receipt"))
        for stored in receipt["files"]
    }
    repo = next(iter(places.values()), "")
    for artifact in steps["result"]["facts"]["artifacts"]:
        if not all((folder / stored["name"]).is_file() for stored in artifact["files"]):
            artifact["facts"]["deleted"] = places.get(artifact["files"][0]["name"], repo)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1), encoding="utf-8")
    os.replace(part, path)


def _names(client: Client, repo: str, folder: str) -> list[str]:
    """The files of a dataset, in a folder of it; none if there is no such thing."""
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    def ask() -> list[str]:
        try:
            found = client.api.list_repo_tree(
                repo, folder or None, recursive=True, repo_type="dataset"
            )
            return [one.path for one in found if hasattr(one, "blob_id")]
        except (RepositoryNotFoundError, EntryNotFoundError) as error:
            if status_of(error) == 401:
                raise
            return []

    return with_retries(ask, f"looking at the dataset {repo}", client, repo)


def _download(client: Client, repo: str, places: dict[str, Path]) -> None:
    """Download files of a dataset to where they belong, each in one step."""
    for name, place in places.items():
        with _beside(place) as scratch:
            got = with_retries(
                lambda name=name, scratch=scratch: client.api.hf_hub_download(  # type: ignore[misc]
                    repo, name, repo_type="dataset", local_dir=scratch
                ),
                f"downloading {PurePosixPath(name).name} from the dataset {repo}",
                client,
                repo,
            )
            os.replace(got, place)


@contextlib.contextmanager
def _beside(place: Path) -> Iterator[Path]:
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = place.parent / f".{place.name}.part"
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
