"""Which machine a job gets: one that has what its plan needs, and on which the run costs least."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoquant.cluster.hf_jobs import duration
from autoquant.cluster.hf_jobs.hardware import GB, Flavor, named
from autoquant.core.errors import AutoQuantError, InputError
from autoquant.core.options import MethodOptions
from autoquant.core.plans import Plan
from autoquant.forward import cost
from autoquant.hub.fetch import same_disk
from autoquant.methods import METHODS

SYSTEM = 1 * GB  # memory that the system and our own process take beside what a plan counts
LIBRARIES = 8 * GB  # disk that the package, torch and the other libraries take (with CUDA's)
ROOM = 1.1  # of a plan's disk
NEAR = 0.05  # dollars that a run may cost more than the cheapest, if it is the sooner done
WORTH = 2 * 3600  # seconds on the best processor above which a GPU is taken where one can be
# GPU memory, assumed: CUDA and the calibration's states, and what a block's weights take in
# float32 with as much again for Hessians or gradients
GPU_BASE, GPU_TIMES = 8 * GB, 8


@dataclass(frozen=True)
class Need:
    """Bytes of memory and disk, and of GPU memory where a GPU is needed; ``gpu`` says why it is, or
    is empty.
    """

    memory: int
    disk: int
    gpu_memory: int = 0
    gpu: str = ""

    def lacks(self, flavor: Flavor) -> str:
        """What a machine has too little of, in words; empty if nothing."""
        parts = [
            f"{what}: {needed / GB:.1f} GB are needed, {there / GB:.0f} GB are there"
            for what, needed, there in (
                ("memory", self.memory, flavor.memory),
                ("disk", self.disk, flavor.disk),
                ("GPU memory", self.gpu_memory, flavor.gpu_memory),
            )
            if needed > there and (what != "GPU memory" or flavor.gpus)
        ]
        if self.gpu and not flavor.gpus:
            parts.append(f"an NVIDIA GPU ({self.gpu})")
        return "; ".join(parts)


@dataclass(frozen=True)
class Choice:
    """A machine for a job, about how many seconds the job takes there, and why this one, where that
    is not plain.
    """

    flavor: Flavor
    seconds: float
    why: str = ""

    @property
    def cost(self) -> float:
        """Dollars of so many seconds; whole minutes are billed."""
        return -(-self.seconds // 60) * self.flavor.minute


def need(plan: Plan, out: Path) -> Need:
    """What a plan needs of any machine. ``out``: where it was planned to write, by which it knows
    whether downloads lie on the same disk.
    """
    disk = plan.disk_needed + (0 if same_disk(out) else plan.download)
    memory = plan.memory_needed + SYSTEM
    if METHODS[plan.method].runs_on == ("cuda",):
        why = f"{METHODS[plan.method].title} quantizes on one only"
        return Need(memory, int(ROOM * disk) + LIBRARIES, _gpu_memory(plan), why)
    return Need(memory, int(ROOM * disk) + LIBRARIES)


def _gpu_memory(plan: Plan) -> int:
    try:
        block = cost.of(plan.source).block
    except (AutoQuantError, OSError, KeyError, ValueError):
        block = plan.source.parameters // 16  # of what transformers does not know
    return GPU_BASE + GPU_TIMES * block


def choose(
    plan: Plan, options: MethodOptions, out: Path, machines: Sequence[Flavor], asked: str = ""
) -> Choice:
    """The machine on which the run costs least, of those that have what it needs, or one that is
    done sooner for a few cents more. A GPU is taken where the method needs one, or can use one and
    takes more than two hours without.

    ``asked``: the name of the one to take instead. Raises InputError if that is not known or lacks
    something, or if no machine suffices.
    """
    needs, todo = need(plan, out), duration.work(plan, options)
    if asked:
        chosen = named(asked, machines)
        if chosen is None:
            raise InputError(
                f"flavor: there is no {asked!r}; there are:"
                f" {', '.join(one.name for one in machines)}"
            )
        if lacks := needs.lacks(chosen):
            fitting = next(_by_cost(needs, todo, machines), None)
            instead = f"; {fitting.flavor} would do" if fitting else ""
            raise InputError(f"flavor: {chosen} has too little of {lacks}{instead}")
        return Choice(chosen, todo.seconds(chosen), "asked for")
    plain = [one for one in machines if not one.gpus] if not needs.gpu else []
    best = next(_by_cost(needs, todo, plain), None)
    if best and (not todo.on_gpu or best.seconds <= WORTH):
        return best
    if todo.on_gpu:
        hours = f"{best.seconds / 3600:.0f} hours without" if best else "no other fits"
        why = needs.gpu or f"a GPU is worth it: {hours}"
        on_one = dataclasses.replace(needs, gpu_memory=_gpu_memory(plan), gpu=why)
        if with_gpu := next(_by_cost(on_one, todo, machines), None):
            return dataclasses.replace(with_gpu, why=why)
    elif with_more := next(_by_cost(needs, todo, machines), None):
        return dataclasses.replace(with_more, why="for its memory or disk, not its GPU")
    if best:
        return dataclasses.replace(best, why="no GPU that is offered has the memory")
    largest = max(machines, key=lambda one: (bool(one.gpus) >= bool(needs.gpu), one.memory))
    raise InputError(
        f"no machine of Hugging Face Jobs suffices; the largest, {largest.name}, has too little of"
        f" {needs.lacks(largest)}. Ask for fewer or smaller types, or (GGUF) --download stream"
    )


def _by_cost(needs: Need, todo: duration.Work, machines: Sequence[Flavor]) -> Iterator[Choice]:
    """The machines that suffice, the best first: of those that cost a few cents more than the
    cheapest at most, the one that is done first; then what costs least.
    """
    fitting = [Choice(one, todo.seconds(one)) for one in machines if not needs.lacks(one)]
    least = min((one.cost for one in fitting), default=0.0)
    yield from sorted(
        fitting,
        key=lambda one: (
            (0.0, one.seconds, one.cost)
            if one.cost <= least + NEAR
            else (one.cost, one.seconds, 0.0)
        ),
    )
