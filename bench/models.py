"""Which architectures and layouts go through which method: docs/models.md, made by running them.

``python -m bench.models [NAME...]`` makes tiny random models (bench.cases.architectures), quantizes
each with every method, reads back and measures what was made, and writes the page; with names only
those rows are run again. About half an hour on two cores.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import autoquant
from autoquant.core.errors import AutoQuantError
from autoquant.runtime import environments, preload, process
from bench import alone
from bench.cases import architectures

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "models.md", ROOT / "bench" / "models.json"
FEW = {"calibration_samples": 16, "calibration_length": 128}
# column -> its title, the method, and options that suit tiny models
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gguf": ("GGUF Q8_0", "gguf", {"types": "Q8_0", "pre_tokenizer": "gpt-2"}),
    "gptq": ("GPTQ", "gptq", FEW),
    "autoround": ("AWQ (AutoRound)", "awq", {**FEW, "iterations": 30}),
    "awq": ("AWQ (awq)", "awq", {**FEW, "algorithm": "awq"}),
    "hqq": ("HQQ", "hqq", {}),
    "bitsandbytes": ("NF4", "bitsandbytes", {}),
    "w8a8": ("W8A8", "w8a8", {}),
}
ALONE = ("gguf", "gptq", "autoround", "awq")
PACKAGES = (
    "transformers",
    "torch",
    "llama-cpp-python",
    "gptqmodel",
    "auto-round",
    "hqq",
    "bitsandbytes",
    "compressed-tensors",
)
HEAD = """# Models

What works, by architecture and layout, found by machine: `python -m bench.models` makes a tiny
random model of each, quantizes it with every method at 4 bits (GGUF at Q8_0, W8A8 at 8), reads
every layer back, lets it generate, and measures it against the source. A number is the mean KL
divergence in nats per token: of random weights, so it says that the model was run as what it is,
not how much a trained one loses. R stands for a refusal or a failure; its reason stands below, and
for GGUF, GPTQ and AWQ what the library says of the model without our code (`bench/alone.py`).

Run with {versions}.
"""


def versions() -> str:
    """The libraries that decide."""
    return ", ".join(f"{name} {environments.version(name)}" for name in PACKAGES)


def run(name: str, folder: Path, columns: Iterable[str]) -> dict[str, dict[str, Any]]:
    """One model through the methods of some columns."""
    source = folder / name
    process.call(
        "bench.cases.architectures:make", log=folder / "log", name=name, folder=str(source)
    )
    row: dict[str, dict[str, Any]] = {}
    for column in columns:
        _, method, options = METHODS[column]
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        pickled = {"allow_pickle": True} if method == "gguf" and "pickle" in name else {}
        try:
            made = getattr(autoquant, method)(
                source, out=out, evaluate="on", eval_chunks=2, **options, **pickled
            )
            evaluation = made.artifacts[0].evaluation
            row[column] = {"kl": evaluation.kl_mean if evaluation else None}
        except AutoQuantError as error:
            said = str(error).replace(str(source), name).replace(str(folder), "…")
            row[column] = {"refused": re.sub(r"\s+", " ", said)}
            if column in ALONE:
                row[column]["alone"] = alone.said(column, source)
    shutil.rmtree(source)
    return row


def page(results: Mapping[str, Mapping[str, Mapping[str, Any]]], said_by: str) -> str:
    """docs/models.md."""
    reasons: dict[str, str] = {}
    lines = [
        f"| model | {' | '.join(title for title, *_ in METHODS.values())} |",
        f"| --- | {' | '.join('---' for _ in METHODS)} |",
    ]
    for name in sorted(results):
        cells = []
        for method in METHODS:
            cell = results[name].get(method, {})
            if "refused" in cell:
                reason = general(str(cell["refused"]), name, cell.get("alone"))
                letter = reasons.setdefault(reason, f"R{len(reasons) + 1}")
                cells.append(f"[{letter}](#refusals)")
            else:
                cells.append(f"{cell['kl']:.3f}" if "kl" in cell else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    works = [cell for row in results.values() for cell in row.values() if "kl" in cell]
    every = [cell for row in results.values() for cell in row.values()]
    listed = [f"- **{letter}**: {reason}" for reason, letter in reasons.items()]
    return "\n".join(
        (
            HEAD.format(versions=said_by),
            f"{len(works)} of {len(every)} work.",
            "",
            *lines,
            "",
            "## Refusals",
            "",
            *listed,
            "",
        )
    )


def general(reason: str, name: str, by_itself: str | None) -> str:
    """A refusal without the model's own names, so that the same ones are counted once; and what the
    library says ``by_itself``, without our code (empty: it takes the model).
    """
    for pattern, instead in (
        (rf"(?<!')\b{re.escape(name)}\b", "it"),
        (r" \(\w*(For\w+|Model)\)", ""),
        (r"\b(GPTQ|HQQ|bitsandbytes|W8A8 / FP8)\b(?= (could|loads))", "this method"),
        (r"[^\s]*/out/", ""),
        (r" The traceback is in .*| Another way: .*", ""),
        (r"\d+ of \d+ layers are not divisible by it, e\.g\. .* outputs\)", "some are not"),
    ):
        reason = re.sub(pattern, instead, reason)
    said = shortened(reason, 400)
    if by_itself is not None:
        own = re.sub(r"/\S*/|(?<=gptqmodel)_\w+", "", by_itself) or "takes it"
        said += f" — *The library by itself:* {shortened(own, 160)}"
    return said.replace("|", "\\|")


def shortened(text: str, most: int) -> str:
    """A text that is cut where it is long."""
    return text[:most].rstrip() + (" …" if len(text) > most else "")


def main() -> None:
    """Run what the command line names (models and columns; of what it does not name, all), and
    write the page.
    """
    logging.disable(logging.WARNING)
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    results = dict(kept.get("results", {}))
    columns = [one for one in sys.argv[1:] if one in METHODS]
    names = [one for one in sys.argv[1:] if one not in METHODS] or architectures.names()
    with tempfile.TemporaryDirectory() as scratch, preload.kept():
        for name in names:
            made = run(name, Path(scratch), columns or METHODS)
            row = {**results.get(name, {}), **made}
            results[name] = {column: row[column] for column in METHODS if column in row}
            sys.stderr.write(f"{name}: {results[name]}\n")
    results = {name: row for name, row in results.items() if name in architectures.names()}
    noted = {"versions": versions(), "results": dict(sorted(results.items()))}
    RESULTS.write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(results, versions()), encoding="utf-8")


if __name__ == "__main__":
    main()
