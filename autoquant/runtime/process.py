"""The one way to run another process: an argument list, a log, a process group of its own, status
and files checked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from autoquant.core import errors
from autoquant.core.redact import TOKEN_VARIABLES
from autoquant.runtime import preload
from autoquant.runtime.worker import ON_GPU, WITHOUT

T = TypeVar("T")
Progress = Callable[[int, int], None]
Child: TypeAlias = "subprocess.Popen[str] | preload.Forked"
# what transformers and GPTQModel import wherever it is installed, without need: only workers that
# use one find it. hqq and bitsandbytes bring torch's compiler along, half of what starting a worker
# takes; torchao asks CUDA for the card while it is imported, after which nothing can be forked
HEAVY = ("hqq", "bitsandbytes", "torchao", "sklearn", "librosa")
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Failed|Interrupt)(: |$)")


class Children:
    """The processes of one piece of work, so that all of them can be ended when one fails or the
    user stops the run.
    """

    def __init__(self) -> None:
        self._alive: set[Child] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def add(self, child: Child) -> None:
        """Note a child; it is ended at once if the others have been."""
        with self._lock:
            self._alive.add(child)
            if self._stopped:  # it was started while the others were being ended
                end(child)

    def remove(self, child: Child) -> None:
        """Forget a child that has ended."""
        with self._lock:
            self._alive.discard(child)

    def end_all(self) -> None:
        """End every child now alive, and every one that is added later."""
        with self._lock:
            self._stopped = True
            for child in self._alive:
                end(child)


def end(child: Child, patience: float = 5.0) -> None:
    """End a child and everything it started: SIGTERM to its process group, SIGKILL after
    ``patience`` seconds.
    """
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
            return


def _environment(argv: Sequence[str], env: Mapping[str, str] | None) -> dict[str, str]:
    """A child's variables: ours without tokens, which no child needs, and those given."""
    inherited = {name: value for name, value in os.environ.items() if name not in TOKEN_VARIABLES}
    # what compiles extensions looks for ninja on the path, and an environment that nobody has
    # activated is not on it
    if Path(argv[0]).is_absolute():
        path = [str(Path(argv[0]).parent), *filter(None, [os.environ.get("PATH")])]
        inherited["PATH"] = os.pathsep.join(path)
    return {**inherited, **(env or {})}


def _open(
    argv: Sequence[str], log: Path, env: Mapping[str, str], stdin: int
) -> subprocess.Popen[str]:
    with open(log, "a", encoding="utf-8") as sink:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=dict(env),
            start_new_session=True,
        )


@contextlib.contextmanager
def _watched(child: Child, children: Children | None) -> Iterator[Child]:
    """A child that is ended, whatever happens."""
    try:
        if children is not None:
            children.add(child)
        yield child
    finally:
        if children is not None:
            children.remove(child)
        if child.poll() is None:
            end(child)
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a log, joined for an error message."""
    with open(log, encoding="utf-8", errors="replace") as file:
        return " | ".join(line.strip() for line in deque(file, 4 * lines) if line.strip())[-600:]


def _raised_last(log: Path) -> str:
    """The exception that a Python program ended with, as its traceback's last lines have it; empty
    if the log does not end so.
    """
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = [line.rstrip() for line in deque(file, 60)]
    starts = [i for i, line in enumerate(lines) if EXCEPTION.match(line)]
    traced = any(line.startswith("Traceback (most recent") or 'File "' in line for line in lines)
    if not starts or not traced:
        return ""
    return " ".join(line.strip() for line in lines[starts[-1] :] if line.strip())[:600]


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
    raised = _raised_last(log) if status == 1 else ""
    said = f"{what} failed: {raised}. The traceback is in {log}"
    if not raised:
        said = f"{what} {how}{hint}. Log: {log}. Its end: {tail(log)}"
    failure = errors.ProcessFailed(said)
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
    afterwards: an exit status of 0 alone is not trusted. Standard input is /dev/null. ``on_line``
    gets each line of its standard output. ``name`` is what errors call it.

    Raises :class:`~autoquant.core.errors.ProcessFailed` with the status and the log's last lines.
    """
    with _watched(_open(argv, log, _environment(argv, env), subprocess.DEVNULL), children) as child:
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


def worker_environment(python: str = "", env: Mapping[str, str] | None = None) -> dict[str, str]:
    """A worker's variables. None reaches the Hub, so what would differ for it is left out; HEAVY
    are not found, unless ``env`` says otherwise (:func:`finding`). OpenMP's threads sleep when they
    are idle: on a busy machine that saves a third of the processor time.
    """
    ours = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"), **finding(())}
    every = _environment([python or sys.executable], {**ours, **(env or {})})
    kept = {
        name: value
        for name, value in every.items()
        if not name.startswith(("HF_", "HUGGINGFACE_", "HUGGING_FACE_"))
    }
    return {**kept, "HF_HUB_OFFLINE": "1"}


def begin(env: Mapping[str, str] | None = None, python: str = "") -> None:
    """Let workers with these variables be prepared, while other work is done (see preload)."""
    preload.begin(python, worker_environment(python, env))


def _worker(log: Path, env: Mapping[str, str] | None, python: str, *, fresh: bool) -> Child:
    variables = worker_environment(python, env)
    forked = None if fresh else preload.start([], log, variables, python)
    if forked is not None:
        return forked
    argv = [python or sys.executable, "-m", "autoquant.runtime.worker", str(os.getpid())]
    return _open(argv, log, variables, subprocess.PIPE)


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
    fresh: bool = False,
    **kwargs: Any,
) -> Any:
    """Call ``module:function`` with JSON-able keyword arguments in a process of its own and return
    its JSON-able result.

    Native code may abort there without taking the notebook's kernel along, memory is given back at
    the end, and the libraries that patch others on import touch nobody else. An
    :class:`~autoquant.core.errors.AutoQuantError` or :class:`OSError` raised there is raised here.
    ``on_part`` gets the pieces of the result that the function emits before its end. If this
    process dies, the child is killed (Linux). ``python`` is the interpreter of another environment
    to run it in, which must have this package on its path. ``fresh``: not forked from a preloaded
    process, even where one is kept (see runtime.preload).
    """
    outcome: dict[str, Any] = {}
    with _watched(_worker(log, env, python, fresh=fresh), children) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: the status below tells
            child.stdin.write(json.dumps({"target": target, "kwargs": kwargs}) + "\n")
            child.stdin.close()
        for line in child.stdout:
            event = json.loads(line)
            if "progress" in event and progress is not None:
                progress(*event["progress"])
            elif "part" in event and on_part is not None:
                on_part(event["part"])
            outcome.update(event)
        status = child.wait()
    if status == 0 and "result" in outcome:
        return outcome["result"]
    if "error" in outcome:
        raise _raised(outcome["error"], target, log)
    raise _ended_badly(target, status, log)


def _raised(error: Mapping[str, Any], target: str, log: Path) -> Exception:
    """The error that a worker has told of, to be raised here."""
    message = str(error["message"])
    if error["type"] == "OSError":
        if error["errno"] == errno.ENOSPC:
            return errors.InputError(
                f"no space left on the disk: {message}. Free some space and run again; finished"
                " steps are kept."
            )
        return OSError(error["errno"], message)
    if error["type"] == "OutOfMemory":
        memory = errors.OutOfMemory(
            f"{message} while running {target}. Close other programs, or take a smaller model."
            f" Log: {log}"
        )
        memory.where, memory.available = message, int(error["available"])
        memory.gpu = message.startswith(ON_GPU)
        return memory
    kind: type[errors.AutoQuantError] = getattr(errors, error["type"])
    return kind(message)


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
