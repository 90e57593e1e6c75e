"""Calibration samples: a text read, joined, tokenized, cut into samples of one length, chosen by seed, hashed.

Samples are packed: the documents are joined with the tokenizer's end token and cut every ``length`` tokens, so that no token is padding and
no document's end is thrown away. The same samples serve every method that calibrates on tokens.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from autoquant.errors import InputError
from autoquant.options import MethodOptions, option

BUILTIN = Path(__file__).parent / "demo" / "austen_calibration.txt"


class CalibrationOptions(MethodOptions):
    """The options of methods that calibrate."""

    calibration: str = option("builtin", "text to calibrate on: builtin (English novels), or a .txt, .jsonl or .parquet file; a text like what the model will be "
                              "used for is better", metavar="builtin|FILE")
    calibration_column: str = option("text", "column of a .jsonl or .parquet file that holds the text", metavar="NAME")
    calibration_samples: int = option(128, "how many samples to calibrate on; GPTQ's paper takes 128", unit="samples", ge=1, le=100_000)
    calibration_length: int = option(512, "tokens a sample, at most the model's context; longer ones take more memory", unit="tokens", ge=16, le=131_072)
    calibration_seed: int = option(0, "which samples are taken, if the text has more than enough", ge=0, le=2**31 - 1)


def documents(options: CalibrationOptions) -> list[str]:
    """The documents of the calibration text. Raises InputError for a file that is missing, unreadable, of another kind, or without the column."""
    path = BUILTIN if options.calibration == "builtin" else Path(options.calibration).expanduser()
    if not path.is_file():
        raise InputError(f"calibration: no such file: {options.calibration}; give a .txt, .jsonl or .parquet file, or builtin")
    column = options.calibration_column
    try:
        if path.suffix == ".parquet":
            found = _parquet(path, column)
        elif path.suffix in (".jsonl", ".json"):
            found = [_cell(json.loads(line), column, path) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            found = [path.read_text(encoding="utf-8")]
    except (UnicodeDecodeError, json.JSONDecodeError, OSError) as error:
        raise InputError(f"calibration: {path} cannot be read ({type(error).__name__}: {error})") from None
    if not any(text.strip() for text in found):
        raise InputError(f"calibration: {path} is empty")
    return found


def _parquet(path: Path, column: str) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        if column not in table.schema_arrow.names:
            raise InputError(f"calibration: {path} has no column {column!r}; it has: {', '.join(table.schema_arrow.names)}. Name one with calibration_column")
        return [str(text) for text in table.read([column]).column(column).to_pylist() if text]
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"calibration: {path} is no parquet file ({error})") from None


def _cell(row: Any, column: str, path: Path) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        names = ", ".join(map(str, row)) if isinstance(row, dict) else "no columns"
        raise InputError(f"calibration: a line of {path} has no text in column {column!r}; it has: {names}. Name one with calibration_column")
    return str(row[column])


def pack(folder: str, texts: list[str], *, samples: int, length: int, seed: int) -> list[list[int]]:
    """At most ``samples`` lists of ``length`` token ids by the model's own tokenizer, drawn without repetition by ``seed``. Runs in a worker.

    Raises InputError if the text is shorter than one sample.
    """
    import random

    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    enough = 4 * samples * length  # a library need not be tokenized whole
    stream: list[int] = []
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    for i in order:
        for start in range(0, len(texts[i]), 1 << 20):  # tokenizers take time and memory that grow with one text's length
            stream += tokenizer.encode(texts[i][start:start + (1 << 20)], add_special_tokens=False)
        stream += end
        if len(stream) > enough:
            break
    n = len(stream) // length
    if n < 1:
        raise InputError(f"calibration: the text has {len(stream)} tokens; one sample needs {length}. Give a longer text or a smaller calibration_length")
    chosen = sorted(random.Random(seed).sample(range(n), min(samples, n)))
    return [stream[i * length:(i + 1) * length] for i in chosen]


def digest(ids: list[list[int]]) -> str:
    """The sha256 of the samples, for the journal and the card."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()
