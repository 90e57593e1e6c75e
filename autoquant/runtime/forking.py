"""The preloaded process: imports what most workers need, and forks them (see runtime.preload).

``python -m autoquant.runtime.forking``, started by preload.Preloaded alone. Each connection to its
socket asks for one worker: four bytes of length with three file descriptors (standard input, output
and error), then JSON with arguments, variables and working folder. The answer is a line with the
worker's process id and, when it has ended, one with its exit status as Popen gives it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import sys
from typing import Any

from autoquant.runtime import worker


def preload(names: list[str]) -> None:
    """Import, and take what was imported out of garbage collection: its pages stay shared."""
    worker.hide(os.environ)
    for name in names:
        with contextlib.suppress(ImportError):  # a worker that needs it will say so
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request, and the file descriptors that came with it."""
    handed = array.array("i")
    size, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_LEN(3 * handed.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            handed.frombytes(data[: len(data) - len(data) % handed.itemsize])
    left, text = int.from_bytes(size, "big"), b""
    while len(text) < left:
        part = connection.recv(left - len(text))
        if not part:
            raise EOFError
        text += part
    return json.loads(text), list(handed)


def become_worker(request: dict[str, Any], descriptors: list[int], ready: int) -> None:
    """In the forked process: take on what a process of its own would have been started with."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.write(ready, b".")
    os.closerange(3, os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else 1 << 16)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stdout = sys.stderr
    before = os.environ.get("PYTHONPATH", "")
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]  # as python -m has it
    if os.environ.get("PYTHONPATH", "") != before:
        _take_on_path(before, os.environ.get("PYTHONPATH", ""))
    # it dies with the preloaded process, which kills it when whoever asked for it is gone
    sys.argv = [worker.__file__, str(os.getppid()), *request["arguments"]]
    random.seed()
    if cuda_was_touched():
        anew = [sys.executable, "-m", worker.__name__, *sys.argv[1:]]
        os.execve(sys.executable, anew, os.environ)


def cuda_was_touched() -> bool:
    """Whether a library has asked CUDA something while it was imported: then a forked process
    cannot use it, and must begin anew (a fresh interpreter in the same process).
    """
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda._is_in_bad_fork())


def _take_on_path(before: str, now: str) -> None:
    """Search another PYTHONPATH, as an interpreter that starts with it would."""
    for entry in filter(None, before.split(os.pathsep)):
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)
    sys.path[1:1] = [entry for entry in now.split(os.pathsep) if entry]
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ImportError):
        importlib.import_module("sitecustomize")


class Server:
    """Answers requests one after the other, and tells of ended workers. One thread."""

    def __init__(self, listening: socket.socket) -> None:
        self.listening = listening
        self.workers: dict[int, socket.socket] = {}  # by process id
        self.selector = selectors.DefaultSelector()
        self.selector.register(listening, selectors.EVENT_READ)
        self.selector.register(0, selectors.EVENT_READ)  # its end: our owner is gone
        self.woken, writing = socket.socketpair()
        for one in (self.woken, writing):
            one.setblocking(False)
        signal.set_wakeup_fd(writing.fileno())
        self._writing = writing
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector.register(self.woken, selectors.EVENT_READ)

    def serve(self) -> bool:
        """Until the owner is gone: False. True in a worker, which goes on by itself."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj == 0:
                    return False
                if key.fileobj is self.listening:
                    connection, _ = self.listening.accept()
                    if self._fork(connection):
                        return True
                elif key.fileobj is self.woken:
                    self.woken.recv(4096)
                else:
                    self._gone(key.fileobj)  # type: ignore[arg-type]
            self._reap()

    def _fork(self, connection: socket.socket) -> bool:
        try:
            request, descriptors = receive(connection)
        except (EOFError, OSError, ValueError):
            connection.close()
            return False
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            become_worker(request, descriptors, writing)
            return True
        os.close(writing)
        os.read(reading, 1)  # it has a process group of its own now, so that it can be ended by it
        os.close(reading)
        for descriptor in descriptors:
            os.close(descriptor)
        self.workers[pid] = connection
        self.selector.register(connection, selectors.EVENT_READ)
        with contextlib.suppress(OSError):
            connection.sendall(b"%d\n" % pid)
        return False

    def _gone(self, connection: socket.socket) -> None:
        """Whoever asked for a worker is gone: so is the worker, and all it has started."""
        self.selector.unregister(connection)
        for pid, of in self.workers.items():
            if of is connection:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Tell of the workers that have ended."""
        while self.workers:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except OSError as error:
                if error.errno == errno.ECHILD:
                    return
                raise
            if pid == 0:
                return
            connection = self.workers.pop(pid, None)
            if connection is not None:
                with contextlib.suppress(KeyError):
                    self.selector.unregister(connection)
                with contextlib.suppress(OSError):
                    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                connection.close()

    def end(self) -> None:
        """Kill what is left."""
        for pid in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def main() -> int:
    """Serve until the owner is gone; in a forked process, be a worker."""
    listening = socket.socket(fileno=int(os.environ.pop("AUTOQUANT_LISTENING")))
    preload(os.environ.pop("AUTOQUANT_MODULES").split(","))
    server = Server(listening)
    if server.serve():
        return worker.main()
    server.end()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
