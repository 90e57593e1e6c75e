"""The one way to run another process: an argument list, a log, a process group of its own, status
and files checked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from autoquant.core import errors
from autoquant.core.redact import TOKEN_VARIABLES
from autoquant.runtime.worker import WITHOUT

T = TypeVar("T")
Progress = Callable[[int, int], None]
# transformers imports hqq, and GPTQModel bitsandbytes, wherever they are installed, and with them
# torch's compiler, which is half of what starting a worker takes: only those that use them find
# them
HEAVY = ("hqq", "bitsandbytes")


class Children:
    """The processes of one piece of work, so that all of them can be ended when one fails or the
    user stops the run.
    """

    def __init__(self) -> None:
        self._alive: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def add(self, child: subprocess.Popen[str]) -> None:
        """Note a child; it is ended at once if the others have been."""
        with self._lock:
            self._alive.add(child)
            if self._stopped:  # it was started while the others were being ended
                end(child)

    def remove(self, child: subprocess.Popen[str]) -> None:
        """Forget a child that has ended."""
        with self._lock:
            self._alive.discard(child)

    def end_all(self) -> None:
        """End every child now alive, and every one that is added later."""
        with self._lock:
            self._stopped = True
            for child in self._alive:
                end(child)


def end(child: subprocess.Popen[str], patience: float = 5.0) -> None:
    """End a child and everything it started: SIGTERM to its process group, SIGKILL after
    ``patience`` seconds.
    """
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
            return


def _open(
    argv: Sequence[str], log: Path, env: Mapping[str, str] | None, stdin: int
) -> subprocess.Popen[str]:
    with open(log, "a", encoding="utf-8") as sink:
        # no child needs a token
        inherited = {
            name: value for name, value in os.environ.items() if name not in TOKEN_VARIABLES
        }
        # what compiles extensions looks for ninja on the path, and an environment that nobody has
        # activated is not on it
        if Path(argv[0]).is_absolute():
            inherited["PATH"] = os.pathsep.join(
                [str(Path(argv[0]).parent), *filter(None, [os.environ.get("PATH")])]
            )
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**inherited, **(env or {})},
            start_new_session=True,
        )


@contextlib.contextmanager
def _watched(
    child: subprocess.Popen[str],
    children: Children | None,
    kept: Callable[[], bool] = lambda: False,
) -> Iterator[subprocess.Popen[str]]:
    """A child that is ended, whatever happens, unless it is to be ``kept``."""
    try:
        if children is not None:
            children.add(child)
        yield child
    finally:
        if children is not None:
            children.remove(child)
        if not kept():
            end(child) if child.poll() is None else None
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a log, joined for an error message."""
    with open(log, encoding="utf-8", errors="replace") as file:
        return " | ".join(line.strip() for line in deque(file, 4 * lines) if line.strip())[-600:]


def _ended_badly(what: str, status: int, log: Path) -> errors.ProcessFailed:
    how = (
        f"was ended by signal {signal.Signals(-status).name}"
        if status < 0
        else f"exited with status {status}"
    )
    hint = (
        " (often the system's out-of-memory killer: close other programs or take a smaller model)"
        if status == -signal.SIGKILL
        else ""
    )
    failure = errors.ProcessFailed(f"{what} {how}{hint}. Log: {log}. Its end: {tail(log)}")
    failure.signal = max(0, -status)
    return failure


def run(
    argv: Sequence[str],
    *,
    log: Path,
    produces: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
    children: Children | None = None,
    on_line: Callable[[str], None] | None = None,
    name: str = "",
) -> None:
    """Run a command to its end.

    Its output goes to ``log`` (appended). ``produces`` are files that must exist and be non-empty
    afterwards: an exit status of 0 alone is not believed. Standard input is /dev/null. ``on_line``
    gets each line of its standard output. ``name`` is what errors call it.

    Raises :class:`~autoquant.core.errors.ProcessFailed` with the status and the log's last lines.
    """
    with _watched(_open(argv, log, env, subprocess.DEVNULL), children) as child:
        assert child.stdout is not None
        with open(log, "a", encoding="utf-8") as sink:
            for line in child.stdout:
                sink.write(line)
                sink.flush()
                if on_line is not None:
                    on_line(line)
        status = child.wait()
    if status != 0:
        raise _ended_badly(name or Path(argv[0]).name, status, log)
    for path in produces:
        if not path.is_file() or path.stat().st_size == 0:
            raise errors.ProcessFailed(
                f"{name or Path(argv[0]).name} reported success but did not write {path}. Log:"
                f" {log}. Its end: {tail(log)}"
            )


def finding(modules: Sequence[str]) -> dict[str, str]:
    """The variable that tells a worker which of HEAVY not to find: all that are not among the
    ``modules`` it uses.
    """
    return {
        WITHOUT: ",".join(
            name for name in HEAVY if name not in {module.partition(".")[0] for module in modules}
        )
    }


def _worker(
    log: Path, env: Mapping[str, str] | None, python: str, imports: Sequence[str] = ()
) -> subprocess.Popen[str]:
    return _open(
        [python or sys.executable, "-m", "autoquant.runtime.worker", str(os.getpid()), *imports],
        log,
        {**finding(()), **(env or {})},
        subprocess.PIPE,
    )


class Ahead:
    """A worker that is started while another still works, so that it has imported what it needs
    (``imports``) when it is called: ``call(…, ahead=it)``.

    Used as a context manager; one that was started and not called is ended. Not started, it changes
    nothing.
    """

    def __init__(
        self,
        imports: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        python: str = "",
    ) -> None:
        self._how = (log, env, python, imports)
        self._child: subprocess.Popen[str] | None = None
        self._begun = False

    def start(self) -> None:
        """Start it, once."""
        if not self._begun:
            self._begun, self._child = True, _worker(*self._how)

    def take(self) -> subprocess.Popen[str] | None:
        """The process, handed over; None if it has not been started."""
        child, self._child = self._child, None
        return child

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        child = self.take()
        if child is not None:
            with _watched(child, None):
                pass


class Pool:
    """Workers that are kept from one call to the next, so that they import their libraries once:
    ``call(…, pool=it)``. For calls that leave nothing behind but imports.

    Used as a context manager, at whose end they are ended. Calls may come from several threads;
    each worker serves one at a time, and is kept only if the thread that made the pool has started
    it: for Linux, a thread is the parent that a worker dies with.
    """

    def __init__(
        self, *, log: Path, env: Mapping[str, str] | None = None, python: str = ""
    ) -> None:
        self._how = (log, env, python)
        self._lock = threading.Lock()
        self._thread = threading.get_ident()
        self._kept: set[int] = set()  # process ids
        self.idle: list[subprocess.Popen[str]] = []

    def take(self) -> subprocess.Popen[str]:
        """A worker that is alive and idle, or a new one."""
        with self._lock:
            while self.idle:
                child = self.idle.pop()
                if child.poll() is None:
                    return child
                with _watched(child, None):
                    pass
        child = _worker(*self._how)
        if threading.get_ident() == self._thread:
            self._kept.add(child.pid)
        return child

    def give(self, child: subprocess.Popen[str]) -> None:
        """Take back a worker that has served a call."""
        if child.pid in self._kept:
            with self._lock:
                self.idle.append(child)
        else:
            with _watched(child, None):
                pass

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        while self.idle:
            with _watched(self.idle.pop(), None):
                pass


def call(
    target: str,
    /,
    *,
    log: Path,
    progress: Progress | None = None,
    on_part: Callable[[Any], None] | None = None,
    env: Mapping[str, str] | None = None,
    children: Children | None = None,
    python: str = "",
    ahead: Ahead | None = None,
    pool: Pool | None = None,
    **kwargs: Any,
) -> Any:
    """Call ``module:function`` with JSON-able keyword arguments in a process of its own and return
    its JSON-able result.

    Native code may abort there without taking the notebook's kernel along, memory is given back at
    the end, and the libraries that patch others on import touch nobody else. An
    :class:`~autoquant.core.errors.AutoQuantError` or :class:`OSError` raised there is raised here.
    ``on_part`` gets the pieces of the result that the function emits before its end. If this
    process dies, the child is killed (Linux). ``python`` is the interpreter of another environment
    to run it in, which must have this package on its path. ``ahead`` is a process that may have
    been started before; ``pool`` has processes that are kept for further calls, with a log,
    variables and an interpreter of its own.
    """
    outcome: dict[str, Any] = {}
    kept = False
    first = (ahead.take() if ahead is not None else None) or (
        pool.take() if pool is not None else _worker(log, env, python)
    )
    with _watched(first, children, lambda: kept) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: the status below tells
            child.stdin.write(json.dumps({"target": target, "kwargs": kwargs}) + "\n")
            child.stdin.close() if pool is None else child.stdin.flush()
        for line in child.stdout:
            event = json.loads(line)
            if "progress" in event and progress is not None:
                progress(*event["progress"])
            elif "part" in event and on_part is not None:
                on_part(event["part"])
            outcome.update(event)
            kept = pool is not None and "result" in outcome
            if kept:
                break
        status = 0 if kept else child.wait()
    if pool is not None and kept:
        pool.give(child)
    if status == 0 and "result" in outcome:
        return outcome["result"]
    if "error" in outcome:
        error = outcome["error"]
        if error["type"] == "OSError":
            if error["errno"] == errno.ENOSPC:
                raise errors.InputError(
                    f"no space left on the disk: {error['message']}. Free some space and run again;"
                    " finished steps are kept."
                )
            raise OSError(error["errno"], error["message"])
        if error["type"] == "OutOfMemory":
            memory = errors.OutOfMemory(
                f"{error['message']} while running {target}. Close other programs, or take a"
                f" smaller model. Log: {log}"
            )
            memory.where, memory.available = error["message"], int(error["available"])
            raise memory
        raise getattr(errors, error["type"])(error["message"])
    raise _ended_badly(target, status, log)


def side_by_side(jobs: Sequence[Callable[[Children], T]], at_once: int) -> list[T]:
    """Run jobs in threads, ``at_once`` at a time, and return their results in order.

    Each job passes the :class:`Children` it is given on to :func:`call` or :func:`run`. When one
    fails, or the user interrupts, all other processes are ended before the error goes on.
    """
    children = Children()
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        futures = [pool.submit(job, children) for job in jobs]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((f for f in futures if f.done() and f.exception() is not None), None)
            if failed is not None:
                failed.result()
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            children.end_all()
            raise
