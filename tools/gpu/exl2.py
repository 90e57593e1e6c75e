"""Stage 1: EXL2 by the real converter, its files beside exllamav2's own kernels."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from gpu import making
from gpu.machine import ROOT, at_once, call, found, search_path
from gpu.results import Seen, Stage

RATES = ("3.0", "5.0")
CALIBRATION: dict[str, Any] = {
    "calibration": "builtin",
    "calibration_samples": 16,
    "calibration_length": 256,
    "measurement_samples": 8,
}
CHUNKS = 20
KL_BESIDE = 1.5  # how many times the KL of the CPU's stand-in; it searches bit widths differently
STAND_IN = ROOT / "tests" / "fakes" / "exl2"


def _env(stage: Stage) -> dict[str, str]:
    """On a CPU, the tests' stand-in for a GPU and for exllamav2's kernels."""
    from gpu.internals import EXL2_VARIABLES

    return (
        dict(EXL2_VARIABLES)
        if stage.cuda
        else {**EXL2_VARIABLES, "PYTHONPATH": search_path(STAND_IN)}
    )


def run(stage: Stage) -> None:
    """All checks, in order; those that need an earlier one's files fail without them."""
    made: dict[str, dict[str, Any]] = {}
    before: list[Any] = []
    stage.check("extension loads", lambda: _extension(stage), needs_cuda=True)
    stage.check(
        "converter, demo at 3.0 and 5.0",
        lambda: _convert(stage, made, before),
        needs_cuda=True,
        cpu_too=True,
    )
    probes = {
        f"{what} {rate}": partial(_probe, stage, made, what, rate)
        for rate in RATES
        for what in ("matrices", "logits")
        if (stage.cuda or what == "matrices") and stage.wanted(f"{what} at {rate}")
    }
    probed = at_once(probes, 1 if making.processors() < 8 else 4)
    for rate in RATES:
        stage.check(
            f"matrices at {rate}", partial(_matrices, probed, rate), needs_cuda=True, cpu_too=True
        )
        stage.check(f"logits at {rate}", partial(_logits, probed, rate), needs_cuda=True)
    stage.check(
        "two layers of a 1B shape", lambda: _billion(stage, before), needs_cuda=True, cpu_too=True
    )


def loaded() -> dict[str, str]:
    """Load the extension. In a process of its own."""
    import exllamav2.ext

    return {"file": str(exllamav2.ext.exllamav2_ext.__file__)}


def _extension(stage: Stage) -> Seen:
    failed = os.environ.get("GPU_CHECK_EXTENSION_FAILED", "")
    if failed:
        return Seen(False, failed[:400])
    seen = call("gpu.exl2:loaded", limit=120, env=_env(stage))
    took = os.environ.get("GPU_CHECK_EXTENSION_SECONDS", "")
    how = f"compiled here in {took} s" if took else "was there"
    return Seen(True, f"{Path(seen['file']).name}, {how}", data={"compiling": took, **seen})


def _convert(stage: Stage, made: dict[str, dict[str, Any]], before: list[Any]) -> Seen:
    out = stage.work / "exl2"
    seen = making.run(
        "exl2",
        "demo",
        out,
        {"bpw": RATES, "eval_chunks": CHUNKS, **CALIBRATION},
        limit=600 if stage.rehearse else 240,
        env=_env(stage),
    )
    made.update({one["type"]: one for one in seen["made"]})
    before += seen["took"]
    parts, good = [], True
    for rate in RATES:
        one = made[f"{rate}bpw"]
        parts.append(f"{rate}: {one['achieved']:.3f} achieved, KL {one['kl']:.4f}")
        stage.keep(f"exl2 {rate} kl", one["kl"])
        stage.keep(f"exl2 {rate} achieved", one["achieved"])
        if stage.cuda:
            beside = stage.expected(f"exl2 {rate} kl")
            parts[-1] += f" (stand-in {beside:.4f})"
            good = good and one["kl"] <= KL_BESIDE * beside
    return Seen(good, "; ".join(parts), f"KL at most {KL_BESIDE} times the stand-in's", seen)


def _probe(stage: Stage, made: dict[str, dict[str, Any]], what: str, rate: str) -> Any:
    if f"{rate}bpw" not in made:
        raise RuntimeError(f"there is no model of {rate} bits per weight")
    return call(
        f"gpu.probes:exl2_{what}", limit=90, env=_env(stage), folder=made[f"{rate}bpw"]["folder"]
    )


def _matrices(probed: dict[str, Any], rate: str) -> Seen:
    seen = found(probed, f"matrices {rate}")
    said = f"{seen['layers']} matrices, {seen['exact']} equal, most {seen['ulps']} ulp apart"
    return Seen(seen["ulps"] <= 1, said, "1 ulp of float16", seen)


def _logits(probed: dict[str, Any], rate: str) -> Seen:
    seen = found(probed, f"logits {rate}")
    return Seen(seen["relative"] <= 1e-2, f"relative {seen['relative']:.2e}", "1e-2", seen)


def _billion(stage: Stage, before: list[Any]) -> Seen:
    shape = making.SMALL if stage.rehearse else making.BILLION
    folder = stage.work / "billion"
    call("gpu.making:random_model", limit=90, folder=str(folder), shape=shape)
    options = {
        "bpw": ("4.0",),
        "evaluate": "off",
        "calibration": "builtin",
        "calibration_samples": 16,
        "measurement_samples": 8,
        "calibration_length": shape["max_position_embeddings"],
    }
    seen = making.run(
        "exl2",
        str(folder),
        stage.work / "exl2-billion",
        options,
        limit=600 if stage.rehearse else 170,
        env=_env(stage),
    )
    parts = []
    for what in ("measure", "quantize"):
        took = sum(seconds for name, seconds in seen["took"] if name == what)
        # the first seconds go into starting the converter, which the demo's small layers show
        begin = min([seconds for name, seconds in before if name == what], default=0.0)
        parts.append(f"{what} {took:.1f} s (demo {begin:.1f}){making.scaled(took, begin, shape)}")
    return Seen(True, "; ".join(parts), "none: figures for plans", {**seen, "shape": shape})
