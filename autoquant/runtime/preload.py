"""One process that has imported the common heavy modules, and forks workers from itself.

Importing torch and transformers takes four to eight seconds; forking a process that has them takes
some milliseconds. While :func:`kept` is entered, :func:`start` gives workers of such a process:
each is a process of its own, with variables, working folder, log and process group of its own, and
imports and patches by itself what its library needs. Only workers run torch operations or touch
CUDA: the process itself imports, and has one thread.

It ends with the outermost ``kept``, or with this process, however that ends; a worker is killed
when the one that asked for it is gone. Linux only: elsewhere workers are started anew, as they are
outside of ``kept``.

Variables that libraries read while they are imported (KEYED) belong to the process: another value
of one means another process. All others are set in the worker.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from autoquant.core.files import key_of
from autoquant.runtime.worker import WITHOUT

SHARED = "AUTOQUANT_PRELOADED"
"""Variable that names a preloaded process of somebody else's, as ADDRESS|KEY: a test run lets the
commands it starts share its own."""
KEYED = (
    "CUDA_",
    "KMP_",
    "LD_",
    "MKL_",
    "NUMEXPR_",
    "OMP_",
    "OPENBLAS_",
    "PYTORCH_",
    "TORCH_",
    "TRANSFORMERS_",
    WITHOUT,
)
# what most workers import, and what that imports only when it is used
MODULES = ",".join(
    (
        "numpy",
        "torch",
        "safetensors.torch",
        "transformers.modeling_utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.modeling_llama",
        "transformers.generation.utils",
        "autoquant.backends.checks",
        "autoquant.evaluate.passes",
    )
)


def usable() -> bool:
    """Whether this system forks processes that have threads and libraries safely enough."""
    return sys.platform == "linux"


def identity(python: str, env: Mapping[str, str]) -> str:
    """What tells preloaded processes apart: interpreter and the variables KEYED."""
    read = {name: value for name, value in env.items() if name.startswith(KEYED)}
    return key_of(python or sys.executable, read)


class Forked:
    """A worker that a preloaded process has forked, with the part of Popen's interface that is
    needed: ``pid``, ``stdin``, ``stdout``, :meth:`poll`, :meth:`wait`.
    """

    def __init__(self, connection: socket.socket, stdin: IO[str], stdout: IO[str]) -> None:
        self.stdin, self.stdout = stdin, stdout
        self.returncode: int | None = None
        self._connection, self._lock, self._said = connection, threading.Lock(), b""
        self.pid = int(self._line(None))

    def _line(self, timeout: float | None) -> bytes:
        """The next line of the preloaded process about this worker; empty if none came in time."""
        until = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._said:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._connection], [], [], left)[0]:
                return b""
            said = self._connection.recv(64)
            if not said:  # it is gone itself, and its workers with it
                return b"%d" % -signal.SIGKILL
            self._said += said
        line, _, self._said = self._said.partition(b"\n")
        return line

    def poll(self) -> int | None:
        """Its exit status, as Popen gives it; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        with self._lock:
            if self.returncode is None:
                line = self._line(timeout)
                if not line:
                    raise subprocess.TimeoutExpired("worker", timeout or 0)
                self.returncode = int(line)
                self._connection.close()
            return self.returncode


class Preloaded:
    """A preloaded process of ours. It imports while its first worker is being asked for."""

    def __init__(self, python: str, env: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="autoquant-")
        self.address = str(Path(self._folder.name) / "socket")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.address)  # only this user reaches it: the folder is private
            listening.listen(64)
            self._process = subprocess.Popen(
                [python or sys.executable, "-m", "autoquant.runtime.forking"],
                env={
                    **env,
                    "AUTOQUANT_LISTENING": str(listening.fileno()),
                    "AUTOQUANT_MODULES": MODULES,
                    # torch then counts GPUs without asking CUDA, which no fork would survive
                    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
                },
                pass_fds=(listening.fileno(),),
                stdin=subprocess.PIPE,  # its end tells it that we are gone
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def end(self) -> None:
        """End it, and whatever workers it still has."""
        self._process.kill()  # its workers die with it
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._folder.cleanup()


class _Kept:
    """The preloaded processes of this process, by key, and how often they are asked to be kept."""

    def __init__(self) -> None:
        self.lock, self.depth = threading.Lock(), 0
        self.processes: dict[str, Preloaded] = {}

    def address(self, python: str, env: Mapping[str, str]) -> str:
        """Where to ask for a worker; empty where one must be started anew."""
        key = identity(python, env)
        shared, _, of = os.environ.get(SHARED, "").partition("|")
        if shared and of == key:
            return shared
        with self.lock:
            if not self.depth:
                return ""
            there = self.processes.get(key)
            if there is None or not there.alive():
                there = self.processes[key] = Preloaded(python, env)
            return there.address


_KEPT = _Kept()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep preloaded processes until the outermost of these ends; made when first needed."""
    if not usable():
        yield
        return
    with _KEPT.lock:
        _KEPT.depth += 1
    try:
        yield
    finally:
        with _KEPT.lock:
            _KEPT.depth -= 1
            ended = list(_KEPT.processes.values()) if not _KEPT.depth else []
            if ended:
                _KEPT.processes.clear()
        for process in ended:
            process.end()


def pin(processors: set[int]) -> None:
    """Let this thread, what it starts from now on, and workers of the processes that it keeps run
    on these processor cores (Linux).
    """
    os.sched_setaffinity(0, processors)
    with _KEPT.lock:
        for process in _KEPT.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, processors)


@contextlib.contextmanager
def shared(env: Mapping[str, str]) -> Iterator[None]:
    """Keep one for this process and for every command that it starts with our variables."""
    if not usable():
        yield
        return
    process = Preloaded("", env)
    os.environ[SHARED] = f"{process.address}|{identity('', env)}"
    try:
        yield
    finally:
        del os.environ[SHARED]
        process.end()


def begin(python: str, env: Mapping[str, str]) -> str:
    """Let the process for these variables begin to import, where one is kept; its address."""
    return _KEPT.address(python, env) if usable() else ""


def start(arguments: list[str], log: Path, env: Mapping[str, str], python: str) -> Forked | None:
    """A worker with these arguments, if a preloaded process is kept for its variables. Its standard
    error goes to ``log``.
    """
    address = begin(python, env)
    if not address:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:  # a shared one that has ended
        connection.close()
        return None
    request = json.dumps({"arguments": arguments, "env": dict(env), "cwd": os.getcwd()}).encode()
    read_end, stdin = os.pipe()
    stdout, write_end = os.pipe()
    try:
        with open(log, "ab") as sink:
            handed = array.array("i", [read_end, write_end, sink.fileno()])
            ancillary: list[tuple[int, int, Any]] = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handed)]
            connection.sendmsg([len(request).to_bytes(4, "big")], ancillary)
            connection.sendall(request)
    finally:
        os.close(read_end)
        os.close(write_end)
    return Forked(
        connection,
        open(stdin, "w", encoding="utf-8"),
        open(stdout, encoding="utf-8", errors="replace"),
    )
