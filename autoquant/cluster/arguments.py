"""The command `autoquant batch`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from autoquant.cluster.hf_jobs import commands as hf_jobs

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
    hf_jobs.add_place(parser)


def batch(arguments: argparse.Namespace) -> int:
    """Run it. 0: all is done; 1: something failed."""
    if hf_jobs.elsewhere(arguments):
        return hf_jobs.batch(arguments)
    from autoquant.cluster import run

    planned = run.plan(arguments.file, arguments.out)
    _print(planned)
    if arguments.dry_run:
        return 1 if any(one.wrong for one in planned.planned) else 0
    done = run.run(planned, say=lambda line: _print(line, sys.stderr))
    _print(f"\n{done}")
    return 1 if done.failed else 0


def _print(what: object, stream: Any = None) -> None:
    stream = stream or sys.stdout
    stream.write(f"{what}\n")
    stream.flush()
