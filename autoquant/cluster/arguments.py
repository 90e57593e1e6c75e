"""The command `autoquant batch`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from autoquant.cluster.hf_jobs import commands as hf_jobs
from autoquant.core.errors import InputError

HELP = "run many models and methods from one file (docs/scale.md)"


def add_batch(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command; ``common`` has the options of every command."""
    parser = commands.add_parser(
        "batch",
        help=HELP,
        description=(
            "Plan all jobs of a batch file, show the plans in one table, and run what can be run."
            " A failure does not stop the others. Run it again: what is done stays, the rest goes"
            " on."
        ),
        parents=[common],
    )
    parser.add_argument("file", metavar="FILE", help="a TOML file; docs/scale.md explains it")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where each job has its folder (default: out of the file, or <file>-output beside it)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="end after the plans; nothing is written"
    )
    parser.add_argument(
        "--ray",
        metavar="auto|ADDRESS",
        default="",
        help=(
            "run the jobs on a Ray cluster: auto is the one that this machine belongs to, else"
            " HOST:6379 of its head node, or ray://HOST:10001 from outside"
        ),
    )
    parser.add_argument(
        "--cancel",
        action="store_true",
        help="with --ray: end this file's jobs, which another client runs there",
    )
    hf_jobs.add_place(parser)


def batch(arguments: argparse.Namespace) -> int:
    """Run it. 0: all is done; 1: something failed or was stopped."""
    if hf_jobs.elsewhere(arguments):
        if arguments.ray or arguments.cancel:
            raise InputError(
                "ray: --ray and --cancel have no effect beside --on hf-jobs; leave them out"
                " (`autoquant jobs cancel ID` ends a Hugging Face Job)"
            )
        return hf_jobs.batch(arguments)
    from autoquant.cluster import jobs, local, run
    from autoquant.cluster.work import DONE

    if arguments.cancel:
        _cancel(jobs.read(arguments.file, arguments.out).folder, arguments.ray)
        return 0
    planned = run.plan(arguments.file, arguments.out, here=not arguments.ray)
    _print(planned)
    if arguments.dry_run:
        return 1 if any(one.wrong for one in planned.planned) else 0
    runner = run.on_cluster(arguments.ray, planned) if arguments.ray else local.run
    done = run.run(planned, say=lambda line: _print(line, sys.stderr), runner=runner)
    _print(f"\n{done}")
    return 0 if all(row.state == DONE for row in done.rows) else 1


def _cancel(folder: Path, address: str) -> None:
    if not address:
        raise InputError("cancel: only jobs on a cluster are cancelled; say which: --ray auto")
    from autoquant.cluster.on_ray.runner import Cluster

    Cluster(address, {}).cancel(folder)
    _print(f"cancelled: the jobs of {folder}. What is finished is kept")


def _print(what: object, stream: Any = None) -> None:
    stream = stream or sys.stdout
    stream.write(f"{what}\n")
    stream.flush()
