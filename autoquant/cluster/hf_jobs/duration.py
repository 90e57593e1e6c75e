"""How long a job takes on a machine that has not been measured: from the plan, whose times are of
this machine, and from what bench/ has measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from autoquant.cluster.hf_jobs.hardware import Flavor
from autoquant.core.errors import InputError
from autoquant.core.machine import cores
from autoquant.core.options import MethodOptions
from autoquant.core.plans import Plan
from autoquant.methods import METHODS

# Assumed, and measured nowhere: how much faster than two cores a GPU calibrates, and bytes a second
# from and to the Hub.
GPU_SPEED, NETWORK = 20.0, 50e6
THREAD = 0.5  # of a core's work that a provider's CPU (a thread) does beside its twin
INSTALL = 15 * 60  # seconds to start, install the package with its libraries, compile what must be
MARGIN = 2.0  # what the planned time is multiplied by for the timeout
LEAST, STEP = 30 * 60, 5 * 60  # the shortest timeout, and what it is rounded up to
FORMAT = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Work:
    """What a job has to do: bytes over the network, seconds of one core, the share of them that a
    GPU does too (and how much faster than two cores), and the most that measuring may take.
    """

    transferred: int
    core: float
    on_gpu: float
    measuring: float
    longest_measuring: float

    def seconds(self, flavor: Flavor) -> float:
        """About how long on a machine, installing included."""
        speed = max(1.0, THREAD * flavor.cpus)
        computing, measuring = self.core / speed, self.measuring / speed
        if flavor.gpus and self.on_gpu:
            computing = self.on_gpu
            measuring /= GPU_SPEED
        measuring = min(measuring, self.longest_measuring)
        return INSTALL + self.transferred / NETWORK + computing + measuring


def work(plan: Plan, options: MethodOptions) -> Work:
    """What a plan says is to be done, as :class:`Work`."""
    method = METHODS[plan.method]
    made = sum(item.bytes for item in plan.items if not item.impossible)
    # the model comes down where it is not bundled, whatever is in the cache here
    coming = 0 if plan.source.revision is None else max(plan.download, plan.source.bytes)
    here = float(cores())
    own = {n: s for n, s in plan.seconds.items() if n not in ("download", "measure")}
    paced = method.seconds(plan.source, options)
    core = here * sum(own.values())
    if "quantize" not in own and "cpu" in method.runs_on:
        core += 2 * paced
    on_gpu = 0.0
    if method.runs_on == ("cuda",):
        on_gpu = paced * max(1, len(plan.items))
    elif "cuda" in method.runs_on and options.calibrated_by:
        on_gpu = core / 2 / GPU_SPEED
    measuring, longest = _measuring(plan.seconds, options, here)
    return Work(coming + made, core, on_gpu, measuring, longest)


def _measuring(
    known: Mapping[str, float], options: MethodOptions, here: float
) -> tuple[float, float]:
    """Seconds of one core to measure, and the most that it may take."""
    if options.evaluate == "off":
        return 0.0, 0.0
    if options.evaluate == "on":
        return here * known.get("measure", 0.0), math.inf
    most = 60.0 * options.eval_minutes
    # what is too long to be planned here, another machine may do
    return (here * known["measure"] if "measure" in known else math.inf), most


def timeout(seconds: float) -> int:
    """The timeout of a job that takes about so many seconds: twice that, at least half an hour, in
    whole steps of five minutes.
    """
    return STEP * math.ceil(max(LEAST, MARGIN * seconds) / STEP)


def given(text: str | int | float) -> int:
    """A timeout as it is written: 90m, 6h, 1.5d, or a number of seconds. Raises InputError."""
    found = FORMAT.fullmatch(str(text).strip().lower())
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if seconds < 60:
        raise InputError(
            f"timeout: {text!r} is not allowed; write a time of at least a minute, e.g. 90m, 6h or"
            " 2d"
        )
    return math.ceil(seconds)
