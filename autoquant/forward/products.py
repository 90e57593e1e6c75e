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

from autoquant.forward.experts import Experts

Owner = tuple[str, Any, Any, int | None]
"""Of a weight in memory: its parameter, that one's shape, the tensor, and which expert it is where
that is not told by its place in the parameter."""
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
        owners: dict[int, Owner] = {
            one.untyped_storage().data_ptr(): (f"{name}.{own}", one.shape, one, None)
            for own, one in block.named_parameters()
            if one.ndim >= 2 and not one.is_meta
        }
        latest: dict[str, int] = {}

        def read(parameter: str, shape: Any, expert: int, weight: Any) -> None:
            # held here until the next one is read: its memory is nobody else's before
            owners.pop(latest.get(parameter, 0), None)
            latest[parameter] = weight.untyped_storage().data_ptr()
            owners[latest[parameter]] = (parameter, shape, weight, expert)

        for module in block.modules():
            for one in vars(module).values():
                if isinstance(one, Experts):
                    one.read = read
        with _watching(owners, self._add):
            yield

    def _add(self, owner: Owner, weight: Any, inputs: Any, last: bool) -> None:
        import torch

        name, shape, held, expert = owner
        experts, width = shape[0] if len(shape) == 3 else 1, shape[-1 if last else -2]
        one = self.found.get(name)
        if one is None:
            one = self.found[name] = Inputs(torch.zeros(experts, width), torch.zeros(experts), last)
        if weight.ndim == 3:  # all experts at once; a token that is not sent to one is zero there
            squares = inputs.float().square()
            one.sums += squares.sum(1).cpu()
            one.counts += squares.any(2).sum(1).cpu()
            return
        if expert is None:
            expert = weight.storage_offset() // held.stride(0) if experts > 1 else 0
        rows = inputs.float().reshape(-1, width)
        one.sums[expert] += rows.square().sum(0).cpu()
        one.counts[expert] += len(rows)


@contextmanager
def _watching(
    owners: dict[int, Owner], add: Callable[[Owner, Any, Any, bool], None]
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
                        add(owner, weight, inputs, last)
            return function(*args, **(kwargs or {}))

    with Watch():
        yield
