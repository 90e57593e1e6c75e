"""On the command line: `--on hf-jobs` of quantize and batch, and `autoquant jobs`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE, JOBS = "here", "hf-jobs"
OPTIONS = ("flavor", "timeout", "image", "yes")  # those that mean something there only


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add `--on` and what belongs to it, to a command that runs jobs."""
    group = parser.add_argument_group("on another machine (docs/scale.md)")
    group.add_argument(
        "--on",
        choices=(HERE, JOBS),
        default=HERE,
        metavar=f"{HERE}|{JOBS}",
        help="where to run: here (default), or each job as a Hugging Face Job, which is billed;"
        " shows first what it will cost at most",
    )
    group.add_argument(
        "--flavor",
        default="",
        metavar="NAME",
        help="the machine of a Hugging Face Job (`hf jobs hardware` lists them; default: the"
        " cheapest that has what the plan needs)",
    )
    group.add_argument(
        "--timeout",
        default="",
        metavar="TIME",
        help="when a Hugging Face Job is ended, e.g. 90m, 6h (default: twice the planned time)",
    )
    group.add_argument(
        "--image",
        default="",
        metavar="NAME",
        help="the Docker image of a Hugging Face Job: with Python 3.11 or newer, pip, a C++"
        " compiler, and for a GPU torch",
    )
    group.add_argument("--yes", action="store_true", help="start Hugging Face Jobs without asking")


def elsewhere(arguments: argparse.Namespace) -> bool:
    """Whether jobs are to run at Hugging Face. Raises InputError for options that would then mean
    something, and do not.
    """
    from autoquant.core.errors import InputError

    if arguments.on == JOBS:
        return True
    if given := [one for one in OPTIONS if getattr(arguments, one)]:
        raise InputError(
            f"{given[0]}: --{given[0]} has an effect only with --on {JOBS}; add that, or leave it"
            " out"
        )
    return False


def again(words: Sequence[str]) -> str:
    """The command that was typed, to be typed again: without its agreement and its timeout, which
    may have to be another one.
    """
    kept = [
        word
        for before, word in zip(("", *words), words, strict=False)
        if "--timeout" not in (before, word.partition("=")[0]) and word != "--yes"
    ]
    return shlex.join(["autoquant", *kept])


def batch(arguments: argparse.Namespace) -> int:
    """Run a batch file at Hugging Face. 0: all is done; 1: something failed."""
    from autoquant.cluster import jobs

    words = ["batch", arguments.file, "--on", JOBS]
    words += ["--out", arguments.out] if arguments.out else []
    words += ["--flavor", arguments.flavor] if arguments.flavor else []
    return _run(jobs.read(arguments.file, arguments.out), arguments, words)


def quantize(arguments: argparse.Namespace, values: Mapping[str, Any]) -> int:
    """One run at Hugging Face: a batch of one job, in a folder of its own."""
    from autoquant.cluster import jobs

    entry = {"model": arguments.model, "method": arguments.method, **values}
    read = jobs.read([entry], arguments.out)
    if not arguments.out:
        folder = Path.cwd() / f"{read.jobs[0].name}-job"
        read = dataclasses.replace(read, folder=folder)
    return _run(read, arguments, sys.argv[1:])


def _run(read: Any, arguments: argparse.Namespace, words: Sequence[str]) -> int:
    from autoquant.cluster import run
    from autoquant.cluster.hf_jobs import follow, offers
    from autoquant.runtime import preload

    settings = offers.Settings(arguments.flavor, arguments.timeout, arguments.image, again(words))
    with preload.kept():
        found = offers.offers(read, settings)
    _print(found)
    if getattr(arguments, "dry_run", False):
        return 1 if any(one.wrong for one in found.plan.planned) else 0
    offers.confirm(found, arguments.yes, input if sys.stdin.isatty() else None)

    def say(line: str) -> None:
        _print(line, sys.stderr)

    done = run.run(found.plan, say=say, runner=follow.runner(found, say))
    _print(f"\n{done}")
    return 1 if done.failed else 0


def add_jobs(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command `jobs`; ``common`` has the options of every command."""
    parser = commands.add_parser(
        "jobs",
        help="list, read and cancel the Hugging Face Jobs that were started with --on hf-jobs",
        description="List the Hugging Face Jobs that were started with --on hf-jobs.",
        parents=[common],
    )
    parts = parser.add_subparsers(dest="part", metavar="COMMAND")
    one = parts.add_parser(
        "logs", help="print what a job has printed, and what it prints until it ends"
    )
    one.add_argument("id", metavar="ID")
    one.add_argument("--now", action="store_true", help="only what it has printed until now")
    parts.add_parser("cancel", help="end a job; its finished steps are kept").add_argument(
        "id", metavar="ID"
    )


def jobs(arguments: argparse.Namespace) -> int:
    """List, read or cancel jobs."""
    from autoquant.cluster.hf_jobs import follow, submit

    who = submit.account()
    if arguments.part == "logs":
        follow.log_text(who, arguments.id, whole=not arguments.now, say=_print)
    elif arguments.part == "cancel":
        submit.cancel(who, arguments.id)
        _print(f"job {arguments.id} is cancelled; its finished steps are kept")
    else:
        _print(_listed(submit.ours(who), who.user))
    return 0


def _listed(found: Sequence[tuple[Any, str, Any]], user: str) -> str:
    from autoquant.display import tables

    if not found:
        return f"{user} has no jobs that were started with --on {JOBS}"
    body = [
        (
            note.id,
            (info.labels or {}).get("name", ""),
            stage.lower(),
            note.flavor,
            f"{info.created_at:%Y-%m-%d %H:%M}" if info.created_at else "",
            info.url,
        )
        for note, stage, info in found
    ]
    head = ("id", "job", "state", "machine", "started (UTC)", "page")
    return tables.table(head, body, left=len(head))


def _print(what: object, stream: Any = None) -> None:
    stream = stream or sys.stdout
    stream.write(f"{what}\n")
    stream.flush()
