"""A causal language model of transformers, run block by block. Runs in workers.

The model's own forward is called with the whole batch, so whatever architectures do between their
blocks is done. Each block is wrapped: its weights are read when it is about to run, the batch goes
through it in parts, and they are given back. What lies outside the blocks stays in memory, but for
embeddings, of which only the rows of the tokens are read, and the output head, which is read in
pieces (see head.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from autoquant.core.errors import CheckFailed
from autoquant.forward import batches
from autoquant.forward.experts import Experts
from autoquant.forward.parameters import Parameters
from autoquant.forward.weights import Quantized, Weights

PART = 2  # rows of the batch that go through a block together on a CPU; more are not faster
EMBEDDING = 1 << 24  # weights of an embedding, above which only rows are read
Seen = Callable[[str, Any], Any]  # of a block's name and module: a context while it runs


class Blockwise:
    """The model of a ``config`` with ``weights``, in float32 on ``device``.

    ``part`` rows of the batch go through a block at a time. With ``ahead`` a thread reads the next
    block's weights while one computes, which takes their memory twice; ``single`` reads the experts
    of a block one by one, when their turn comes. ``around`` gives a context for each block that
    runs, whose weights are there then; ``done`` is called after it. Raises CheckFailed for a
    checkpoint that is not whole.
    """

    def __init__(
        self,
        config: Any,
        weights: Weights,
        *,
        device: Any = "cpu",
        part: int = PART,
        ahead: bool = True,
        single: bool = False,
        around: Seen | None = None,
        done: Callable[[], None] | None = None,
    ) -> None:
        import torch

        from autoquant.formats.dequantized import hook

        self.config, self.device, self.part = config, str(device), part
        self.ahead, self.single, self.around, self.done = ahead, single, around, done
        self.model = built(config)
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[name] = buffer.to(self.device)
        self._towers = tuple(f"{name}." for name in towers_of(self.model))
        self.parameters = Parameters(config, weights, self._towers)
        self.units = self._blocks()
        self.head = self.model.get_output_embeddings()
        self._names = {id(module): name for name, module in self.model.named_modules()}
        self._read_embeddings = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.Embedding)
            and module.weight.numel() > EMBEDDING
            and not name.startswith((*(f"{unit}." for unit in self.units), *self._towers))
        }
        self._load_rest()
        for module in self._read_embeddings.values():
            self._wrap_embedding(module)
        self._taken: dict[str, Any] = {}  # parameters that experts stand for, one by one
        self.plain = {name: block.forward for name, block in self.units.items()}
        for name in self.units:
            self.wrap(name)
        if isinstance(weights, Quantized):
            hook(self.model, weights, self.parameters.taken)
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[str, Future[dict[str, Any]]] | None = None
        self._order = list(self.units)
        self._batch = 0

    def run(self, ids: Any, *, gradients: bool = False) -> Any:
        """The model's own forward on token ids [batch, tokens]."""
        import torch

        self._batch = len(ids)
        with torch.set_grad_enabled(gradients):
            return self.model(input_ids=ids.to(self.device), use_cache=False)

    def name_of(self, module: Any) -> str:
        """A module's name in the model."""
        return str(self._names[id(module)])

    def close(self) -> None:
        """End the thread that reads, and give a GPU's memory back."""
        import torch

        self._pool.shutdown(wait=True, cancel_futures=True)
        if self.device != "cpu":
            torch.cuda.empty_cache()

    # --- weights

    def names_of(self, prefix: str, module: Any) -> list[str]:
        """The parameters of a module, and its buffers that a checkpoint has."""
        own = [name for name, _ in module.named_parameters(remove_duplicate=False)]
        own += [n for n, _ in module.named_buffers() if f"{prefix}.{n}" in self.parameters]
        return [f"{prefix}.{name}" for name in own]

    def put(self, name: str, value: Any) -> None:
        """Give a parameter or buffer its value, in float32 on the device."""
        import torch

        module, _, leaf = name.rpartition(".")
        owner = self.model.get_submodule(module)
        value = value.to(self.device).float()
        if leaf in owner._buffers:
            owner._buffers[leaf] = value.to(owner._buffers[leaf].dtype)
        else:
            owner._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)

    def load(self, prefix: str, ahead: int = 1) -> None:
        """Read a block's weights, or take those that were read ahead; begin with those of the one
        that comes next: ``ahead`` of it, or with -1 before it.
        """
        ready, self._next = self._next, None
        read = ready[1].result() if ready and ready[0] == prefix else self._read(prefix)
        for name in list(read):
            self.put(name, read.pop(name))
        for name in self._one_by_one(prefix) if self.single else ():
            module, _, leaf = name.rpartition(".")
            owner = self.model.get_submodule(module)
            self._taken[name] = taken = owner._parameters.pop(leaf)
            owner.__dict__[leaf] = Experts(self.parameters, name, self.device, taken.shape)
        self._refuse_without_weights(prefix)
        if self.ahead and prefix in self._order:
            at = self._order.index(prefix) + ahead
            if 0 <= at < len(self._order):
                after = self._order[at]
                self._next = (after, self._pool.submit(self._read, after))

    def drop(self, prefix: str) -> None:
        """Give a block's weights back."""
        block = self.units[prefix]
        for name in [one for one in self._taken if one.startswith(f"{prefix}.")]:
            module, _, leaf = name.rpartition(".")
            owner = self.model.get_submodule(module)
            del owner.__dict__[leaf]
            owner._parameters[leaf] = self._taken.pop(name)
        for name, parameter in list(block.named_parameters(remove_duplicate=False)):
            module, _, leaf = name.rpartition(".")
            block.get_submodule(module)._parameters[leaf] = parameter.to("meta")
        _give_back()

    def _read(self, prefix: str) -> dict[str, Any]:
        """A block's weights from wherever they are. They are looked at as they are read, so what
        is mapped from files is in memory then.
        """
        names = self.names_of(prefix, self.units[prefix])
        lazy = self._one_by_one(prefix) if self.single else set()
        names = [name for name in names if name not in lazy]
        self.parameters.expect(names)
        return {name: self.parameters.value(name) for name in names}

    def _one_by_one(self, prefix: str) -> set[str]:
        """The parameters of a block that hold all its experts, and are indexed by them."""
        return {
            f"{prefix}.{name}"
            for name, parameter in self.units[prefix].named_parameters()
            if parameter.ndim == 3 and "experts" in name.split(".")
        }

    def _refuse_without_weights(self, prefix: str) -> None:
        module = self.units[prefix] if prefix else self.model
        outside = (*self._towers, *(f"{unit}." for unit in self.units)) if not prefix else ()
        for name, parameter in module.named_parameters(remove_duplicate=False):
            whole = f"{prefix}.{name}" if prefix else name
            reads = whole.rpartition(".")[0] in self._read_embeddings
            if parameter.is_meta and not (whole.startswith(outside) or reads):
                if not prefix and self._of_head(whole):
                    continue
                raise CheckFailed(f"{whole} has no weights")

    def _of_head(self, name: str) -> bool:
        return name.rpartition(".")[0] == self._names.get(id(self.head))

    def _blocks(self) -> dict[str, Any]:
        """The model's blocks by name, in the order in which they run."""
        from autoquant.source.skeleton import blocks

        found = {}
        for listed in blocks(self.model):
            for number, block in enumerate(self.model.get_submodule(listed)):
                if any(True for _ in block.parameters()):
                    found[f"{listed}.{number}"] = block
        return found

    def _load_rest(self) -> None:
        """Read what lies outside the blocks, but for large embeddings and the output head."""
        inside = (*self._towers, *(f"{unit}." for unit in self.units))
        for name in self.names_of("", self.model):
            name = name.removeprefix(".")
            read = name.rpartition(".")[0] in self._read_embeddings or self._of_head(name)
            if not name.startswith(inside) and not read:
                self.put(name, self.parameters.value(name))
        self._refuse_without_weights("")

    # --- running

    def _wrap_embedding(self, module: Any) -> None:
        """Let an embedding read the rows of its tokens only."""
        import torch

        name, plain = self._names[id(module)], module.forward

        def forward(ids: Any, *rest: Any, **named: Any) -> Any:
            wanted, places = ids.unique(return_inverse=True)
            rows = [
                self.parameters.rows(f"{name}.weight", first, last)[chosen - first]
                for first, last, chosen in _in_pieces(wanted.cpu(), module.num_embeddings)
            ]
            empty = module._parameters["weight"]
            values = torch.cat([one.float() for one in rows]).to(self.device)
            module._parameters["weight"] = torch.nn.Parameter(values, requires_grad=False)
            padding, module.padding_idx = module.padding_idx, None
            try:
                return plain(places, *rest, **named)
            finally:
                module._parameters["weight"], module.padding_idx = empty, padding

        module.forward = forward

    def wrap(self, name: str) -> None:
        """Let a block read its weights, run in parts and give them back."""
        block, plain = self.units[name], self.plain[name]

        def forward(*arguments: Any, **named: Any) -> Any:
            self.load(name)
            try:
                with self.around(name, block) if self.around else nullcontext():
                    return self.in_parts(plain, arguments, named)
            finally:
                self.drop(name)
                if self.done is not None:
                    self.done()

        block.forward = forward

    def in_parts(
        self, plain: Any, arguments: tuple[Any, ...], named: dict[str, Any], part: int = 0
    ) -> Any:
        """A block's own forward on some rows of the batch after the other."""
        first = arguments[0] if arguments else next(iter(named.values()))
        batch, part = self._batch, part or self.part
        axis = batches.axis_of(first, batch)
        if axis is None or batch <= part:
            return plain(*arguments, **named)
        outputs, kept = [], []
        for at in range(0, batch, part):
            rows = slice(at, min(at + part, batch))
            some, others = batches.cut_all(arguments, named, rows, batch)
            outputs.append(plain(*some, **others))
            kept.append(others)
        batches.put_back(named, kept)
        return batches.join(outputs, axis)


def _give_back() -> None:
    """Let the C library return to the system what was freed: it would keep some for each block."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another one than glibc
            ctypes.CDLL(None).malloc_trim(0)


def built(config: Any, dtype: Any = None) -> Any:
    """A config's model without weights, but with the buffers that it computes, in float32 if no
    other ``dtype`` is given. Attention is torch's own; experts run one after the other, which takes
    the least memory.
    """
    import torch
    from accelerate import init_empty_weights

    from autoquant.formats.architecture import class_of

    config._experts_implementation = "eager"
    with init_empty_weights(include_buffers=False):
        model: Any = class_of(config)._from_config(config, dtype=dtype or torch.float32)
    model.tie_weights()
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def block_sizes(config: Any) -> tuple[int, int]:
    """How many values the largest block of a config's model has, and how many with one of its
    experts only.
    """
    from autoquant.source.skeleton import blocks

    model, whole, single = built(config), [0], [0]
    for block in (one for name in blocks(model) for one in model.get_submodule(name)):
        sizes = {
            name: (one.numel(), one.shape[0] if one.ndim == 3 and "experts" in name else 1)
            for name, one in block.named_parameters()
        }
        whole.append(sum(size for size, _ in sizes.values()))
        single.append(sum(size // experts for size, experts in sizes.values()))
    return max(whole), max(single)


def towers_of(model: Any) -> list[str]:
    """The parts of a model that see or hear."""
    from autoquant.source.skeleton import towers

    return towers(model)


def _in_pieces(wanted: Any, rows: int, step: int = 1 << 14) -> Iterator[tuple[int, int, Any]]:
    """Spans of an embedding's rows, with those of the ``wanted`` (sorted) in each."""
    for first in range(0, rows, step):
        last = min(first + step, rows)
        chosen = wanted[(wanted >= first) & (wanted < last)]
        if len(chosen):
            yield first, last, chosen
