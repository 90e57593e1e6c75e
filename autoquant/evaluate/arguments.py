"""The arguments of `autoquant evaluate`."""

from __future__ import annotations

import argparse
from typing import Any


def add_evaluate(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command; ``common`` has the options of every command."""
    measure = commands.add_parser(
        "evaluate",
        help="measure files against the unquantized model",
        description="Perplexity, KL divergence and top-1 agreement of models, on the same tokens.",
        parents=[common],
    )
    measure.add_argument(
        "files", nargs="+", metavar="FILE", help="GGUF files (first shard) or model folders"
    )
    measure.add_argument(
        "--reference",
        required=True,
        metavar="MODEL",
        help="the unquantized model: on the Hub, a folder, a GGUF file, or demo",
    )
    measure.add_argument(
        "--text",
        default="builtin",
        metavar="builtin|FILE",
        help=(
            "text to measure on (default: builtin, of four kinds; or one of them: prose, languages,"
            " code, conversations)"
        ),
    )
    measure.add_argument(
        "--by-kind",
        action="store_true",
        help="also show each kind of text: prose, other languages, code, conversations",
    )
    measure.add_argument(
        "--chunks", default="20", metavar="N", help="chunks of 512 tokens (default: 20)"
    )
