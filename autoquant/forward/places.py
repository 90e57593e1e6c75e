"""Where models run block by block, on a GPU or the CPU; and once more on the CPU where a GPU's
memory runs out all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from autoquant.core.errors import OutOfMemory
from autoquant.runtime.worker import Emit, out_of_memory

log = logging.getLogger(__name__)
T = TypeVar("T")
Plan = Mapping[str, Any] | None
"""Arguments of blockwise.Blockwise, and ``on_gpu`` (see cost.Cost.how), or ``device``: the CPU is
to be taken in any case."""
BESIDE = 2 << 30  # bytes of libraries and activations
HEAD = 3_000_000_000  # bytes of a GPU that a head of 1 GB wants, with logits


@dataclass(frozen=True)
class Place:
    """Where models run in a worker, and how (arguments of Blockwise)."""

    device: str
    how: dict[str, Any]


def place(plan: Plan, emit: Emit | None = None) -> Place:
    """By a plan: on a GPU, if what one of its parts takes is free there; chosen once for all that a
    worker runs. Without a plan, of a head alone, where there is room for one. Products on a GPU are
    made exact in float32, as the CPU's are, so that it does not matter to figures which of the two
    has run a model (bench/GPU.md). Runs in workers.
    """
    import torch

    how = dict(plan or {})
    parts = how.pop("on_gpu", None) or [[0, HEAD]]
    if how.pop("device", "") == "cpu" or not torch.cuda.is_available():
        return Place("cpu", how)
    # whatever the environment or a library says: TF32 has 10 bits
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    free = int(torch.cuda.mem_get_info()[0])
    for part, needed in parts:
        if needed < free:
            return Place("cuda", how | ({"part": part} if part else {}))
    if plan and emit is not None:
        emit(
            {
                "note": f"the GPU has {free / 1e9:.1f} GB free, and a block of the model takes"
                f" {parts[-1][1] / 1e9:.1f} GB: it runs on the CPU"
            }
        )
    return Place("cpu", how)


def attempt(work: Callable[[], T]) -> tuple[T | None, str]:
    """What a piece of work gives, and no words; or where memory ran out, in words, when what it
    held is free again. Runs in workers.
    """
    try:
        return work(), ""
    except (MemoryError, RuntimeError, OSError) as error:
        where = out_of_memory(error)
        if where is None:
            raise
    # here, where nothing holds the error, and with it the variables of what has failed
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, where[0]


def anywhere(work: Callable[[Place], T], needed: int) -> T:
    """Work that needs so many bytes, on a GPU that has them free; on the CPU where there is none,
    or its memory runs out all the same. Runs in workers.
    """
    where = place({"on_gpu": [[0, needed]]})
    if where.device == "cpu":
        return work(where)
    found, _ = attempt(lambda: (work(where),))
    return found[0] if found is not None else work(Place("cpu", {}))


class Places:
    """Runs pieces of work by their plans, and the rest on the CPU once a GPU's memory has run out:
    what was free when it was planned may be somebody else's by then.
    """

    def __init__(self) -> None:
        self._on_cpu = False

    def run(self, work: Callable[[Plan], T], plan: Plan) -> T:
        """What ``work`` gives, which calls a worker with a plan. Where the GPU's memory does not
        suffice it says so, and calls it once more for the CPU; the CPU's own running out is raised.
        """
        if not self._on_cpu:
            try:
                return work(plan)
            except OutOfMemory as failure:
                if not failure.gpu:
                    raise
                log.warning("%s: the CPU does it instead, from the beginning", failure.where)
                self._on_cpu = True
        return work({**(plan or {}), "device": "cpu"})
