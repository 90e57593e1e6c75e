"""Whether an upload will be allowed, tested before a run begins."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

from autoquant.core import licenses
from autoquant.core.errors import InputError
from autoquant.core.options import UploadOptions
from autoquant.core.records import Source
from autoquant.hub.client import Client, connect, offline, with_retries
from autoquant.publish.upload import notes, place, private, state_of, step_of, where_in_words

log = logging.getLogger(__name__)

# --- before a run ---------------------------------------------------------------------------------


def check(
    options: UploadOptions,
    source: Source,
    types: Sequence[str],
    known: Sequence[str],
    *,
    base_model: str = "",
    quiet: bool = False,
) -> Client:
    """Test, before anything is downloaded, that the upload will be allowed: a token, its rights,
    and existing repositories' contents.

    ``types`` are the artifact types to be. ``known`` are the names of the journal's steps: a
    repository that this run's folder has uploaded to may hold files. Logs what the licence asks,
    unless ``quiet``. Raises InputError.
    """
    repo = options.upload
    if not licenses.is_repo_id(repo):
        raise InputError(
            f"upload: {repo!r} is not a repository name; write owner/name, e.g."
            f" yourname/{source.name}-GGUF"
        )
    if offline():
        raise InputError("upload: HF_HUB_OFFLINE is set, and uploading needs the network")
    client = connect()
    if client.token is None:
        raise InputError(
            f"upload: no token. Make one with write access at {client.endpoint}/settings/tokens;"
            " then, in Colab, store it as the secret HF_TOKEN (key symbol on the left) and let"
            " this notebook read it; elsewhere set the environment variable HF_TOKEN or run `hf"
            " auth login`"
        )
    me = with_retries(lambda: client.api.whoami(), "asking the Hub whose token this is", client)
    owner = repo.split("/")[0]
    mine = [
        me["name"],
        *(org["name"] for org in me.get("orgs", ()) if org.get("roleInOrg") != "read"),
    ]
    if owner not in mine:
        raise InputError(
            f"upload: {client.who()} belongs to {me['name']}, who cannot write to {owner!r};"
            f" allowed: {', '.join(mine)}"
        )
    access = (me.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise InputError(
            f"upload: {client.who()} may only read. Make one with write access at"
            f" {client.endpoint}/settings/tokens"
        )
    places = sorted(
        {place(options, type) for type in types}
        | ({(repo, "main")} if options.layout == "branch-per-type" else set())
    )
    if access.get("role") == "fineGrained" and not all(
        _may_write(access.get("fineGrained") or {}, owner, one) for one, _ in places
    ):
        raise InputError(
            f"upload: {client.who()} is fine-grained and has no write access to {owner}. Give it"
            f' "Write access to contents of all repos" of {owner} at'
            f" {client.endpoint}/settings/tokens"
        )
    for one, branch in places:
        state = state_of(client, one, branch)
        if state is None:
            continue
        allowed = functools.partial(client.api.auth_check, one, write=True)
        with_retries(allowed, f"testing write access to {one}", client, one)
        files = [name for name in state[1] if name != ".gitattributes"]
        if files and not options.overwrite and step_of(one, branch) not in known:
            some = ", ".join(files[:3]) + (" …" if len(files) > 3 else "")
            raise InputError(
                f"upload: {where_in_words(one, branch)} already exists and holds files ({some})"
                " that were not uploaded from this folder. Name another repository, or pass"
                " overwrite=True (--overwrite) to replace files of the same name"
            )
        if options.private == "no" and state[2]:
            log.warning("upload: %s already exists and stays private", one)
        if private(options, source) and not state[2]:
            why = (
                "you ask for a private one"
                if options.private == "yes"
                else f"the source is {'gated' if source.gated else 'private'}"
            )
            raise InputError(
                f"upload: {one} already exists and is public, but {why}. Make it private at"
                f" {client.endpoint}/{one}/settings, name another, or pass private='no'"
                " (--private no)"
            )
    for note in notes(options, source, base_model) if not quiet else ():
        log.warning("upload: %s", note)
    return client


def _may_write(fine: dict[str, Any], owner: str, repo: str) -> bool:
    """Whether a fine-grained token's scopes hold repo.write for the owner or the repository; true
    if the Hub does not tell.
    """
    scopes = fine.get("scoped")
    if not isinstance(scopes, list):
        return True
    return any(
        "repo.write" in scope.get("permissions", ())
        and str((scope.get("entity") or {}).get("name")) in (owner, repo)
        for scope in scopes
    )
