"""EXL2 of the bundled model by exllamav2's converter on a CPU, with the tests' stand-in for a GPU;
beside GGUF and GPTQ. usage: python -m bench.exl2

Prints Markdown rows: target and achieved bits per weight of the blocks' matrices, bits per weight
of the whole file, quality on the same tokens. Times are of a CPU with a stand-in for the kernels:
they compare measuring with quantizing, and say nothing about a GPU.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import autoquant
from autoquant.core.records import Artifact
from autoquant.display import tables
from autoquant.runtime import process
from autoquant.source.layers import linears

os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent / "tests" / "fakes" / "exl2")
WORK = Path("bench-work/exl2")
RATES = ("2.5", "3.0", "4.0", "5.0", "6.0")
CALIBRATION: dict[str, Any] = {
    "calibration": "builtin",
    "calibration_samples": 32,
    "calibration_length": 256,
}
HEAD = (
    "format",
    "type",
    "blocks: target",
    "blocks: achieved",
    "bits/weight",
    "size",
    "perplexity",
    "KL mean",
    "top-1 agreement",
)


def row(format: str, artifact: Artifact, target: str, achieved: str) -> str:
    """One row."""
    quality = tables.quality(artifact.evaluation)
    cells = (
        format,
        artifact.type,
        target,
        achieved,
        f"{artifact.bits_per_weight:.2f}",
        tables.size(artifact.bytes),
        quality[0],
        quality[1],
        quality[4],
    )
    return "| " + " | ".join(cells) + " |"


def blocks(artifact: Artifact, result: Any) -> str:
    """Bits per weight of the blocks' matrices of a GPTQ folder, from its size: embeddings, head and
    norms have 16 bits there.
    """
    layers = sum(outputs * inputs for outputs, inputs in linears(result.source).values())
    parameters = result.source.parameters
    bits = artifact.bits_per_weight * parameters - 16 * (parameters - layers)
    return f"{bits / layers:.2f}"


def main() -> None:
    """Measure and print."""
    shutil.rmtree(WORK, ignore_errors=True)
    took: list[tuple[str, float]] = []
    real = process.run

    def timed(argv: Any, **more: Any) -> None:
        begin = time.monotonic()
        real(argv, **more)
        took.append(
            (
                "measuring" if "-om" in argv else f"quantizing to {argv[argv.index('-b') + 1]}",
                time.monotonic() - begin,
            )
        )

    process.run = timed
    print(tables.markdown(HEAD, [], left=2), flush=True)
    result = autoquant.exl2(
        "demo", bpw=RATES, measurement_samples=16, **CALIBRATION, eval_chunks=40, out=WORK / "exl2"
    )
    process.run = real
    for artifact, target in zip(result.artifacts, RATES, strict=True):
        print(row("EXL2", artifact, target, f"{artifact.facts['achieved']:.3f}"), flush=True)
    for bits in (2, 3, 4, 8):
        made = autoquant.gptq(
            "demo",
            bits=bits,
            group_size=64,
            **CALIBRATION,
            eval_chunks=40,
            out=WORK / f"gptq{bits}",
        )
        print(row("GPTQ", made.artifacts[0], "", blocks(made.artifacts[0], made)), flush=True)
    made = autoquant.gguf(
        "demo",
        types="Q2_K,IQ3_XXS,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K",
        imatrix="builtin",
        eval_chunks=40,
        out=WORK / "gguf",
    )
    for artifact in made.artifacts:
        print(row("GGUF, imatrix", artifact, "", ""), flush=True)
    for what, seconds in took:
        print(f"{what}: {seconds:.1f} s", flush=True)
    quantizing = [seconds for what, seconds in took if what != "measuring"]
    print(
        f"measuring takes as long as {took[0][1] / (sum(quantizing) / len(quantizing)):.1f}"
        " bitrates"
    )


if __name__ == "__main__":
    main()
