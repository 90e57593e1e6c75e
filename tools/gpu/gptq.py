"""Stage 2: GPTQ and AWQ by GPTQModel, and AutoRound, on CUDA."""

from __future__ import annotations

from functools import partial
from typing import Any

from gpu import making
from gpu.machine import at_once, call, found
from gpu.results import Seen, Stage

CHUNKS = 20
CLOSE = 0.10  # how far a KL may be from that of the CPU's file
SET: dict[str, Any] = {"calibration_samples": 32, "calibration_length": 256, "eval_chunks": CHUNKS}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "gptq": ("gptq", SET),
    "awq": ("awq", {**SET, "algorithm": "awq"}),
    "autoround": ("gptq", {**SET, "algorithm": "autoround", "iterations": 20}),
}
KERNELS = {
    "gptq": ("gptq_marlin", "gptq_exllama_v2", "gptq_triton", "gptq_torch"),
    "awq": ("awq_marlin", "awq_gemm", "awq_gemm_triton", "awq_torch"),
}
ON_CPU = {"gptq": ("gptq_torch",), "awq": ("awq_torch",)}
WITHIN = 1.25  # how much more host memory than planned a run may take


def run(stage: Stage) -> None:
    """The demo by each algorithm, the kernels, then a larger shape by each, one after the other."""
    limit = 600 if stage.rehearse else 200
    jobs = {
        name: partial(making.run, method, "demo", stage.work / name, options, limit=limit)
        for name, (method, options) in RUNS.items()
        if stage.wanted(f"{name}, demo", f"{name} kernels")
    }
    made = at_once(jobs, 1 if making.processors() < 8 else 3)
    for name in RUNS:
        stage.check(f"{name}, demo", partial(_demo, stage, made, name))
    for name in KERNELS:
        stage.check(
            f"{name} kernels", partial(_kernels, stage, made, name), needs_cuda=True, cpu_too=True
        )
    for name in RUNS:
        stage.check(
            f"{name}, two layers of a 1B shape",
            partial(_billion, stage, made, name),
            needs_cuda=True,
            cpu_too=True,
        )


def _demo(stage: Stage, made: dict[str, Any], name: str) -> Seen:
    seen = found(made, name)
    kl = seen["made"][0]["kl"]
    stage.keep(f"{name} kl", kl)
    if not stage.cuda:
        return Seen(True, f"KL {kl:.5f} (the CPU's file)", "", seen, seen["seconds"])
    beside = stage.expected(f"{name} kl")
    off = abs(kl - beside) / beside
    said = f"KL {kl:.5f}, CPU {beside:.5f}: {off:.1%} apart"
    return Seen(off <= CLOSE, said, f"{CLOSE:.0%}", seen, seen["seconds"])


def _kernels(stage: Stage, made: dict[str, Any], name: str) -> Seen:
    folder = found(made, name)["made"][0]["folder"]
    wanted = KERNELS[name] if stage.cuda else ON_CPU[name]
    jobs = {
        one: partial(call, "gpu.probes:gptq_kernel", limit=150, folder=folder, backend=one)
        for one in wanted
    }
    seen = at_once(jobs, 1 if making.processors() < 8 else 4)
    good, loaded, parts, data = True, 0, [], {}
    for one, result in seen.items():
        short = one.partition("_")[2]
        if isinstance(result, Exception):
            parts.append(f"{short} did not load")
            data[one] = {"reason": f"{type(result).__name__}: {result}"}
            continue
        loaded += not one.endswith("_torch") or not stage.cuda
        good = good and result["relative"] <= 1e-2
        parts.append(f"{short} {result['relative']:.1e}")
        data[one] = result
    if loaded == 0:
        reasons = "; ".join(
            f"{one}: {part['reason']}" for one, part in data.items() if "reason" in part
        )
        return Seen(False, f"no kernel of its own loads: {reasons}"[:600], "1e-2", data)
    return Seen(good, ", ".join(parts), "1e-2 relative; one at least must load", data)


def _billion(stage: Stage, made: dict[str, Any], name: str) -> Seen:
    shape = making.SMALL if stage.rehearse else making.BILLION
    folder = stage.work / "billion"
    if not folder.is_dir():
        call("gpu.making:random_model", limit=90, folder=str(folder), shape=shape)
    method, options = RUNS[name]
    given = {key: value for key, value in options.items() if key in ("algorithm", "iterations")}
    given |= {
        "evaluate": "off",
        "calibration_samples": 4 if stage.rehearse else 64,
        "calibration_length": min(512, shape["max_position_embeddings"]),
    }
    seen = making.run(
        method,
        str(folder),
        stage.work / f"{name}-billion",
        given,
        limit=600 if stage.rehearse else 120,
    )
    work = making.in_worker(seen["took"], ":quantize")
    before = found(made, name)["took"] if name in made else []
    fixed = making.in_worker(before, ":quantize")
    host, planned = seen["host bytes"], seen["plan"]["memory"]
    said = (
        f"{work:.1f} s (demo {fixed:.1f}){making.scaled(work, fixed, shape)}; "
        f"host {host / 1e9:.2f} GB, planned {planned / 1e9:.2f}"
    )
    return Seen(
        stage.rehearse or host <= WITHIN * planned,  # what is rehearsed is hardly a model
        said,
        f"host memory at most {WITHIN} times the plan",
        {**seen, "shape": shape},
    )
