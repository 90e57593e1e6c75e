"""Starting jobs: who may, what is sent, and the notes by which they are found again."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoquant.cluster.board import OURS
from autoquant.cluster.hf_jobs import bootstrap, shipping
from autoquant.cluster.hf_jobs.hardware import Flavor
from autoquant.cluster.jobs import Batch, Job
from autoquant.core.errors import InputError
from autoquant.core.files import write_atomically
from autoquant.hub.client import (
    Client,
    connect,
    offline,
    status_of,
    transport_error,
    with_retries,
)
from autoquant.methods import METHODS
from autoquant.runtime.environments import PACKAGE

# labels: that a job is ours, which one, and which time that it was started
LABEL, KEY, ATTEMPT = "autoquant", "autoquant-key", "autoquant-attempt"
HUB = "https://huggingface.co"
ALIVE = ("RUNNING", "SCHEDULING")
OVER = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
# Images with a C++ compiler; for a GPU one whose torch and compiler are of one CUDA, which
# exllamav2 has prebuilt wheels for (backends/exllamav2). Their names: hub.docker.com.
CPU_IMAGE = "python:3.12-bookworm"
GPU_IMAGE = "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-devel"


@dataclass(frozen=True)
class Account:
    """The client, and whose token it has."""

    client: Client
    user: str


@dataclass(frozen=True)
class Note:
    """A job that was started: its id at the Hub, in whose name, of which :attr:`Job.key`, on what
    machine, with which timeout in seconds (0: not known here). ``attempt`` tells apart the times
    that the same job was started.
    """

    id: str
    user: str
    key: str
    flavor: str
    timeout: int = 0
    attempt: str = ""


def account() -> Account:
    """Whose jobs they will be. Raises InputError without a token that may write."""
    if offline():
        raise InputError("on: HF_HUB_OFFLINE is set, and Hugging Face Jobs need the network")
    client = connect()
    if client.token is None:
        raise InputError(
            "on: Hugging Face Jobs need a token with write access: make one at"
            f" {client.endpoint}/settings/tokens, and set HF_TOKEN or run `hf auth login`"
        )
    me = with_retries(lambda: client.api.whoami(), "asking the Hub whose token this is", client)
    access = (me.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise InputError(
            f"on: {client.who()} may only read; jobs need one with write access:"
            f" {client.endpoint}/settings/tokens"
        )
    return Account(client, str(me["name"]))


def specification(
    job: Job, model: str, flavor: Flavor, user: str, repo: str, wheel: shipping.Wheel, endpoint: str
) -> dict[str, Any]:
    """What a job is told; no secret is in it. ``model``: at the commit that was planned."""
    extra = METHODS[job.method].extra
    return {
        "job": {**job.to_json(), "model": model},
        "key": job.key,
        "attempt": secrets.token_hex(4),
        "user": user,
        "repo": repo,
        "endpoint": endpoint,
        "wheel": wheel.path,
        "sha256": wheel.sha256,
        "package": PACKAGE,
        "extra": extra,
        "prebuilt": shipping.prebuilt(extra, system_torch=bool(flavor.gpus)),
        "pins": shipping.pins(system_torch=bool(flavor.gpus)),
    }


def start(
    account: Account, job: Job, spec: Mapping[str, Any], flavor: Flavor, seconds: int, image: str
) -> Note:
    """Start a job. The token goes as a secret, and nowhere else. Raises InputError or HubFailed
    with what the account lacks.
    """
    client, token = account.client, account.client.token
    assert token is not None
    environment = {
        "AUTOQUANT_JOB": json.dumps(spec),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if client.endpoint != HUB:
        environment["HF_ENDPOINT"] = client.endpoint
    attempt = str(spec["attempt"])
    labels = {LABEL: "job", KEY: job.key, ATTEMPT: attempt, "name": job.name}

    def found() -> str | None:
        """Its id, if it was started and the answer was lost."""
        return next((one.id for one in alive(account) if one.attempt == attempt), None)

    def ask() -> str:
        with plainly(account, f"starting {job.name} on {flavor.name}"):
            answer = client.api.run_job(
                image=image or (GPU_IMAGE if flavor.gpus else CPU_IMAGE),
                command=["python3", "-c", Path(bootstrap.__file__).read_text(encoding="utf-8")],
                env=environment,
                secrets={"HF_TOKEN": token.value},
                flavor=flavor.name,
                timeout=seconds,
                labels=labels,
                namespace=account.user,
            )
        return str(answer.id)

    id = with_retries(ask, f"starting {job.name}", client, arrived=found)
    return Note(id, account.user, job.key, flavor.name, seconds, attempt)


@contextlib.contextmanager
def plainly(account: Account, doing: str) -> Iterator[None]:
    """Around a request about jobs: what the account lacks is said in words. Raises InputError."""
    try:
        yield
    except transport_error() as error:
        client, status = account.client, status_of(error)
        said = str(getattr(error, "server_message", "") or "").strip().splitlines()
        told = f" (the Hub says: {said[0]})" if said else ""
        if status == 402:
            raise InputError(
                f"{doing}: {account.user} has no credit for Hugging Face Jobs{told}. Add some at"
                f" {client.endpoint}/settings/billing, and run the same again"
            ) from None
        if status == 403:
            raise InputError(
                f"{doing}: {client.who()} may not do that{told}. Of a fine-grained token, allow it"
                f" to start and manage jobs of {account.user} at {client.endpoint}/settings/tokens;"
                " else Hugging Face Jobs are not open to this account"
            ) from None
        raise


def alive(account: Account) -> list[Note]:
    """The user's jobs of ours that wait for a machine or run."""
    return [note for note, stage, _ in ours(account) if stage in ALIVE]


def ours(account: Account) -> list[tuple[Note, str, Any]]:
    """The user's jobs that were started from here or elsewhere by AutoQuant: each with its stage
    and all that the Hub says of it.
    """

    def ask() -> list[Any]:
        with plainly(account, "looking at your jobs"):
            return list(account.client.api.list_jobs(labels={LABEL: "job"}, namespace=account.user))

    found = with_retries(ask, "looking at your jobs", account.client)
    return [(_note(info, account.user), stage_of(info), info) for info in found]


def _note(info: Any, user: str) -> Note:
    labels, flavor = info.labels or {}, info.flavor
    on = str(getattr(flavor, "value", flavor))
    return Note(str(info.id), user, labels.get(KEY, ""), on, attempt=labels.get(ATTEMPT, ""))


def stage_of(info: Any) -> str:
    """A job's stage, as a text."""
    stage = info.status.stage
    return str(getattr(stage, "value", stage))


def look(account: Account, id: str, user: str = "") -> Any:
    """All that the Hub says of a job; None if there is none of that id."""

    def ask() -> Any:
        try:
            with plainly(account, f"looking at job {id}"):
                return account.client.api.inspect_job(job_id=id, namespace=user or account.user)
        except transport_error() as error:
            if status_of(error) in (400, 404):  # 400: it can be no id
                return None
            raise

    return with_retries(ask, f"looking at job {id}", account.client)


def cancel(account: Account, id: str) -> None:
    """End a job; what it has kept stays. Raises InputError if there is none, or it has ended."""
    info = look(account, id)
    if info is None:
        raise InputError(f"{account.user} has no job {id!r}; `autoquant jobs` lists them")
    if (stage := stage_of(info)) not in ALIVE:
        raise InputError(f"job {id} has ended already ({stage})")

    def ask() -> None:
        with plainly(account, f"cancelling job {id}"):
            account.client.api.cancel_job(job_id=id, namespace=account.user)

    with_retries(ask, f"cancelling job {id}", account.client)


def _notes_file(folder: Path) -> Path:
    return folder / OURS / "hf-jobs.json"


def noted(batch: Batch) -> dict[str, Note]:
    """The jobs of a batch that were started, by name, if they are still the same. Raises InputError
    if the notes are damaged.
    """
    path = _notes_file(batch.folder)
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        notes = {name: Note(**values) for name, values in data.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete it: jobs that run are found by their labels"
        ) from None
    keys = {job.name: job.key for job in batch.jobs}
    return {name: note for name, note in notes.items() if keys.get(name) == note.key}


def note(folder: Path, name: str, started: Note) -> None:
    """Write down that a job was started."""
    path = _notes_file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_atomically(path, json.dumps({**data, name: asdict(started)}, indent=1))
