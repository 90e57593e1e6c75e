"""The child's side of :func:`process.call`: one function call in a process of its own.

``python -m autoquant.runtime.worker PARENT``, or a process that a preloaded one has forked, reads
``{"target": "module:function", "kwargs": {…}}`` from standard input and writes events to standard
output, one JSON object a line: ``{"progress": [done, total]}``, ``{"part": …}`` (a piece of the
result, early), then ``{"result": …}`` or ``{"error": …}``. Whatever libraries print goes to
standard error, which the parent keeps as the log.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import inspect
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from autoquant.core import errors
from autoquant.runtime import trace

Report = Callable[[int, int], None]
Emit = Callable[[Any], None]
# modules that are not to be found, with commas between (see process.finding)
WITHOUT = "AUTOQUANT_WITHOUT"
ON_GPU = "out of memory on the GPU"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent is gone, so that a killed run leaves nobody
    writing into its folder.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before we could ask
        os._exit(1)


def out_of_memory(error: BaseException | None) -> tuple[str, int] | None:
    """In words where memory ran out, and how many bytes there are in all (0: not known), if that is
    what an error or its cause says; torch has several ways.
    """
    while error is not None:
        text = str(error)
        if type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text:
            import torch

            total = (
                torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
            )
            return f"{ON_GPU}{f' ({total / 1e9:.1f} GB)' if total else ''}", total
        # torch's allocator, and mmap
        if (
            isinstance(error, MemoryError)
            or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
            or "allocate memory" in text
        ):
            return "out of memory", 0
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def hide(env: Mapping[str, str]) -> None:
    """Let the modules that WITHOUT names seem not to be installed."""
    for name in filter(None, env.get(WITHOUT, "").split(",")):
        sys.modules[name] = None  # type: ignore[assignment]


def main() -> int:
    """Serve one request; return the exit status (0, or 3 for an error that was reported as an
    event).
    """
    die_with_parent(int(sys.argv[1]))
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not break the protocol
    hide(os.environ)
    mutex = threading.Lock()

    def send(event: dict[str, Any]) -> None:
        with mutex:
            events.write(json.dumps(event) + "\n")
            events.flush()

    line = sys.stdin.readline()
    if not line:  # whoever started it has thought better of it
        return 0
    request = json.loads(line)
    outcome = serve(request["target"], request["kwargs"], send)
    send(outcome)
    return 3 if "error" in outcome else 0


def serve(
    target: str, kwargs: dict[str, Any], send: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Call a function; the last event about it. Whatever else it raises than what the parent can be
    told ends the process with a traceback in the log.
    """
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.1 or done >= total:
            last = now
            send({"progress": [done, total]})

    module, name = target.split(":")
    start = time.monotonic()
    function = getattr(importlib.import_module(module), name)
    trace.record(f"import {module}", start, time.monotonic())
    wanted = inspect.signature(function).parameters
    kwargs = {
        **kwargs,
        **{
            name: value
            for name, value in (("report", report), ("emit", lambda part: send({"part": part})))
            if name in wanted
        },
    }
    try:
        return {"result": function(**kwargs)}
    except errors.AutoQuantError as error:
        return {"error": {"type": type(error).__name__, "message": str(error)}}
    except (MemoryError, RuntimeError, OSError) as error:
        where = out_of_memory(error)
        if where is None and isinstance(error, OSError):
            # NumPy's tofile tells a full disk only as "N requested and M written", without an errno
            number = (
                errno.ENOSPC if error.errno is None and "written" in str(error) else error.errno
            )
            if number is not None:
                return {"error": {"type": "OSError", "errno": number, "message": str(error)}}
        if where is None:
            raise
        return {"error": {"type": "OutOfMemory", "message": where[0], "available": where[1]}}


if __name__ == "__main__":
    # os._exit: native libraries' destructors have crashed at interpreter exit after the work was
    # done
    status = main()
    sys.stderr.flush()
    os._exit(status)
