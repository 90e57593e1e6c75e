"""The command line, rendered from the methods' options."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from autoquant import __version__
from autoquant.errors import AutoQuantError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="autoquant", description="Quantize a language model, check and measure the result, write its model card.",
                                     epilog="Start with: autoquant quantize gguf demo --pre-tokenizer gpt-2")
    parser.add_argument("--version", action="version", version=f"autoquant {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more while working; full tracebacks of our own bugs")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    from autoquant.methods import METHODS
    from autoquant.options import add_arguments

    for name, text in (("quantize", "quantize a model with a method"), ("plan", "say what a run would make and need; writes nothing")):
        group = commands.add_parser(name, help=text, description=text).add_subparsers(dest="method", required=True, metavar="METHOD")
        for method in METHODS.values():
            sub = group.add_parser(method.name, help=method.summary, description=f"{method.title}: {method.summary}.")
            sub.add_argument("model", metavar="MODEL", help="a folder with a Hugging Face checkpoint, or demo for the embedded model")
            sub.add_argument("--out", metavar="FOLDER", help=f"where to write (default: ./<model>-{method.folder_suffix})")
            add_arguments(sub, method.options)
    measure = commands.add_parser("evaluate", help="measure files against the unquantized model",
                                  description="Perplexity, KL divergence and top-token agreement of GGUF files or model folders, on the same tokens.")
    measure.add_argument("files", nargs="+", metavar="FILE", help="GGUF files (first shard) or model folders")
    measure.add_argument("--reference", required=True, metavar="MODEL", help="the unquantized model: a folder, or demo")
    measure.add_argument("--text", default="builtin", metavar="builtin|FILE", help="text to measure on (default: builtin)")
    measure.add_argument("--chunks", default="20", metavar="N", help="chunks of 512 tokens (default: 20)")
    commands.add_parser("methods", help="list the methods")
    commands.add_parser("types", help="list the GGUF types: bits per weight, imatrix, when to take which")
    prepare = commands.add_parser("setup", help="fetch what a method needs beforehand (for work without a network)")
    prepare.add_argument("method", choices=sorted(METHODS), metavar="METHOD")
    return parser


def _quantize(arguments: argparse.Namespace) -> None:
    from autoquant import options, run
    from autoquant.methods import METHODS

    method = METHODS[arguments.method]
    print(run.quantize(method, arguments.model, out=arguments.out, values=options.from_arguments(arguments, method.options)))


def _plan(arguments: argparse.Namespace) -> None:
    from autoquant import options, run
    from autoquant.methods import METHODS

    method = METHODS[arguments.method]
    for name, value in method.survey.items():  # without a choice, a plan shows everything there is
        if not hasattr(arguments, name):
            setattr(arguments, name, value)
    print(run.plan(method, arguments.model, out=arguments.out, values=options.from_arguments(arguments, method.options)))


def _evaluate(arguments: argparse.Namespace) -> None:
    from autoquant import options, report, run

    checked = options.build(options.MethodOptions, {"eval_chunks": arguments.chunks})
    rows = run.evaluate_files([Path(name) for name in arguments.files], arguments.reference, text=arguments.text, chunks=checked.eval_chunks)
    print(report.evaluations(rows))


def _methods(_: argparse.Namespace) -> None:
    from autoquant import report
    from autoquant.methods import METHODS

    print(report.table(("method", "what it is"), [(m.name, f"{m.title}: {m.summary}") for m in METHODS.values()], left=2))


def _types(_: argparse.Namespace) -> None:
    from autoquant import report
    from autoquant.llama.types import TYPES

    print(report.table(("type", "when", "imatrix", "bits/weight"), [(t.name, t.when, t.imatrix, f"{t.bits_per_weight:.2f}") for t in TYPES.values()], left=3))
    print("\nBits per weight at the shapes of Llama-3.1-8B; `autoquant plan gguf MODEL` gives the exact sizes for a model.")


def _setup(arguments: argparse.Namespace) -> None:
    from autoquant.methods import METHODS

    method = METHODS[arguments.method]
    method.environment(method.options())
    print(f"{method.name}: ready")


def main(argv: list[str] | None = None) -> int:
    """Run a command. Exit status: 0 done; 1 something failed; 2 cannot be done as asked; 130 interrupted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # end children and clean up, as on Ctrl-C
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if arguments.verbose or sys.stderr.isatty() else logging.WARNING, format="%(message)s", stream=sys.stderr)
    commands: dict[str, Any] = {"quantize": _quantize, "plan": _plan, "evaluate": _evaluate, "methods": _methods, "types": _types, "setup": _setup}
    try:
        commands[arguments.command](arguments)
    except AutoQuantError as error:
        print(f"autoquant: error: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if arguments.verbose:
            raise
        print(f"autoquant: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("autoquant: interrupted; finished files are kept, the same command continues", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
