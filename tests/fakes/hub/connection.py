"""A connection to the loopback Hub: bodies, answers, and which function a request reaches."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fakes.hub.contents import BLOCK, Refused

if TYPE_CHECKING:
    from tests.fakes.hub.server import Hub

Route = tuple[list[str], re.Pattern[str], Callable[..., None]]


@dataclass
class Fault:
    """An injected fault: the next ``times`` matching requests get ``status``, or are cut after
    ``cut`` body bytes, or dropped unanswered after being obeyed.
    """

    pattern: re.Pattern[str]
    status: int
    times: int
    skip: int
    cut: int | None
    drop: bool
    garble: bool
    headers: dict[str, str]
    message: str


@dataclass(frozen=True)
class Request:
    """One request as it came in: ``sent`` are its body's bytes, ``answered`` the bytes of the
    answer's body.
    """

    method: str
    path: str
    token: str
    sent: int
    range: str


class Connection(BaseHTTPRequestHandler):
    """One connection: what all requests have in common, and injected faults."""

    protocol_version = "HTTP/1.1"
    hub: Hub
    routes: list[Route]
    unlocked: tuple[Callable[..., None], ...]

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def _blocks(self) -> Iterator[bytes]:
        """The request's body, piece by piece."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while n := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(n)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            block = self.rfile.read(min(BLOCK, left))
            if not block:
                raise ConnectionResetError
            left -= len(block)
            yield block

    def _body(self) -> bytes:
        return b"".join(self._blocks())

    def send(
        self,
        status: int = 200,
        value: Any = None,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> None:
        """Answer with JSON or raw bytes."""
        if self._dropped:
            self.close_connection = True
            raise ConnectionResetError
        data = raw if raw is not None else json.dumps({} if value is None else value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            "X-Request-Id": "fake",
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _dispatch(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        # stopped meanwhile: connections that were kept open end too
        if hub._server is not self.server:
            self.close_connection = True
            return
        self.query = parse_qs(url.query)
        if hub.latency:
            time.sleep(hub.latency)
        fault = hub._fault(f"{self.command} {url.path}")
        self._cut, self._dropped = (fault.cut if fault else None), bool(fault and fault.drop)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = hub.users.get(token)
        streamed = url.path.startswith("/_lfs/") and self.command == "PUT"
        self.data = b"" if streamed else self._body()
        hub.log.append(
            Request(
                self.command,
                self.path,
                token,
                int(self.headers.get("Content-Length") or 0),
                self.headers.get("Range", ""),
            )
        )
        try:
            if fault and fault.garble:
                self.send(
                    503, raw=b"<html>Bad gateway</html>", headers={"Content-Type": "text/html"}
                )
                return
            if fault and fault.cut is None and not fault.drop:
                for _ in self._blocks() if streamed else ():
                    pass
                raise Refused(fault.status, fault.message, headers=fault.headers)
            if token and not self.user and not url.path.startswith("/_"):
                raise Refused(401, "Invalid credentials in Authorization header")
            path = re.sub(
                r"^/(api/)?datasets/", lambda found: "/api/models/" if found[1] else "/", url.path
            )
            for methods, pattern, function in self.routes:
                match = pattern.fullmatch(path)
                if self.command in methods and match:
                    named = {
                        name: unquote(text) if text else text
                        for name, text in match.groupdict().items()
                    }
                    if path != url.path:
                        named["id"] = f"datasets/{named['id']}"
                    with contextlib.nullcontext() if function in self.unlocked else hub.lock:
                        function(self, **named)
                    return
            raise Refused(
                404,
                f"Sorry, we can't find the page you are looking for. ({self.command} {url.path})",
            )
        except Refused as refused:
            with contextlib.suppress(ConnectionError):
                self.send(
                    refused.status,
                    {"error": refused.message},
                    {
                        "X-Error-Message": refused.message,
                        **({"X-Error-Code": refused.code} if refused.code else {}),
                        **refused.headers,
                    },
                )
        except ConnectionError:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _dispatch
