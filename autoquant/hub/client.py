"""The client: which token, what to try again, and what went wrong in words.

All talking to the Hub happens in this package, in the parent process: worker processes are offline
and have no token.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from autoquant.core.errors import AutoQuantError, HubFailed, InputError
from autoquant.core.progress import in_notebook
from autoquant.core.redact import RedactingFilter, redact, remember

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
log = logging.getLogger(__name__)
# of a call that fails in a way that may pass: 1 + 2 + … + 32 + 32 + 32 seconds, two minutes in all
TRIES = 9
LONGEST_WAIT = 330.0  # seconds: the Hub's rate limits count over five minutes
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may pass


# --- token ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """A token and where it was found. Its value is shown nowhere."""

    value: str = field(repr=False)
    origin: str


def find_token() -> Token | None:
    """The token to use: the Colab secret HF_TOKEN, else the environment variable HF_TOKEN, else
    what ``hf auth login`` stored.
    """
    secret = _colab_secret()
    if secret:
        remember(secret)
        return Token(secret, "the Colab secret HF_TOKEN")
    from huggingface_hub import get_token

    value = get_token()
    if not value:
        return None
    remember(value)
    return Token(
        value,
        (
            "the environment variable HF_TOKEN"
            if os.environ.get("HF_TOKEN", "").strip() == value
            else "the login stored by `hf auth login`"
        ),
    )


def _colab_secret() -> str:
    """Colab's secret HF_TOKEN; empty outside a Colab notebook's own process, or if there is none or
    the notebook may not read it.
    """
    # a command behind "!" has no page to ask
    if "COLAB_RELEASE_TAG" not in os.environ or not in_notebook():
        return ""
    return _ask_colab()


@functools.cache
def _ask_colab() -> str:
    """Ask once: a question that was refused would come back with every call."""
    try:
        from google.colab import userdata

        return str(userdata.get("HF_TOKEN") or "").strip()
    except Exception as error:  # noqa: BLE001
        # Colab raises its own kinds, and others where its page is silent: all mean no token
        log.info("no token from Colab's secrets (%s)", type(error).__name__)
        return ""


# --- client and errors ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Client:
    """huggingface_hub's API object with the token in use. ``endpoint`` is HF_ENDPOINT or
    https://huggingface.co.
    """

    api: HfApi
    token: Token | None
    endpoint: str

    @property
    def secret(self) -> str | bool:
        """What huggingface_hub's functions take as ``token``: the value, or False for none."""
        return self.token.value if self.token else False

    def who(self) -> str:
        """The token in words."""
        return f"the token from {self.token.origin}" if self.token else "no token"


def connect() -> Client:
    """A client with the token that is found. Sends nothing."""
    from huggingface_hub import HfApi, constants

    for handler in logging.getLogger("huggingface_hub").handlers:  # it has a handler of its own
        if not any(isinstance(one, RedactingFilter) for one in handler.filters):
            handler.addFilter(RedactingFilter())
    token = find_token()
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(constants.ENDPOINT)
    return Client(
        HfApi(endpoint=endpoint, token=token.value if token else False, library_name="autoquant"),
        token,
        endpoint,
    )


def transport_error() -> type[Exception]:
    """The base error of the HTTP library that huggingface_hub uses: httpx in its release 1, httpx2
    in release 2.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return next(
        kind
        for kind in HfHubHTTPError.__mro__
        if kind.__module__.split(".")[0].startswith("httpx") and kind.__name__ == "HTTPError"
    )


def status_of(error: BaseException) -> int:
    """The HTTP status behind an error, 0 if there is none."""
    response = getattr(error, "response", None)
    return int(getattr(response, "status_code", 0) or 0)


def offline() -> bool:
    """Whether the user has forbidden the network (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _wait_after(error: BaseException, attempt: int) -> float:
    """Seconds to wait before the next try: what the server asks for (Retry-After, or the ratelimit
    header's t), else 1, 2, 4 … 32.
    """
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", None) or {}
    asked = headers.get("retry-after", "")
    if asked.isdigit():
        return min(LONGEST_WAIT, float(asked))
    match = (
        re.search(r"\bt=(\d+)", headers.get("ratelimit", "")) if status_of(error) == 429 else None
    )
    return min(LONGEST_WAIT, float(match[1])) if match else min(32.0, 2.0**attempt)


def with_retries(
    call: Callable[[], T],
    doing: str,
    client: Client,
    repo: str = "",
    *,
    arrived: Callable[[], T | None] | None = None,
    tries: int = 0,
) -> T:
    """Call; after a failure that may pass (rate limit, server error, broken connection) wait as
    long as the server asks and try again.

    ``arrived`` looks, after a failed call that changes something, whether it took effect all the
    same, and returns its result if so: an answer can be lost after the work was done. Raises
    InputError or HubFailed with one line.
    """
    transport = transport_error()
    tries = tries or TRIES
    for attempt in range(tries):
        try:
            return call()
        except (transport, OSError, RuntimeError, ValueError) as caught:
            if isinstance(caught, RuntimeError) and type(caught) is not RuntimeError:
                # hf_xet and huggingface_hub raise plain RuntimeErrors; anything more special is a
                # bug, ours or a library's
                raise
            error = _cause(caught)
            passing = _may_pass(error, transport)
            if arrived is not None and (passing or status_of(error) == 412):
                with contextlib.suppress(transport, OSError):
                    there = arrived()
                    if there is not None:
                        return there
            if not passing or offline() or attempt == tries - 1:
                raise explain(error, doing, client, repo) from None
            wait = _wait_after(error, attempt)
            log.warning("%s: %s; trying again in %.0f s", doing, redact(_short(error)), wait)
            time.sleep(wait)
    raise AssertionError("the loop returns or raises")


def _cause(error: BaseException) -> BaseException:
    """What is behind an error that huggingface_hub wraps: of an upload's parts in RuntimeError, of
    a download's in LocalEntryNotFoundError.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    while type(error) in (RuntimeError, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _may_pass(error: BaseException, transport: type[Exception]) -> bool:
    status = status_of(error)
    if status:
        return status in PASSING
    if isinstance(error, (PermissionError, FileNotFoundError)) or "No space left" in str(error):
        return False
    # a proxy's HTML instead of JSON; RuntimeErrors are hf_xet's, which has tried a few times itself
    # by then
    return isinstance(
        error, (transport, ConnectionError, TimeoutError, RuntimeError, json.JSONDecodeError)
    ) or "Consistency check failed" in str(error)


def _short(error: BaseException) -> str:
    status = status_of(error)
    if status:
        reason = {
            429: "the Hub limits the rate of requests",
            401: "not authorized",
            403: "forbidden",
            404: "not found",
        }.get(status, "the Hub has an error")
        return f"{reason} (HTTP {status})"
    if isinstance(error, json.JSONDecodeError):
        return "the Hub's answer cannot be read"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}{': ' + lines[0][:160] if lines else ''}"


def explain(error: BaseException, doing: str, client: Client, repo: str = "") -> AutoQuantError:
    """What really happened, and what to do: the error to raise instead of a library's."""
    from huggingface_hub import errors

    page = f"{client.endpoint}/{repo}"
    said = str(getattr(error, "server_message", "") or "").strip().splitlines()
    status = status_of(error)
    reading = doing.startswith(("looking", "downloading"))
    told = f" (the Hub says: {said[0]})" if said else ""
    if (status == 401 and client.token) or (
        isinstance(error, PermissionError) and error.errno is None
    ):
        # a valid token gets 404 or 403; huggingface_hub makes RepositoryNotFoundError of most 401s,
        # hf_xet raises PermissionErrors without an errno
        return InputError(
            f"{doing}: the Hub does not accept {client.who()} (expired, revoked or mistyped){told}."
            f" Make a new one at {client.endpoint}/settings/tokens and run again; what is finished"
            " is kept"
        )
    if isinstance(error, errors.GatedRepoError):
        way = (
            f"ask for access at {page} with the account of that token"
            if client.token
            else (
                f"accept its terms at {page}, make a token with read access at"
                f" {client.endpoint}/settings/tokens, and set HF_TOKEN or run `hf auth login`"
            )
        )
        return InputError(
            f"{repo} is gated, and {client.who()} has no access to it{told}: {way}; then run again"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{repo} has no such revision; see {page}/tree/main for its branches")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return InputError(f"{doing}: {repo} has no such file ({_short(error)})")
    if isinstance(error, errors.RepositoryNotFoundError):
        hidden = (
            f"or {client.who()} does not let you see it"
            if client.token
            else "or it is private: set HF_TOKEN or run `hf auth login`"
        )
        return InputError(
            f"{doing}: there is no repository {repo} at {client.endpoint}, {hidden}. Check the"
            " spelling"
        )
    if status == 403:
        return InputError(
            f"{doing}: {client.who()} may not do that{told}. Make a token with"
            f" {'read' if reading else 'write'} access to {repo.split('/')[0]} at"
            f" {client.endpoint}/settings/tokens"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return InputError(f"{doing}: HF_HUB_OFFLINE is set, and that needs the network")
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(
        error
    ):
        return InputError(
            f"{doing}: no space left on the disk ({redact(str(error))}). Free some space, or set"
            " HF_HOME to a larger disk, and run again; finished files are kept"
        )
    if status == 412:
        return HubFailed(
            f"{doing}: somebody else has changed it meanwhile. Look at {page}, then run the same"
            " again; what has arrived is not sent again"
        )
    if status == 429:
        return HubFailed(
            f"{doing}: the Hub still limits the rate of requests. Run the same again later; what"
            " has arrived is not sent again"
        )
    if isinstance(error, ValueError) and not status and not isinstance(error, json.JSONDecodeError):
        return InputError(f"{doing}: {' '.join(str(error).split())[:300]}")
    detail = f" (it says: {said[0]})" if said and status else ""
    on = (
        "Run the same again"
        if doing.startswith("looking")
        else "Run the same again: it continues, and what has arrived is not sent again"
    )
    return HubFailed(f"{doing}: {_short(error)}{detail}. {on}")
