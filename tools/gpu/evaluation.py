"""Stage 4: measuring on CUDA beside measuring on the CPU of the same machine."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

from gpu import making
from gpu.machine import call
from gpu.results import Seen, Stage

CHUNKS = 20
DIGITS = 5e-4  # relative: four digits
# one that rounds weights only, one that rounds activations too
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "weights (hqq)": ("hqq", {"bits": 4}),
    "weights and activations (fp8)": ("w8a8", {"scheme": "fp8-dynamic"}),
}


def run(stage: Stage) -> None:
    """For each: made once on the CPU, then the same files measured on both."""
    for name, (method, options) in RUNS.items():
        seen: dict[str, dict[str, float]] = {}
        stage.check(f"CPU: {name}", partial(_cpu, stage, name, method, options, seen))
        stage.check(
            f"CUDA: {name}", partial(_cuda, stage, method, seen), needs_cuda=True, cpu_too=True
        )


def _measured(stage: Stage, folder: str, side: str, env: dict[str, str]) -> dict[str, float]:
    own = {"AUTOQUANT_CACHE": str(stage.work / f"cache-{side}"), "HF_HUB_OFFLINE": "1", **env}
    return dict(
        call(
            "gpu.making:measure",
            limit=300 if stage.rehearse else 90,
            env=own,
            folder=folder,
            chunks=CHUNKS,
        )
    )


def _cpu(
    stage: Stage, name: str, method: str, options: dict[str, Any], seen: dict[str, dict[str, float]]
) -> Seen:
    out = stage.work / f"evaluated-{method}"
    making.run(method, "demo", out, {"eval_chunks": 2, **options}, limit=300, env=making.HIDDEN)
    shutil.copytree(out, out.with_name(f"{out.name}-gpu"))
    seen["cpu"] = _measured(stage, str(out), "cpu", making.HIDDEN)
    for figure in ("perplexity", "kl", "reference"):
        stage.keep(f"evaluation {method} {figure}", seen["cpu"][figure])
    said = f"perplexity {seen['cpu']['perplexity']:.4f}, KL {seen['cpu']['kl']:.6f}"
    return Seen(True, f"{said}, {seen['cpu']['seconds']:.0f} s", "", dict(seen["cpu"]))


def _cuda(stage: Stage, method: str, seen: dict[str, dict[str, float]]) -> Seen:
    folder = stage.work / f"evaluated-{method}-gpu"
    here, cpu = _measured(stage, str(folder), "gpu", {}), seen["cpu"]
    off = {
        name: abs(here[name] - cpu[name]) / abs(cpu[name])
        for name in ("perplexity", "kl", "reference")
    }
    said = (
        f"perplexity {here['perplexity']:.4f} ({off['perplexity']:.0e} apart), "
        f"KL {here['kl']:.6f} ({off['kl']:.0e} apart), {here['seconds']:.0f} s"
    )
    return Seen(max(off.values()) <= DIGITS, said, f"{DIGITS:.0e} relative", {"here": here, **off})
