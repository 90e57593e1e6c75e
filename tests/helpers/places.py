"""A GPU whose memory runs out as soon as a model is put there, in workers that have none."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from autoquant.runtime.worker import Emit, Report


def _pretend(free: int) -> None:
    """Let torch find a GPU with so many bytes free."""
    import torch

    torch.cuda.is_available = lambda: True
    torch.cuda.mem_get_info = lambda *_: (free, free)  # type: ignore[assignment]
    torch.cuda.empty_cache = lambda: None
    torch.cuda.get_device_properties = lambda *_: type("Card", (), {"total_memory": free})()  # type: ignore[assignment]


def chosen(free: int, plan: Any) -> dict[str, Any]:
    """Where a plan is carried out if a GPU has so many bytes ``free`` (0: there is none), with the
    notes that the user gets, and whether products there are exact.
    """
    import torch

    from autoquant.forward.places import place

    if free:
        _pretend(free)
    torch.set_float32_matmul_precision("high")
    said: list[Any] = []
    found = place(plan, said.append)
    exact = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    return {"device": found.device, "how": found.how, "said": said, "exact": list(exact)}


def on_a_full_gpu(target: str, arguments: dict[str, Any], report: Report, emit: Emit) -> Any:
    """Call a worker's function where a model that is put on the GPU finds no memory there."""
    import torch

    from autoquant.forward.blockwise import Blockwise

    _pretend(1 << 40)
    own = Blockwise.__init__

    def build(self: Any, *args: Any, device: Any = "cpu", **more: Any) -> None:
        if device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB")
        own(self, *args, device=device, **more)

    Blockwise.__init__ = build  # type: ignore[assignment, method-assign]
    module, name = target.split(":")
    function = getattr(importlib.import_module(module), name)
    wanted = inspect.signature(function).parameters
    given = {"report": report, "emit": emit}
    return function(**arguments, **{one: given[one] for one in given if one in wanted})
