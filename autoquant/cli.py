"""The command line, rendered from the methods' options."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from autoquant.core.cache import cache_folder
from autoquant.core.errors import AutoQuantError
from autoquant.core.redact import RedactingFilter, redact
from autoquant.core.version import __version__
from autoquant.runtime import preload


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autoquant",
        description=(
            "Quantize a language model, check and measure the result, write its model card."
        ),
        epilog="Start with: autoquant quantize gguf demo",
    )
    parser.add_argument("--version", action="version", version=f"autoquant {__version__}")
    common = argparse.ArgumentParser(add_help=False)  # before the command and after it
    common.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="verbose output; full tracebacks for our own bugs",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="the same for every command")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    from autoquant.cluster.arguments import add_batch
    from autoquant.cluster.hf_jobs.commands import add_jobs, add_place
    from autoquant.core.options import UploadOptions
    from autoquant.core.rendering import add_arguments
    from autoquant.evaluate.arguments import add_evaluate
    from autoquant.methods import METHODS
    from autoquant.sizing.arguments import add_arguments_of_advise, add_sensitivity

    for name, text in (
        ("quantize", "quantize a model with a method"),
        ("plan", "show what a run would make and need; writes nothing"),
    ):
        group = commands.add_parser(name, help=text, description=text).add_subparsers(
            dest="method", required=True, metavar="METHOD"
        )
        for method in METHODS.values():
            sub = group.add_parser(
                method.name,
                help=method.summary,
                description=f"{method.title}: {method.summary}.",
                parents=[common],
            )
            sub.add_argument(
                "model",
                metavar="MODEL",
                help=(
                    "a model on the Hugging Face Hub (owner/name, owner/name@revision or its URL),"
                    " a folder with a checkpoint, or demo for the bundled demo model; for gguf also"
                    " a GGUF file (owner/name:Q8_0 on the Hub)"
                ),
            )
            sub.add_argument(
                "--out",
                metavar="FOLDER",
                help=(
                    f"where to write (default: ./<model>-{method.folder_suffix(method.Options())})"
                ),
            )
            add_arguments(sub, method.Options)
            if name == "quantize":
                add_place(sub)
    add_evaluate(commands, common)
    send = commands.add_parser(
        "upload",
        help="upload a finished run to the Hugging Face Hub",
        description=(
            "Upload the checked files of a finished run with card, plot and licence, and compare"
            " the server's sizes and hashes with ours. After an interruption, repeat it: only what"
            " is missing is sent. The token is taken from HF_TOKEN or the login of `hf auth login`."
        ),
        parents=[common],
    )
    send.add_argument("folder", metavar="FOLDER", help="the folder of a finished run")
    send.add_argument(
        "repo", metavar="REPO", help="the repository, owner/name; created if it does not exist"
    )
    send.add_argument(
        "--dry-run", action="store_true", help="send nothing; print exactly what would be sent"
    )
    add_arguments(send, UploadOptions, without=("upload",))
    answering = commands.add_parser(
        "answer",
        help="let the files of a finished run, and the unquantized model, answer a prompt",
        description=(
            "What the unquantized model and each file say to a prompt, token by token the"
            " likeliest, so that they can be compared."
        ),
        parents=[common],
    )
    answering.add_argument("folder", metavar="FOLDER", help="the folder of a finished run")
    answering.add_argument("prompt", metavar="PROMPT", help="put through the chat template, if any")
    answering.add_argument("--type", default="", help="one of the run's types (default: all)")
    answering.add_argument(
        "--tokens", type=int, default=64, metavar="N", help="at most so many each (default: 64)"
    )
    commands.add_parser(
        "methods", help="all methods in one table: bits, calibration, GPU, runtimes, size, quality"
    )
    commands.add_parser(
        "types", help="list the GGUF types: bits per weight, imatrix, when to take which"
    )
    add_arguments_of_advise(
        commands.add_parser(
            "advise",
            help="which method and type fits on a device, and how to start it",
            description="Weights, keys and values, buffers; from config and headers alone.",
            parents=[common],
        )
    )
    add_sensitivity(commands, common)
    add_batch(commands, common)
    add_jobs(commands, common)
    commands.add_parser("devices", help="list the devices that advise knows, with their memory")
    prepare = commands.add_parser(
        "setup",
        help="fetch what a method needs beforehand (for work without a network)",
        parents=[common],
    )
    prepare.add_argument("method", choices=sorted(METHODS), metavar="METHOD")
    return parser


def _quantize(arguments: argparse.Namespace) -> int:
    from autoquant import result
    from autoquant.cluster.hf_jobs import commands
    from autoquant.core import rendering
    from autoquant.methods import METHODS

    method = METHODS[arguments.method]
    if commands.elsewhere(arguments):
        return commands.quantize(arguments, rendering.given(arguments, method.Options))
    print(
        result.quantize(
            method,
            arguments.model,
            out=arguments.out,
            values=rendering.from_arguments(arguments, method.Options),
        )
    )
    return 0


def _plan(arguments: argparse.Namespace) -> None:
    from autoquant import result
    from autoquant.core import rendering
    from autoquant.methods import METHODS

    method = METHODS[arguments.method]
    # without a choice, a plan shows everything there is
    for name, value in method.plan_defaults(vars(arguments)).items():
        if not hasattr(arguments, name):
            setattr(arguments, name, value)
    print(
        result.plan(
            method,
            arguments.model,
            out=arguments.out,
            values=rendering.from_arguments(arguments, method.Options),
        )
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    from autoquant import pipeline as run
    from autoquant.core import options
    from autoquant.display import tables
    from autoquant.evaluate import paired

    checked = options.build(options.MethodOptions, {"eval_chunks": arguments.chunks})
    with tempfile.TemporaryDirectory() as scratch:
        rows = run.evaluate_files(
            [Path(name) for name in arguments.files],
            arguments.reference,
            text=arguments.text,
            chunks=checked.eval_chunks,
            keep=Path(scratch),
        )
        print(tables.evaluations(rows))
        files = [paired.Scored(name, row, Path(scratch)) for name, row in rows[1:]]
        if len(files) > 1:
            print(f"\n{paired.against_best(files)}")
    if arguments.by_kind and (kinds := tables.kinds_of(rows)):
        print(f"\n{kinds}")


def _upload(arguments: argparse.Namespace) -> None:
    from autoquant.core import options
    from autoquant.publish import finished as run

    given = {
        name: getattr(arguments, name)
        for name in options.UploadOptions.model_fields
        if hasattr(arguments, name)
    }
    done = run.upload_folder(
        arguments.folder, {**given, "upload": arguments.repo}, dry_run=arguments.dry_run
    )
    if arguments.dry_run:
        print(done)
        return
    for receipt in done:
        print(
            f"{receipt.url}\ncommit {receipt.commit}: {len(receipt.files)} files, sizes and hashes"
            " compared with the server's"
        )


def _methods(_: argparse.Namespace) -> None:
    from autoquant.display import tables
    from autoquant.methods import overview

    head, body = overview.table()
    print(tables.table(head, body, left=7))
    print(f"\n{overview.NOTE}\n`autoquant quantize METHOD --help` explains each option.")


def _types(_: argparse.Namespace) -> None:
    from autoquant.backends.llamacpp.types import TYPES
    from autoquant.display import tables

    print(
        tables.table(
            ("type", "when", "imatrix", "bits/weight"),
            [(t.name, t.when, t.imatrix, f"{t.bits_per_weight:.2f}") for t in TYPES.values()],
            left=3,
        )
    )
    print(
        "\nBits per weight at the shapes of Llama-3.1-8B; `autoquant plan gguf MODEL` gives the"
        " exact sizes for a model."
    )


def _answer(arguments: argparse.Namespace) -> None:
    from autoquant import result

    run = result.load(arguments.folder)
    print(run.answer(arguments.prompt, type=arguments.type, tokens=arguments.tokens))


def _advise(arguments: argparse.Namespace) -> None:
    from autoquant import result
    from autoquant.sizing.arguments import NAMES

    print(result.advise(**{name: getattr(arguments, name) for name in NAMES}))


def _sensitivity(arguments: argparse.Namespace) -> None:
    from autoquant import result
    from autoquant.methods.gguf.measured import OPTIONS

    given = {name: value for name, value in vars(arguments).items() if name in OPTIONS}
    found = result.sensitivity(arguments.model, out=arguments.out, values=given)
    print(f"{found}\n\n{found.frontier()}")


def _batch(arguments: argparse.Namespace) -> int:
    from autoquant.cluster.arguments import batch

    return batch(arguments)


def _jobs(arguments: argparse.Namespace) -> int:
    from autoquant.cluster.hf_jobs.commands import jobs

    return jobs(arguments)


def _devices(_: argparse.Namespace) -> None:
    from autoquant.display import tables
    from autoquant.sizing import devices

    print(tables.table(*devices.overview(), left=3))
    print()
    for kind, said, _source in devices.rules()[1]:
        print(f"{kind}: usable is {said}")


def _setup(arguments: argparse.Namespace) -> None:
    from autoquant.methods import METHODS

    method = METHODS[arguments.method]
    logs = cache_folder() / f"setup-{method.name}.log"
    logs.parent.mkdir(parents=True, exist_ok=True)
    print(method.prepare(logs) or f"{method.name}: ready")


def main(argv: list[str] | None = None) -> int:
    """Run a command. Exit status: 0 done; 1 something failed; 2 cannot be done as asked; 130
    interrupted.
    """
    # end children and clean up, as on Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    words = sys.argv[1:] if argv is None else argv
    if words[:1] and words[0] in ("login", "logout", "whoami"):
        print(
            f"autoquant: error: AutoQuant has no {words[0]!r} of its own; use huggingface_hub's: hf"
            f" auth {words[0]}",
            file=sys.stderr,
        )
        return 2
    arguments = _parser().parse_args(words)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose or sys.stderr.isatty() else logging.WARNING,
        format="%(message)s",
        stream=sys.stderr,
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(RedactingFilter())
    for noisy in ("httpx", "httpx2", "httpcore", "httpcore2"):  # they log every request
        logging.getLogger(noisy).setLevel(logging.WARNING)
    commands: dict[str, Any] = {
        "quantize": _quantize,
        "plan": _plan,
        "evaluate": _evaluate,
        "upload": _upload,
        "answer": _answer,
        "methods": _methods,
        "types": _types,
        "advise": _advise,
        "sensitivity": _sensitivity,
        "batch": _batch,
        "jobs": _jobs,
        "devices": _devices,
        "setup": _setup,
    }
    try:
        with preload.kept():
            return int(commands[arguments.command](arguments) or 0)
    except AutoQuantError as error:
        print(f"autoquant: error: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if arguments.verbose:
            raise
        print(f"autoquant: error: {redact(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "autoquant: interrupted; finished files are kept; repeat the same command to resume",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
