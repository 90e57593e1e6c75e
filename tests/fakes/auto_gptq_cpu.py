"""A CPU where AutoGPTQ wants CUDA. Everything else is AutoGPTQ's own: runs in its environment,
around the package's real worker function.
"""

from __future__ import annotations

import functools
from typing import Any

from autoquant.backends import auto_gptq


def cuda() -> bool:
    """A GPU, by its word."""
    return True


class _Torch:
    """torch as AutoGPTQ's main module sees it: with a GPU, by its word."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.cuda = type(
            "cuda",
            (),
            {"is_available": staticmethod(lambda: True), "empty_cache": staticmethod(lambda: None)},
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


@functools.wraps(auto_gptq.quantize)
def work(*args: Any, **kwargs: Any) -> None:
    import torch
    from auto_gptq.modeling import _base, _utils

    _base.torch = _Torch(torch)
    _base.CUDA_0 = _utils.CUDA_0 = torch.device("cpu")
    torch.cuda.synchronize = lambda *_: None
    auto_gptq.quantize(*args, **kwargs)


def install() -> None:
    """Let this process's runs take these workers for AutoGPTQ's."""
    from autoquant.runtime import environments

    environments.CUDA_WORKER = f"{__name__}:cuda"
    environments.AUTO_GPTQ_WORKER = f"{__name__}:work"
