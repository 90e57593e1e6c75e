"""One file of a repository on the Hub, downloaded or from the cache."""

from __future__ import annotations

import glob
from pathlib import Path

from autoquant.core.errors import InputError
from autoquant.hub.client import (
    Client,
    connect,
    offline,
    with_retries,
)

WORKERS = 4  # files at once through the library; what a kill interrupts there is fetched again


def one_file(repo: str, revision: str | None, name: str, option: str) -> Path:
    """One small file of a model repository, through huggingface_hub's cache. Raises InputError,
    that begins with ``option``, if there is none; HubFailed.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    client = connect()
    doing = f"downloading {name} of {repo}"

    def ask() -> Path | None:
        try:
            return Path(
                hf_hub_download(
                    repo, name, revision=revision, token=client.secret, endpoint=client.endpoint
                )
            )
        except EntryNotFoundError:
            return None

    answer = with_retries(ask, doing, client, repo)
    if answer is None:
        raise InputError(
            f"{option}: {repo}{'@' + revision if revision else ''} has no"
            f" {name}{' in the cache, and HF_HUB_OFFLINE is set' if offline() else ''}"
        )
    return answer


# --- fetching -------------------------------------------------------------------------------------


def download(client: Client, repo: str, commit: str, names: list[str]) -> Path:
    """Files at a commit through huggingface_hub's cache; those that are there already are not
    fetched again.
    """
    from huggingface_hub import snapshot_download

    from autoquant.core.progress import ByteBar

    patterns = [glob.escape(name) for name in names]
    return Path(
        with_retries(
            lambda: str(
                snapshot_download(
                    repo,
                    revision=commit,
                    allow_patterns=patterns,
                    token=client.secret,
                    endpoint=client.endpoint,
                    max_workers=WORKERS,
                    tqdm_class=ByteBar,
                )
            ),
            f"downloading {repo}",
            client,
            repo,
        )
    )


def not_cached(repo: str, revision: str | None, client: Client) -> InputError:
    """What to say of a file that is not in the cache, without a network."""
    return InputError(
        f"{client.endpoint} cannot be reached{' (HF_HUB_OFFLINE is set)' if offline() else ''}, and"
        f" {repo}{'@' + revision if revision else ''} is not in the cache. Connect to the network,"
        " or give a folder"
    )
