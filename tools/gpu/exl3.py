"""EXL3 by the real converter, its files beside exllamav3's own kernels, its quality beside EXL2,
GPTQ and GGUF at the same bits.
"""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from pathlib import Path
from typing import Any

from gpu import making
from gpu.machine import ROOT, at_once, call, found, search_path
from gpu.results import Seen, Stage

RATES = ("2.0", "3.0", "4.0")
CALIBRATION: dict[str, Any] = {
    "calibration": "builtin",
    "calibration_samples": 32,
    "calibration_length": 256,
}
CHUNKS = 20
# what the others make at each rate: options of a run, and whether bits per weight are those asked
BESIDE: dict[str, dict[str, dict[str, Any]]] = {
    # EXL2's scales and permutations come out of its bits: 2.0 cannot be had of small matrices
    "exl2": {
        "2.0": {"bpw": ("2.5",), "measurement_samples": 8},
        "3.0": {"bpw": ("3.0",), "measurement_samples": 8},
        "4.0": {"bpw": ("4.0",), "measurement_samples": 8},
    },
    "gptq": {rate: {"bits": int(float(rate)), "group_size": 128} for rate in RATES},
    "gguf": {
        "2.0": {"types": ("IQ2_XS",)},
        "3.0": {"types": ("IQ3_XXS",)},
        "4.0": {"types": ("IQ4_XS",)},
    },
}
GGUF = {"imatrix": "calibration", "pre_tokenizer": "gpt-2"}
STAND_INS = [ROOT / "tests" / "fakes" / name for name in ("exl2", "exl3")]


def _env(stage: Stage) -> dict[str, str]:
    """On a CPU, the tests' stand-in for a GPU and for the kernels."""
    from gpu.internals import EXL2_VARIABLES

    variables = dict(EXL2_VARIABLES)
    return variables if stage.cuda else {**variables, "PYTHONPATH": search_path(*STAND_INS)}


def run(stage: Stage) -> None:
    """All checks, in order; those that need an earlier one's files fail without them."""
    made: dict[str, dict[str, Any]] = {}
    stage.check("extension loads", lambda: _extension(stage), needs_cuda=True)
    stage.check(
        "converter, demo at 2.0, 3.0, 4.0",
        lambda: _convert(stage, made),
        needs_cuda=True,
        cpu_too=True,
    )
    stage.check(
        "optimizer, 3.0 of 2.0 and 4.0",
        lambda: _optimize(stage, made),
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
    for method in BESIDE:
        stage.check(
            f"beside {method}", partial(_beside, stage, made, method), needs_cuda=True, cpu_too=True
        )


def loaded() -> dict[str, str]:
    """Load the extension. In a process of its own."""
    import exllamav3.ext

    return {"file": str(exllamav3.ext.exllamav3_ext.__file__)}


def _extension(stage: Stage) -> Seen:
    failed = os.environ.get("GPU_CHECK_EXTENSION_FAILED", "")
    if failed:
        return Seen(False, failed[:400])
    seen = call("gpu.exl3:loaded", limit=120, env=_env(stage))
    took = os.environ.get("GPU_CHECK_EXTENSION_SECONDS", "")
    how = f"compiled here in {took} s" if took else "was there"
    return Seen(True, f"{Path(seen['file']).name}, {how}", data={"compiling": took, **seen})


def _convert(stage: Stage, made: dict[str, dict[str, Any]]) -> Seen:
    seen = making.run(
        "exl3",
        "demo",
        stage.work / "exl3",
        {"bpw": RATES, "eval_chunks": CHUNKS, **CALIBRATION},
        limit=600 if stage.rehearse else 240,
        env=_env(stage),
    )
    made.update({one["type"]: one for one in seen["made"]})
    parts = []
    for rate in RATES:
        one = made[f"{rate}bpw"]
        parts.append(f"{rate}: {one['achieved']:.3f} with scales, KL {one['kl']:.4f}")
        stage.keep(f"exl3 {rate} kl", one["kl"])
        stage.keep(f"exl3 {rate} achieved", one["achieved"])
    falls = [made[f"{rate}bpw"]["kl"] for rate in RATES]
    return Seen(falls == sorted(falls, reverse=True), "; ".join(parts), "KL falls with bits", seen)


def _optimize(stage: Stage, made: dict[str, dict[str, Any]]) -> Seen:
    """An average mixed of the finished bitrates, beside the converter's own at the same bits."""
    seen = making.run(
        "exl3",
        "demo",
        stage.work / "exl3",
        {"bpw": ("2.0", "4.0"), "optimized_bpw": ("3.0",), "eval_chunks": CHUNKS, **CALIBRATION},
        limit=300 if stage.rehearse else 120,
        env=_env(stage),
    )
    (mixed,) = (one for one in seen["made"] if one["type"] == "3.0bpw-opt")
    stage.keep("exl3 optimized 3.0 kl", mixed["kl"])
    stage.keep("exl3 optimized 3.0 achieved", mixed["achieved"])
    beside = made["3.0bpw"]["kl"] if "3.0bpw" in made else float("nan")
    least = made["2.0bpw"]["kl"] if "2.0bpw" in made else float("inf")
    return Seen(
        mixed["kl"] < least,
        f"{mixed['achieved']:.3f} with scales, KL {mixed['kl']:.4f} (the converter's 3.0:"
        f" {beside:.4f})",
        "KL below that of 2.0",
        seen,
    )


def _probe(stage: Stage, made: dict[str, dict[str, Any]], what: str, rate: str) -> Any:
    if f"{rate}bpw" not in made:
        raise RuntimeError(f"there is no model of {rate} bits per weight")
    return call(
        f"gpu.probes:exl3_{what}", limit=120, env=_env(stage), folder=made[f"{rate}bpw"]["folder"]
    )


def _matrices(probed: dict[str, Any], rate: str) -> Seen:
    seen = found(probed, f"matrices {rate}")
    said = f"{seen['layers']} matrices, most {seen['relative']:.1e} apart"
    # theirs are rotated in float16, ours in float32
    return Seen(seen["relative"] <= 2e-3, said, "2e-3 of their size", seen)


def _logits(probed: dict[str, Any], rate: str) -> Seen:
    seen = found(probed, f"logits {rate}")
    return Seen(seen["relative"] <= 1e-2, f"relative {seen['relative']:.2e}", "1e-2", seen)


def _beside(stage: Stage, made: dict[str, dict[str, Any]], method: str) -> Seen:
    """Another method at the same rates, on the same calibration text: KL of both, with the bits of
    the whole files. On a card EXL3 must not lose more.
    """
    if method == "gguf" and importlib.util.find_spec("llama_cpp") is None:
        return Seen(True, "not made: llama-cpp-python is not installed here")
    parts, worse, all_seen = [], [], []
    for rate, options in BESIDE[method].items():
        more = GGUF if method == "gguf" else {}
        seen = making.run(
            method,
            "demo",
            stage.work / f"{method}-{rate}",
            {"eval_chunks": CHUNKS, **CALIBRATION, **more, **options},
            limit=600 if stage.rehearse else 120,
            env=_env(stage),
        )
        all_seen.append(seen)
        other, mine = seen["made"][0], made[f"{rate}bpw"]
        parts.append(
            f"{other['type']} {other['bits']:.2f} bits, KL {other['kl']:.4f} (EXL3 {rate}:"
            f" {mine['bits']:.2f}, {mine['kl']:.4f})"
        )
        stage.keep(f"exl3 beside {method} {rate} kl", other["kl"])
        worse += [rate] if mine["kl"] > other["kl"] and mine["bits"] >= other["bits"] else []
    # the stand-in's search is rough: from a CPU the figures say nothing
    good = not (stage.cuda and worse)
    return Seen(good, "; ".join(parts), "EXL3 loses no more at no fewer bits", {"runs": all_seen})
