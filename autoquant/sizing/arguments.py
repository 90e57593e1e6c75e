"""What the commands `autoquant advise` and `autoquant sensitivity` take."""

from __future__ import annotations

import argparse
from typing import Any

from autoquant.core.rendering import add_arguments
from autoquant.methods.gguf.measured import OPTIONS
from autoquant.methods.gguf.options import GgufOptions

NAMES = ("model", "fits", "context", "kv_type", "pre_tokenizer")


def add_arguments_of_advise(parser: argparse.ArgumentParser) -> None:
    """Add them. Values stay strings: what takes them turns and checks them."""
    parser.add_argument(
        "model", metavar="MODEL", help="a model on the Hub, a folder, a GGUF file, or demo"
    )
    parser.add_argument(
        "--fits",
        metavar="DEVICE",
        help=(
            "a device that `autoquant devices` lists, '8GB laptop', or 24GB for so much memory that"
            " is free for the model (default: this machine)"
        ),
    )
    parser.add_argument(
        "--context",
        metavar="N",
        help="tokens of one conversation (default: 8192, or the model's context if that is less)",
    )
    parser.add_argument(
        "--kv-type",
        default="f16",
        metavar="f16|q8_0|q4_0",
        help="how llama.cpp keeps keys and values (default: f16)",
    )
    parser.add_argument(
        "--pre-tokenizer",
        default="",
        metavar="NAME",
        help="pre-tokenizer to assume where llama.cpp does not know the model's, e.g. gpt-2",
    )


def add_sensitivity(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command, with the options of GGUF that a table depends on; ``common`` has those of
    every command.
    """
    parser = commands.add_parser(
        "sensitivity",
        help="how sensitive each tensor of a model is; what files of any size would lose",
        description=(
            "Measures what each tensor would lose by each GGUF type, and predicts what the best"
            " file of any size would lose; makes none. `autoquant quantize gguf MODEL --size SIZE`"
            " with the same options uses the table."
        ),
        parents=[common],
    )
    parser.add_argument("model", metavar="MODEL", help="a model on the Hub, a folder, or demo")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: ./<model>-GGUF)")
    others = [name for name in GgufOptions.model_fields if name not in OPTIONS]
    add_arguments(parser, GgufOptions, without=others)
