"""Importance matrices that transformers collects block by block, beside llama.cpp's own of the same
tokens, on the F32 file.

usage: python -m bench.importance WORK MODEL…

MODEL is a folder, ``demo``, or a small random model of bench.cases (such as ``phi3``), which is
made in WORK. Prints for each how many entries both have and how far these are apart at most:
‖a - b‖ / ‖a‖ of the sums of an entry. A mixture may send a token to another expert for a difference
in the last bit: experts that were sent another number of tokens are counted apart.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import autoquant
from autoquant.backends.llamacpp import converter
from autoquant.core import bundled, texts
from autoquant.core.machine import cores
from autoquant.evaluate import sources
from autoquant.runtime import preload, process
from autoquant.source import fetch, resolve

CHUNKS, LENGTH = 20, 512
SUMS = ".in_sum2"  # as llama.cpp calls them


@dataclass(frozen=True)
class Apart:
    """Two importance matrices side by side.

    ``entries``: how far the sums of each entry are apart, relative, over the rows (experts; one
    elsewhere) of as many tokens in both, of which there are ``rows``; ``others`` are of another
    number of tokens, and ``astray`` apart at most. ``unlike``: entries that only one of them has,
    or that have other shapes.
    """

    entries: dict[str, float]
    rows: int
    others: int
    astray: float
    unlike: list[str]


def collected(
    model: str,
    work: Path,
    *,
    chunks: int,
    length: int,
    pre_tokenizer: str = "",
    plan: dict[str, Any] | None = None,
) -> Apart:
    """Collect both ways over the first ``chunks`` of ``length`` tokens of the built-in text, and
    compare. ``plan`` is how blocks are run (see evaluate.models.place). Writes to ``work``.
    """
    source = resolve(model)
    snapshot = fetch(source)
    env, log = converter.environment(converter.locate()), work / "log"
    made = autoquant.gguf(
        model, types=["F32"], evaluate="off", pre_tokenizer=pre_tokenizer, out=work / "out"
    )
    ids = process.call(
        "autoquant.evaluate.scoring:tokenize",
        log=log,
        env=env,
        folder=str(source.folder),
        parts=texts.parts("builtin", "text", bundled.CALIBRATION),
        chunks=chunks,
        context=length,
    )["chunks"]
    common: dict[str, Any] = {"log": log, "env": env, "dataset": "", "threads": cores()}
    theirs, ours = work / "theirs.gguf", work / "ours.gguf"
    process.call(
        "autoquant.backends.llamacpp.imatrix:collect_imatrix",
        model=str(made.path("F32")),
        text="",
        ids=ids,
        target=str(theirs),
        chunks=chunks,
        context=length,
        **common,
    )
    process.call(
        "autoquant.evaluate.importance:collect",
        source=sources.file_of(snapshot, []),
        chunks=ids,
        target=str(ours),
        plan=plan,
        **common,
    )
    shutil.rmtree(work / "out")
    seen = process.call(
        "bench.importance:apart", log=log, env=env, theirs=str(theirs), ours=str(ours)
    )
    return Apart(**seen)


def apart(theirs: str, ours: str) -> dict[str, Any]:
    """The fields of Apart, of two files. Runs in a worker."""
    import numpy as np

    from autoquant.formats.gguf import Header

    headers = [Header(theirs), Header(ours)]
    values = [{n: h.values(t).reshape(-1) for n, t in h.tensors.items()} for h in headers]
    shapes = [{n: t.shape for n, t in h.tensors.items()} for h in headers]
    unlike = {one for one, _ in shapes[0].items() ^ shapes[1].items()}
    entries: dict[str, float] = {}
    rows, others, astray = 0, 0, 0.0
    for name in sorted(shapes[0].keys() - unlike):
        counted = name.replace(SUMS, ".counts")
        if counted == name or counted in unlike:
            continue
        counts = [one[counted] for one in values]
        sums = [v[name].reshape(len(c), -1) for v, c in zip(values, counts, strict=True)]
        same = counts[0] == counts[1]
        rows, others = rows + int(same.sum()), others + int((~same).sum())
        off = float(np.linalg.norm((sums[0] - sums[1])[same]))
        entries[name] = off / max(float(np.linalg.norm(sums[0][same])), 1e-9)
        for i in np.flatnonzero(~same):
            far = np.linalg.norm(sums[0][i] - sums[1][i]) / np.linalg.norm(sums[0][i])
            astray = max(astray, float(far))
    return {
        "entries": entries,
        "rows": rows,
        "others": others,
        "astray": astray,
        "unlike": sorted({one.rpartition(".")[0] for one in unlike}),
    }


@preload.kept()
def main(work: Path, models: list[str]) -> None:
    """Make what is to be made, collect, and print."""
    for name in models:
        here = work / Path(name).name
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        model, pre_tokenizer = name, ""
        if Path(name).is_dir():
            model = str(Path(name).resolve())
        elif name != "demo":
            model, pre_tokenizer = str(here / "model"), "gpt-2"
            process.call(
                "bench.cases.architectures:make", log=here / "log", name=name, folder=model
            )
        length = min(LENGTH, resolve(model).context)
        seen = collected(model, here, chunks=CHUNKS, length=length, pre_tokenizer=pre_tokenizer)
        worst = max(seen.entries, key=lambda one: seen.entries[one])
        print(
            f"{Path(name).name}: {len(seen.entries)} entries alike, {len(seen.unlike)} not; apart"
            f" {seen.entries[worst]:.0e} at most ({worst.removesuffix(SUMS)}); {seen.others} of"
            f" {seen.rows + seen.others} rows of another number of tokens, {seen.astray:.1g} apart",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
