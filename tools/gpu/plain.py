"""Stage 3: HQQ, bitsandbytes and 8-bit weights and activations: CUDA's files beside the CPU's."""

from __future__ import annotations

from functools import partial
from typing import Any

from gpu import making
from gpu.machine import at_once, call, found
from gpu.results import Seen, Stage

CHUNKS = 8
CLOSE = 0.10  # how far a KL may be from that of the CPU's file
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "hqq": ("hqq", {}),
    "nf4": ("bitsandbytes", {"quant_type": "nf4"}),
    "fp4": ("bitsandbytes", {"quant_type": "fp4"}),
    "int8": ("bitsandbytes", {"quant_type": "int8"}),
    "w8a8": ("w8a8", {"scheme": "int8-dynamic"}),
    "w8a8-static": (
        "w8a8",
        {"scheme": "int8-static", "calibration_samples": 16, "calibration_length": 256},
    ),
    "fp8": ("w8a8", {"scheme": "fp8-dynamic"}),
}
RUNTIMES = ("hqq", "nf4", "fp4", "int8")  # whose libraries' own products are looked at
REAL = {  # whose products the hardware makes of rounded activations; how close they must be
    "w8a8": ("real int8 products", 1e-4),
    "fp8": ("real FP8 products", 1e-2),
}
CHECKS = {
    name: (
        f"{name}: CPU's file",
        f"{name}: GPU's file",
        *([f"{name}: the library's logits"] if name in RUNTIMES else []),
        *([f"{name}: {REAL[name][0]}"] if name in REAL else []),
    )
    for name in RUNS
}


def run(stage: Stage) -> None:
    """Every method on the CPU and, if there is one, on the GPU of the same machine."""
    limit = 600 if stage.rehearse else 150
    sides = {"cpu": making.HIDDEN, **({"gpu": {}} if stage.cuda else {})}
    jobs = {
        f"{name} {side}": partial(
            making.run,
            method,
            "demo",
            stage.work / side / name,
            {"eval_chunks": CHUNKS, **options},
            limit=limit,
            env={**env, "OMP_NUM_THREADS": str(max(1, making.processors() // 7))},
        )
        for side, env in sides.items()
        for name, (method, options) in RUNS.items()
        if stage.wanted(*CHECKS[name])
    }
    workers = 1 if making.processors() < 8 else 7
    made = at_once(jobs, workers)
    side = "gpu" if stage.cuda else "cpu"

    def probe(target: str, name: str, **more: Any) -> Any:
        return call(target, limit=120, folder=_folder(made, f"{name} {side}"), **more)

    probes: dict[str, Any] = {}
    for name in RUNS:
        if name in RUNTIMES and stage.wanted(CHECKS[name][2]):
            probes[f"runtime {name}"] = partial(probe, "gpu.probes:runtime", name)
        if name in REAL and stage.wanted(CHECKS[name][2]):
            probes[f"real {name}"] = partial(probe, "gpu.probes:real_activations", name)
        if stage.cuda and stage.wanted(CHECKS[name][1]):
            probes[f"differences {name}"] = partial(_differences, made, name)
    seen = at_once(probes, workers)
    for name in RUNS:
        stage.check(CHECKS[name][0], partial(_cpu, stage, made, name))
        stage.check(CHECKS[name][1], partial(_gpu, made, seen, name), needs_cuda=True)
    for name in RUNTIMES:
        look = partial(_runtime, seen, name)
        stage.check(CHECKS[name][2], look, needs_cuda=True, cpu_too=True)
    for name, (_, most) in REAL.items():
        look = partial(_real, seen, name, most)
        stage.check(CHECKS[name][2], look, needs_cuda=True, cpu_too=True)


def _folder(made: dict[str, Any], key: str) -> str:
    return str(found(made, key)["made"][0]["folder"])


def _differences(made: dict[str, Any], name: str) -> Any:
    return call(
        "gpu.making:differences",
        limit=120,
        ours=_folder(made, f"{name} cpu"),
        theirs=_folder(made, f"{name} gpu"),
    )


def _cpu(stage: Stage, made: dict[str, Any], name: str) -> Seen:
    seen = found(made, f"{name} cpu")
    kl = seen["made"][0]["kl"]
    stage.keep(f"{name} kl", kl)
    said = f"KL {kl:.5f}"
    if not stage.cuda:
        return Seen(True, said, "", seen, seen["seconds"])
    beside = stage.expected(f"{name} kl")
    off = abs(kl - beside) / beside
    return Seen(
        off <= 0.05,
        f"{said}; where rehearsed {beside:.5f}: {off:.1%} apart",
        "5%",
        seen,
        seen["seconds"],
    )


def _gpu(made: dict[str, Any], seen: dict[str, Any], name: str) -> Seen:
    cpu, gpu = found(made, f"{name} cpu"), found(made, f"{name} gpu")
    differ = found(seen, f"differences {name}")
    before, after = cpu["made"][0]["kl"], gpu["made"][0]["kl"]
    off = abs(after - before) / before
    if not differ["unequal"]:
        return Seen(
            True,
            f"equal to the CPU's, {differ['tensors']} tensors",
            "equal",
            differ,
            gpu["seconds"],
        )
    said = (
        f"{len(differ['unequal'])} of {differ['tensors']} tensors differ, "
        f"{differ['codes']:.2%} of the codes, weights {differ['weights']:.1e}; "
        f"KL {after:.5f}, CPU {before:.5f}"
    )
    return Seen(
        off <= CLOSE,
        said,
        f"equal, or KL within {CLOSE:.0%}",
        {**differ, "run": gpu},
        gpu["seconds"],
    )


def _runtime(probed: dict[str, Any], name: str) -> Seen:
    seen = found(probed, f"runtime {name}")
    return Seen(
        seen["relative"] <= 2e-2,
        f"relative {seen['relative']:.2e} on {seen['device']}",
        "2e-2 (16 bits are computed in)",
        seen,
    )


def _real(probed: dict[str, Any], name: str, most: float) -> Seen:
    seen = found(probed, f"real {name}")
    return Seen(
        seen["relative"] <= most,
        f"worst of {seen['layers']} layers {seen['relative']:.2e} from our simulation",
        f"{most:.0e}",
        seen,
    )
