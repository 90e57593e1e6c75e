"""A GPU with so much memory free, on which every model that is put there runs out of it; in workers
of a machine that has none.
"""

from __future__ import annotations

from typing import Any


def with_free(free: int) -> None:
    """Let torch find a GPU with so many bytes free."""
    import torch

    torch.cuda.is_available = lambda: True
    torch.cuda.mem_get_info = lambda *_: (free, free)  # type: ignore[assignment]
    torch.cuda.empty_cache = lambda: None
    torch.cuda.get_device_properties = lambda *_: type("Card", (), {"total_memory": free})()  # type: ignore[assignment]


def without_room() -> list[str]:
    """Let every model that is put on a GPU run out of memory. Gives the devices that were tried."""
    import torch

    from autoquant.forward.blockwise import Blockwise

    tried: list[str] = []
    own = Blockwise.__init__

    def build(self: Any, *args: Any, device: Any = "cpu", **more: Any) -> None:
        tried.append(device)
        if device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB")
        own(self, *args, device=device, **more)

    Blockwise.__init__ = build  # type: ignore[assignment, method-assign]
    return tried
