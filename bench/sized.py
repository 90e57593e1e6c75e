"""Files in which each tensor has a type of its own beside llama.cpp's types of the same size: KL
divergence, perplexity, agreement, the gain with its paired error, and the prediction.

usage: python -m bench.sized WORK FOLDER [--dither] [--chunks N] [TYPE…]

WORK keeps the files. All are run by their weights, in float32: llama.cpp rounds activations too,
which is no matter of a file. --dither adds noise of half a step to weights that were of 4 bits
once, whose old grid flatters the types that are like it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import autoquant
from autoquant.core.records import PREDICTED
from autoquant.evaluate import planning, sources
from autoquant.evaluate.evaluator import Evaluator
from autoquant.runtime import preload, process
from autoquant.runtime.worker import Emit
from autoquant.source import fetch, resolve

TYPES = (
    "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_M", "IQ3_XXS", "Q2_K", "IQ2_M",
)  # fmt: skip
GROUP = 32  # weights that shared a step, in llama.cpp's types


def dithered(folder: Path, target: Path) -> Path:
    """A copy of a checkpoint with noise of half a step of its old grid on every matrix. A group's
    step is the smallest difference of two of its weights.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if target.is_dir():
        return target
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    generator = torch.Generator().manual_seed(0)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.ndim == 2 and tensor.shape[1] % GROUP == 0:
                groups = tensor.float().reshape(-1, GROUP)
                gaps = groups.sort(1).values.diff(dim=1)
                step = gaps.where(gaps > 0, torch.inf).amin(1, keepdim=True)
                step[step.isinf()] = 0  # all weights are equal
                noise = torch.rand(groups.shape, generator=generator) - 0.5
                tensors[name] = (groups + step * noise).reshape(tensor.shape).to(tensor.dtype)
        save_file(tensors, target / path.name, metadata={"format": "pt"})
    return target


def paired(files: Sequence[dict[str, Any]], *, emit: Emit, **given: Any) -> dict[str, Any]:
    """passes.by_blocks, and the divergences of each token, for paired errors: the mean of each
    file, and the standard error of the difference of each two that follow one another. Runs in a
    worker.
    """
    import numpy as np

    from autoquant.evaluate import passes
    from autoquant.evaluate.scoring import Measure

    seen: list[Any] = []
    result = Measure.result

    def kept(self: Measure, *rest: Any) -> Any:
        seen.append(np.concatenate(self.kl))
        return result(self, *rest)

    with mock.patch.object(Measure, "result", kept):
        rows = passes.by_blocks(files, emit=emit, **given)
    errors = [
        float((one - other).std() / len(one) ** 0.5)
        for one, other in zip(seen[::2], seen[1::2], strict=True)
    ]
    return {"rows": rows, "errors": errors}


@preload.kept()
def main(work: Path, folder: Path, chunks: int, types: list[str]) -> None:
    """Make the files, measure them, and print a table in Markdown."""
    made = autoquant.gguf(
        folder, size=types, against=types, evaluate="off", out=work / f"{folder.name}-gguf"
    )
    snapshot = fetch(resolve(folder))
    pairs = []
    for asked, chosen in zip(types, made.offered, strict=True):
        stock = next(one for one in made.artifacts if one.type == asked)
        pairs.append((chosen, stock))
    evaluator: Evaluator = sources.evaluator_of(
        snapshot, work / "log", "builtin", chunks, autoquant_environment()
    )
    how = planning.how(snapshot.source, chunks)
    kept = evaluator.reference(plan=how)
    files = [
        {
            **sources.file_of(snapshot, one.paths_in(made.folder)),
            "states": str(work / f"{folder.name}-{one.type}.npy"),
        }
        for pair in pairs
        for one in pair
    ]
    with evaluator.serve() as prepare:
        answer = process.call(
            "bench.sized:paired",
            log=work / "log",
            env=autoquant_environment(),
            **prepare(
                {
                    "files": files,
                    "chunks": evaluator.chunks(),
                    "kinds": evaluator.kinds(),
                    "threads": evaluator.threads,
                    "text_sha256": evaluator.text_sha256,
                    "plan": how,
                    **kept.arguments(),
                }
            ),
        )
    print("| size of | bytes | KL stock | KL ours | less | predicted | PPL | top-1 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for (chosen, stock), theirs, ours, error in zip(
        pairs, answer["rows"][1::2], answer["rows"][::2], answer["errors"], strict=True
    ):
        one, other = ours["kl_mean"], theirs["kl_mean"]
        print(
            f"| {stock.type} | {stock.bytes:,} / {chosen.bytes:,} | {other:.5f} | {one:.5f} |"
            f" {100 * (1 - one / other):.0f} ± {100 * error / other:.0f} % |"
            f" {chosen.facts[PREDICTED] / one:.2f} of it, stock"
            f" {stock.facts.get(PREDICTED, 0) / other:.2f} |"
            f" {theirs['perplexity']:.2f} / {ours['perplexity']:.2f} |"
            f" {theirs['agreement']:.1%} / {ours['agreement']:.1%} |"
        )


def autoquant_environment() -> dict[str, str]:
    """Variables of workers that read GGUF files."""
    from autoquant.backends.llamacpp import converter as llama

    return llama.environment(llama.locate(""))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("types", nargs="*", default=list(TYPES))
    parser.add_argument("--dither", action="store_true")
    parser.add_argument("--chunks", type=int, default=40)
    given = parser.parse_intermixed_args()
    own = given.work.resolve()
    own.mkdir(parents=True, exist_ok=True)
    source = given.folder.resolve()
    if given.dither:
        source = dithered(source, own / f"{source.name}-dithered")
    main(own, source, given.chunks, given.types or list(TYPES))
