"""What the text changes that importance matrices and GPTQ are made on: KL divergence by kind of
text, with English novels and with the mix of all kinds.

usage: python -m bench.texts WORK FOLDER [CHUNKS]
"""

from __future__ import annotations

import sys
from pathlib import Path

import autoquant
from autoquant.core.bundled import BUILTIN, KINDS, PROSE
from autoquant.result import Result
from autoquant.runtime import preload

TYPES = ("Q4_K_M", "Q3_K_M", "IQ3_XXS")


def line(name: str, made: Result) -> list[str]:
    """A row for each of a run's types."""
    rows = []
    for one in made.artifacts:
        assert one.evaluation is not None
        kinds = one.evaluation.by_kind
        told = " | ".join(f"{kinds[kind]['kl_mean']:.4f}" for kind in KINDS)
        rows.append(f"| {one.type} | {name} | {one.evaluation.kl_mean:.4f} | {told} |")
    return rows


@preload.kept()
def main(work: Path, folder: str, chunks: int) -> None:
    """Print a table in Markdown."""
    print(f"| type | text | all | {' | '.join(KINDS)} |\n|{' --- |' * (3 + len(KINDS))}")
    for text in (PROSE, BUILTIN):
        out = work / f"gguf-{text}"
        made = autoquant.gguf(folder, types=TYPES, imatrix=text, eval_chunks=chunks, out=out)
        print("\n".join(line(f"importance matrix on {text}", made)), flush=True)
    for text in (PROSE, BUILTIN):
        out = work / f"gptq-{text}"
        made = autoquant.gptq(
            folder, group_size=64, calibration=text, eval_chunks=chunks, evaluate="on", out=out
        )
        print("\n".join(line(f"GPTQ on {text}", made)), flush=True)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]).resolve(),
        str(Path(sys.argv[2]).resolve()),
        int(sys.argv[3]) if sys.argv[3:] else 40,
    )
