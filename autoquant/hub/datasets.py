"""Text from a dataset on the Hub: the first rows of one split, read as a stream by the datasets
library, at one commit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from autoquant.core.cache import cache_folder
from autoquant.core.errors import AutoQuantError, HubFailed, InputError
from autoquant.core.files import write_atomically
from autoquant.core.progress import Bar
from autoquant.hub.client import Client, connect, offline, with_retries

log = logging.getLogger(__name__)


def documents(
    id: str, revision: str | None, *, subset: str, split: str, column: str, characters: int
) -> tuple[list[str], str]:
    """The texts of ``column`` in the first rows of ``split``, until they have ``characters``
    characters together, and the commit they are from.

    They are kept in the cache folder under ``calibration/``, so that a resumed run needs no
    network. Raises InputError (no such dataset, subset, split, column; no access) or HubFailed.
    """
    client = connect()
    doing = f"downloading the dataset {id}"
    folder = cache_folder() / "calibration"
    commit = _commit(client, id, revision, doing, folder)
    key = hashlib.sha256(
        json.dumps([id, commit, subset, split, column, characters]).encode()
    ).hexdigest()[:24]
    kept = folder / f"{key}.json"
    if kept.is_file():
        return list(json.loads(kept.read_text(encoding="utf-8"))), commit
    if offline():
        raise InputError(
            f"{doing}: HF_HUB_OFFLINE is set, and that dataset has not been fetched before"
        )
    texts = with_retries(
        lambda: _stream(client, id, commit, subset, split, column, characters),
        doing,
        client,
        f"datasets/{id}",
        tries=4,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, json.dumps(texts), shared=True)
    return texts, commit


def _commit(client: Client, id: str, revision: str | None, doing: str, folder: Path) -> str:
    """The commit a revision names; without a connection, the one it named when last looked."""
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    record = folder / f"{id.replace('/', '--')}@{(revision or 'main').replace('/', '--')}.commit"
    known = record.read_text(encoding="utf-8").strip() if record.is_file() else ""
    if known and offline():
        return known
    try:
        commit = str(
            with_retries(
                lambda: client.api.dataset_info(id, revision=revision),
                doing,
                client,
                f"datasets/{id}",
                tries=2 if known else 5,
            ).sha
        )
    except HubFailed as failure:
        if not known:
            raise
        log.warning("%s; using commit %s, which was fetched before", failure, known[:10])
        return known
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(record, commit, shared=True)
    return commit


def _stream(
    client: Client, id: str, commit: str, subset: str, split: str, column: str, characters: int
) -> list[str]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    datasets.utils.logging.set_verbosity_error()
    # of 20, five seconds apart: we try again ourselves, and say so
    datasets.config.STREAMING_READ_MAX_RETRIES = 3
    loader: Any = datasets.load_dataset
    out: list[str] = []
    total = 0
    try:
        rows = loader(
            id, subset or None, split=split, revision=commit, streaming=True, token=client.secret
        )
        names = rows.column_names
        if names is not None and column not in names:
            raise InputError(
                f"calibration_column: {id} has no column {column!r}; it has: {', '.join(names)}"
            )
        with Bar(f"read {id}") as progress:
            for row in rows:
                text = row.get(column)
                if text is not None and not isinstance(text, str):
                    raise InputError(
                        f"calibration_column: column {column!r} of {id} holds no text but"
                        f" {type(text).__name__}; it has: {', '.join(row)}"
                    )
                if column not in row:
                    raise InputError(
                        f"calibration_column: {id} has no column {column!r}; it has:"
                        f" {', '.join(row)}"
                    )
                if text:
                    out.append(text)
                    total += len(text)
                    progress(min(total, characters), characters)
                if total >= characters:
                    break
    except DatasetNotFoundError as error:
        raise InputError(f"calibration: {' '.join(str(error).split())[:300]}") from None
    except AutoQuantError:
        raise
    except (ValueError, FileNotFoundError) as error:
        said = " ".join(str(error).split())
        if "BuilderConfig" in said or "Config name" in said:
            raise InputError(f"calibration_subset: {said[:400]}") from None
        if "split" in said.lower():
            raise InputError(f"calibration_split: {said[:300]}") from None
        raise InputError(f"calibration: {id} cannot be read as a dataset ({said[:300]})") from None
    return out
