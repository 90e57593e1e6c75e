"""How a job gets this very version of AutoQuant: a wheel of the package as it lies here, in a
private repository of the user's, under the hash of its contents.

The wheel is put together from the package's folder and the metadata of its installation, as a
build would: so it needs no build tools and no network, and is the same for a checkout (edited or
not) and for an installed release.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import autoquant
from autoquant.core.errors import InputError
from autoquant.core.version import __version__
from autoquant.hub.client import Client, with_retries
from autoquant.runtime import environments
from autoquant.runtime.environments import PACKAGE

REPOSITORY = "autoquant-jobs"  # of the user's datasets, private
BEGINNING = (1980, 1, 1, 0, 0, 0)  # the time of all files: contents alone make the hash
# libraries that job and client have in the same versions: those below methods' own (environments)
SAME = ("torch", "transformers", "tokenizers", "huggingface_hub", "safetensors")
# torch's own index of builds without CUDA, llama-cpp-python's of compiled ones
TORCH = "https://download.pytorch.org/whl/cpu"
LLAMA = ("llama-cpp-python", "https://abetlen.github.io/llama-cpp-python/whl/cpu")
CARD = """---
license: apache-2.0
---
What jobs of [AutoQuant](https://huggingface.co/docs/hub/jobs) need and leave: `wheels/` has the
package as it was on the machine that started them, `results/` the journal and card of each finished
job. Nothing here is needed once no job runs and the results have been fetched.
"""


@dataclass(frozen=True)
class Wheel:
    """The package as a file of its name, content and sha256."""

    name: str
    content: bytes
    sha256: str

    @property
    def path(self) -> str:
        """Where it lies in the repository."""
        return f"wheels/{self.sha256[:16]}/{self.name}"


def wheel(folder: Path | None = None) -> Wheel:
    """The package in ``folder`` (default: the one that runs) as a wheel. Raises InputError where
    its metadata are missing.
    """
    root = folder or Path(autoquant.__file__).parent
    name = f"{PACKAGE.replace('-', '_')}-{__version__}"
    held = io.BytesIO()
    records = []
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path, content in (*_package(root), *_metadata(f"{name}.dist-info")):
            archive.writestr(zipfile.ZipInfo(path, BEGINNING), content, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            records.append(f"{path},sha256={digest.decode()},{len(content)}")
        record = f"{name}.dist-info/RECORD"
        records.append(f"{record},,")
        text = "\n".join(records) + "\n"
        archive.writestr(zipfile.ZipInfo(record, BEGINNING), text, zipfile.ZIP_DEFLATED)
    content = held.getvalue()
    return Wheel(f"{name}-py3-none-any.whl", content, hashlib.sha256(content).hexdigest())


def _package(root: Path) -> Iterator[tuple[str, bytes]]:
    """The package's files by their names in the wheel."""
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
        if path.is_file() and not hidden and path.suffix != ".pyc":
            yield f"autoquant/{inside.as_posix()}", path.read_bytes()


def _metadata(folder: str) -> Iterator[tuple[str, bytes]]:
    """What describes it to an installer: the installation's own METADATA (in a checkout, from
    which it is found first, that is PKG-INFO), at this version.
    """
    try:
        installed = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"{PACKAGE} is not installed, so that it cannot be given to a job: pip install -e ."
        ) from None
    text = installed.read_text("METADATA") or installed.read_text("PKG-INFO") or ""
    lines = [
        f"Version: {__version__}" if line.startswith("Version: ") else line
        for line in text.splitlines()
    ]
    yield f"{folder}/METADATA", ("\n".join(lines) + "\n").encode()
    tag = "Wheel-Version: 1.0\nGenerator: autoquant\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    yield f"{folder}/WHEEL", tag.encode()
    yield f"{folder}/entry_points.txt", (installed.read_text("entry_points.txt") or "").encode()


def pins(system_torch: bool) -> list[str]:
    """What a job installs in the versions that are here; with ``system_torch`` the image's torch is
    kept, whose CUDA its compilers match.
    """
    kept = [one for one in SAME if not (system_torch and one == "torch")]
    return [f"{one}=={importlib.metadata.version(one).partition('+')[0]}" for one in kept]


def prebuilt(extra: str, system_torch: bool) -> list[list[str]]:
    """What is better taken from a library's own index, as [index, requirement]."""
    torch = next((one for one in pins(system_torch) if one.startswith("torch==")), "")
    llama = environments.extra(extra).get(LLAMA[0], "")
    return [
        *([[TORCH, torch]] if torch else []),
        *([[LLAMA[1], f"{LLAMA[0]}{llama}"]] if llama else []),
    ]


def repository(client: Client, user: str) -> str:
    """The user's private repository for jobs, made if there is none. Raises InputError if there is
    one that is public.
    """
    repo = f"{user}/{REPOSITORY}"
    api = client.api

    def make() -> None:
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)

    with_retries(make, f"creating the private dataset {repo}", client, repo)
    info = with_retries(
        lambda: api.dataset_info(repo), f"looking at the dataset {repo}", client, repo
    )
    if not info.private:
        raise InputError(
            f"the dataset {repo} is public, and jobs keep logs and cards there: make it private at"
            f" {client.endpoint}/datasets/{repo}/settings, and run again"
        )
    return repo


def send(client: Client, repo: str, made: Wheel) -> bool:
    """Upload a wheel, unless it is there; whether it was sent."""
    from huggingface_hub import CommitOperationAdd

    found = with_retries(
        lambda: client.api.get_paths_info(repo, [made.path], repo_type="dataset"),
        f"looking at the dataset {repo}",
        client,
        repo,
    )
    if found:
        return False
    operations = [
        CommitOperationAdd(made.path, made.content),
        CommitOperationAdd("README.md", CARD.encode()),
    ]
    with_retries(
        lambda: client.api.create_commit(
            repo, operations, repo_type="dataset", commit_message=f"AutoQuant {__version__}"
        ),
        f"uploading this package to the dataset {repo}",
        client,
        repo,
    )
    return True
