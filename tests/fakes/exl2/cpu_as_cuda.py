"""torch with one CUDA device, which is the CPU: what exllamav2's converter asks of ``torch.cuda``
answers, and tensors made for "cuda" are made on the CPU.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

KEPT: list[Any] = []  # the mode lasts as long as the process


def _cpu(device: Any) -> Any:
    if isinstance(device, str) and device.startswith("cuda"):
        return "cpu"
    return (
        torch.device("cpu")
        if isinstance(device, torch.device) and device.type == "cuda"
        else device
    )


class CudaOnCpu(TorchFunctionMode):
    """Every call of torch, with "cuda" read as "cpu"."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        if function is torch.Tensor.cpu:  # of a tensor on a GPU it is a copy
            return args[0].clone()
        if function is torch.Tensor.record_stream:
            return None
        if function is torch.Tensor.cuda:
            return args[0]
        if "device" in kwargs:
            kwargs["device"] = _cpu(kwargs["device"])
        if function in (torch.Tensor.to, torch.Tensor.new_tensor):
            first, *rest = args
            # .to(0) is the first GPU
            rest = [
                (
                    "cpu"
                    if i == 0 and isinstance(one, int) and not isinstance(one, bool)
                    else _cpu(one)
                )
                for i, one in enumerate(rest)
            ]
            args = (first, *rest)
        # a GPU sums in float32 too, and a CPU's half precision takes ten times as long
        if function is torch.matmul and args[0].dtype == args[1].dtype == torch.half:
            made = torch.matmul(args[0].float(), args[1].float()).half()
            return made if kwargs.get("out") is None else kwargs["out"].copy_(made)
        return function(*args, **kwargs)


class _Stream:
    """A stream or an event: all that may be asked of it does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def install() -> None:
    """Do it, for this process."""
    cuda: Any = torch.cuda
    for name in ("synchronize", "empty_cache", "set_stream", "set_device"):
        setattr(cuda, name, lambda *_, **__: None)
    for name in ("stream", "device"):
        setattr(cuda, name, lambda *_: contextlib.nullcontext())
    cuda.mem_get_info = lambda *_: (8 << 30, 8 << 30)
    cuda.get_device_capability, cuda.current_device = lambda *_: (8, 9), lambda: 0
    cuda.current_stream = cuda.Event = _Stream
    cuda.is_available, cuda.device_count, cuda.Stream = lambda: True, lambda: 1, _Stream
    cuda.get_device_name = lambda *_: "the CPU (a stand-in)"
    cuda.get_device_properties = lambda *_: type("Properties", (), {"total_memory": 8 << 30})()
    real = torch.device

    class Kind(type):
        def __instancecheck__(cls, one: object) -> bool:
            return isinstance(one, real)

    class device(metaclass=Kind):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
            if len(args) == 1 and isinstance(args[0], int):
                return real("cpu")
            return real("cpu") if args == ("cuda:None",) else real(*args, **kwargs)

    torch.device = device  # type: ignore[misc, assignment]
    mode = CudaOnCpu()
    mode.__enter__()
    KEPT.append(mode)
    run = threading.Thread.run

    def run_so(thread: threading.Thread) -> None:
        with CudaOnCpu():  # a mode is of one thread
            run(thread)

    threading.Thread.run = run_so  # type: ignore[method-assign]
