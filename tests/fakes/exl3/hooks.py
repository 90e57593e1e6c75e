"""Triton's and the extension's places, filled before exllamav3 looks for them; two functions that
would start a Triton kernel, done in torch; and the copy to a GPU, made on the CPU.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

import torch


class _Nothing:
    """What stands for a kernel, a type or a tuner of Triton: it can be made, and not be started."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, function: Any = None, *_: Any, **__: Any) -> Any:
        return self

    def __getitem__(self, grid: Any) -> Any:
        raise NotImplementedError("no Triton on a CPU")


def _decorator(function: Any = None, **_: Any) -> Any:
    return _Nothing()


def _autotune(configs: Any = None, key: Any = None, **_: Any) -> Any:
    return _Nothing()


def _named(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(content)
    sys.modules[name] = module
    return module


def _any(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Nothing()


def install() -> None:
    """Do it, for this process."""
    import exllamav3_ext

    language = _named("triton.language", constexpr=_Nothing, dtype=_Nothing, extra=_Nothing)
    language.__getattr__ = _any  # type: ignore[method-assign]
    _named(
        "triton",
        jit=_decorator,
        autotune=_autotune,
        heuristics=_decorator,
        Config=_Nothing,
        language=language,
        cdiv=lambda a, b: -(-a // b),
        next_power_of_2=lambda n: 1 << (n - 1).bit_length(),
        __version__="0",
        __path__=[],
    )
    _named("exllamav3.ext", exllamav3_ext=exllamav3_ext)


def _accumulate(packed: torch.Tensor, x: torch.Tensor) -> None:
    from exllamav3.modules.quant.exl3_lib import hessian_packed

    packed += hessian_packed.pack(x.float().T @ x.float())


def _attend(args: Any) -> torch.Tensor:
    """Attention without a cache; each token sees ``window_size`` before it, if that is not
    negative.
    """
    q, k, v = (one.transpose(1, 2).float() for one in (args.q, args.k, args.v))
    k, v = (one.repeat_interleave(args.num_q_heads // args.num_kv_heads, 1) for one in (k, v))
    scores = q @ k.transpose(2, 3) * args.sm_scale
    if args.softcap:
        scores = torch.tanh(scores / args.softcap) * args.softcap
    ahead = torch.arange(args.kv_len) - torch.arange(args.q_len)[:, None]
    window = args.window_size if (args.window_size or 0) >= 0 else args.kv_len
    hidden = (ahead > 0) | (ahead < -(args.kv_len if window is None else window))
    scores = scores.masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).to(args.q.dtype)


def _prepare(module: Any, x: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
    """A copy, as on its way to a GPU: a module may add to what it is given."""
    return x.clone()


# module -> function -> what is put in its place once the module has been imported
INSTEAD = {
    "exllamav3.modules.module": {"Module.prepare_for_device": _prepare},
    "exllamav3.modules.quant.exl3_lib.hessian_packed": {"accumulate_": _accumulate},
    "exllamav3.modules.attention_fn.triton_paged": {"fn_triton_attn_nocache": _attend},
}
