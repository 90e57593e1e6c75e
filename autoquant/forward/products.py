"""What enters a model's matrices while it runs: squared inputs, summed up over tokens, of every
linear layer, and of each expert by the tokens that are sent to it. Runs in workers.

Products are recognized where torch makes them, by the memory of their weights: so it does not
matter in which class of module a matrix is, or how experts are indexed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LINEAR, MATMUL, ADDMM = "linear", "matmul", "addmm"
KINDS = {
    "linear": LINEAR,
    "matmul": MATMUL,
    "__matmul__": MATMUL,
    "bmm": MATMUL,
    "mm": MATMUL,
    "addmm": ADDMM,
}


@dataclass
class Inputs:
    """Of one parameter: ``sums`` [experts or 1, inputs] of squares, ``counts`` [experts or 1] of
    tokens; ``last``: whether its inputs lie along its last dimension ([outputs, inputs]).
    """

    sums: Any
    counts: Any
    last: bool


class Squares:
    """The squared inputs of the parameters of a model's blocks. ``around`` goes to
    blockwise.Blockwise.
    """

    def __init__(self) -> None:
        self.found: dict[str, Inputs] = {}

    @contextmanager
    def around(self, name: str, block: Any) -> Iterator[None]:
        """While a block runs."""
        owners = {
            parameter.untyped_storage().data_ptr(): (f"{name}.{own}", parameter)
            for own, parameter in block.named_parameters()
            if parameter.ndim >= 2 and not parameter.is_meta
        }
        with _watching(owners, self._add):
            yield

    def _add(self, name: str, parameter: Any, weight: Any, inputs: Any, last: bool) -> None:
        import torch

        experts = parameter.shape[0] if parameter.ndim == 3 else 1
        width = parameter.shape[-1 if last else -2]
        one = self.found.get(name)
        if one is None:
            one = self.found[name] = Inputs(torch.zeros(experts, width), torch.zeros(experts), last)
        if weight.ndim == 3:  # all experts at once; a token that is not sent to one is zero there
            squares = inputs.float().square()
            one.sums += squares.sum(1).cpu()
            one.counts += squares.any(2).sum(1).cpu()
            return
        expert = weight.storage_offset() // parameter.stride(0) if experts > 1 else 0
        rows = inputs.float().reshape(-1, width)
        one.sums[expert] += rows.square().sum(0).cpu()
        one.counts[expert] += len(rows)


@contextmanager
def _watching(
    owners: dict[int, tuple[str, Any]], add: Callable[[str, Any, Any, Any, bool], None]
) -> Iterator[None]:
    import torch
    from torch.overrides import TorchFunctionMode

    class Watch(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kind = KINDS.get(getattr(function, "__name__", ""))
            if kind is not None:
                tensors = [one for one in args if isinstance(one, torch.Tensor)]
                inputs, weight = [*tensors, None, None, None][kind == ADDMM :][:2]
                if weight is not None and not weight.is_meta:
                    owner = owners.get(weight.untyped_storage().data_ptr())
                    if owner is not None:
                        last = kind == LINEAR
                        if not last and weight.stride(-1) != 1:  # the weight is transposed
                            last = True
                        add(*owner, weight, inputs, last)
            return function(*args, **(kwargs or {}))

    with Watch():
        yield
