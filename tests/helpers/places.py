"""Workers on a GPU with little memory, which is a stand-in."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from autoquant.runtime.worker import Emit, Report
from tests.fakes.full_gpu import with_free, without_room


def chosen(free: int, plan: Any) -> dict[str, Any]:
    """Where a plan is carried out if a GPU has so many bytes ``free`` (0: there is none), with the
    notes that the user gets, and whether products there are exact.
    """
    import torch

    from autoquant.forward.places import place

    if free:
        with_free(free)
    torch.set_float32_matmul_precision("high")
    said: list[Any] = []
    found = place(plan, said.append)
    exact = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    return {"device": found.device, "how": found.how, "said": said, "exact": list(exact)}


def on_a_full_gpu(target: str, arguments: dict[str, Any], report: Report, emit: Emit) -> Any:
    """Call a worker's function where a model that is put on the GPU finds no memory there."""
    with_free(1 << 40)
    without_room()
    module, name = target.split(":")
    function = getattr(importlib.import_module(module), name)
    wanted = inspect.signature(function).parameters
    given = {"report": report, "emit": emit}
    return function(**arguments, **{one: given[one] for one in given if one in wanted})


def verified(free: int, fails: str, **arguments: Any) -> dict[str, Any]:
    """What the check of a folder says where a GPU has so many bytes ``free`` (0: there is none) and
    the library that loads such folders runs out of memory: ``loading``, or ``generating``; on the
    "GPU" or "CPU". Of the block-by-block run: on which devices it was tried (``on``); on a GPU it
    ``fails`` too.
    """
    import torch

    from autoquant.backends import checks

    if free:
        with_free(free)
    on = without_room()
    errors = {"GPU": torch.OutOfMemoryError("CUDA out of memory"), "CPU": MemoryError()}
    step, _, where = fails.partition(" on the ")

    def fail(*_: Any) -> Any:
        raise errors[where]

    loading = checks.dequantized.loading

    def load(folder: str) -> Any:
        if step == "loading":
            fail()
        return checks.dequantized.load(folder)

    checks.dequantized.loading = lambda block: (load, loading(block)[1])  # type: ignore[assignment]
    checks.takes_gpu = lambda loader: True
    if step == "generating":
        checks.continuation = fail
    said = checks.verify(**arguments, report=lambda *_: None)
    return {"checks": dict(said["checks"]), "on": on, "notes": said["notes"]}


def largest_inputs(source: str, ids: list[list[int]]) -> dict[str, Any]:
    """On which devices a model's inputs are looked at, and of how many layers they are found."""
    from autoquant.backends.compressed_tensors import _largest_inputs
    from autoquant.backends.tensorwise import Division

    with_free(1 << 40)
    on = without_room()
    found = _largest_inputs(Division(source), source, ids, lambda *_: None)
    return {"on": on, "layers": len([one for one in found.values() if one > 0])}
