"""From sizes to files: what may be chosen, what is chosen, and the plan of such a file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoquant.backends.llamacpp.types import (
    TYPES,
    UNQUANTIZED,
    chosen_name,
)
from autoquant.core import gguf_head
from autoquant.core.errors import InputError
from autoquant.core.version import __version__
from autoquant.display.tables import size as in_words
from autoquant.fisher import choice
from autoquant.fisher.choice import Cost
from autoquant.fisher.table import Sensitivities
from autoquant.methods.gguf.options import AUTO, GgufOptions
from autoquant.methods.size import BPW, UNITS, Size

# what every runtime is fast with; for rows that are no multiple of 256 there is less
FAST = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_NL", "IQ4_XS", "Q3_K", "Q2_K")
SLOW = ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
ALWAYS = "Q8_0"  # fits the shortest rows that llama.cpp quantizes
LEGACY = ("Q5_1", "Q5_0", "Q4_1", "Q4_0")
SMALL = "Q3_K_S"  # below its size the slow types are worth their time
STOCK = tuple(name for name, row in TYPES.items() if not row.special and name not in UNQUANTIZED)
KEYS = "autoquant."  # begins the names of what a file's header says of its types


def measured(
    options: GgufOptions, head: gguf_head.Head, stock: Mapping[str, Any]
) -> dict[str, list[str]]:
    """The types that each tensor of a model is tried with, by the tensors that llama.cpp quantizes:
    those that may ever be chosen, for a table serves any size; or the candidates that are asked
    for. ``stock`` is the plan of a type.
    """
    found = {}
    for name, kind in stock["tensors"].items():
        entry = head.tensors[name]
        if kind in UNQUANTIZED or entry.type not in UNQUANTIZED or len(entry.shape) < 2:
            continue
        width = entry.shape[0]
        kinds = (*FAST, *SLOW, *(LEGACY if width % 256 else ()))
        if options.candidates != (AUTO,):
            kinds = options.candidates
        found[name] = [kind for kind in kinds if _fits(kind, width)] or [ALWAYS]
    return found


def _fits(kind: str, width: int) -> bool:
    return kind not in UNQUANTIZED and width % gguf_head.TYPES[gguf_head.NUMBERS[kind]][1] == 0


def candidates(
    options: GgufOptions, table: Sensitivities, whole: str, *, small: bool
) -> dict[str, tuple[str, ...]]:
    """The types that each tensor may have in a file; ``small``: of one below the size of SMALL. The
    unquantized type ``whole`` loses nothing.
    """
    found = {}
    for name, row in table.tensors.items():
        width = row.shape[0]
        usual = (*FAST, *(SLOW if small else ()), *(LEGACY if width % 256 else ()))
        kinds = usual if options.candidates == (AUTO,) else options.candidates
        fitting = tuple(kind for kind in kinds if _fits(kind, width))
        lacking = [kind for kind in fitting if kind not in row.nats]
        if lacking and options.candidates != (AUTO,):
            raise InputError(
                f"candidates: the table of sensitivities has nothing of {lacking[0]} for {name};"
                " measure again (leave sensitivity out), or leave that out"
            )
        # of what was asked for nothing fits such rows: what always does
        found[name] = (*(fitting or (ALWAYS,)), whole)
    return found


@dataclass(frozen=True)
class Model:
    """What sizes are chosen for: the ``head`` of its unquantized file, the plans of the types of
    llama.cpp that can be made of it (``stock``, by name), and the unquantized type ``whole``.
    """

    head: gguf_head.Head
    stock: dict[str, dict[str, Any]]
    whole: str

    @classmethod
    def of(cls, head: gguf_head.Head, plans: Sequence[dict[str, Any]], whole: str) -> Model:
        """By the plans of a dry run. Raises InputError if llama.cpp can make none of them."""
        possible = {one["type"]: one for one in plans if "impossible" not in one}
        if not possible:
            raise InputError(
                f"size: llama.cpp cannot quantize this model: {plans[0]['impossible']}"
            )
        return cls(head, possible, whole)

    def bytes(self, size: Size) -> int:
        """What a file of a size may take. Raises InputError for a type that cannot be made."""
        if size.type:
            if size.type not in self.stock:
                raise InputError(f"size: {size.type} cannot be made from this model")
            return int(self.stock[size.type]["bytes"])
        if size.unit == BPW:
            elements = sum(one.elements for one in self.head.tensors.values())
            return int(self.head.data_offset + elements * size.number / 8)
        return int(size.number * UNITS[size.unit.upper()])

    def nearest(self, size: int) -> str:
        """The type of llama.cpp that is nearest in size."""
        return min(self.stock, key=lambda name: abs(math.log(self.stock[name]["bytes"] / size)))

    def compared(self, options: GgufOptions, sizes: Sequence[int]) -> tuple[str, ...]:
        """The types that files of these sizes are compared with."""
        if not options.compares:
            return ()
        if options.against == (AUTO,):
            return tuple(dict.fromkeys(map(self.nearest, sizes)))
        for name in options.against:
            if name not in (*self.stock, *UNQUANTIZED):
                raise InputError(f"against: {name} cannot be made from this model")
        return options.against

    def refuse(self, size: Size, budget: int, smallest: int) -> None:
        """Refuse what cannot be reached. Raises InputError."""
        unquantized = self.head.data_offset + sum(
            -(-one.bytes // self.head.alignment) * self.head.alignment
            for one in self.head.tensors.values()
        )
        if budget < smallest:
            raise InputError(
                f"size: {size} is {in_words(budget)}, and the smallest file that can be made of"
                f" this model has {in_words(smallest)}"
                + _bits(smallest, self.head)
                + ". Ask for as much, or take a smaller model"
            )
        if budget >= unquantized:
            raise InputError(
                f"size: {size} is {in_words(budget)}, and the unquantized file has no more than"
                f" {in_words(unquantized)}: nothing need be lost. Take types {self.whole}, or a"
                " smaller size"
            )

    def smallest(self, options: GgufOptions) -> int:
        """The fewest bytes that a file can have, if all types can be made."""
        stock = min(self.stock.values(), key=lambda one: int(one["bytes"]))
        kinds = measured(options, self.head, stock)
        least = {
            name: min(every, key=lambda kind: self._bytes(name, kind))
            for name, every in kinds.items()
        }
        return self._laid({**stock["tensors"], **least}, stock["order"], options, {})

    def least(self, options: GgufOptions, table: Sensitivities) -> int:
        """The fewest bytes that a file of a table's types can have, within a thousandth."""
        found = self.smallest(options)
        for small in (True, False):  # without the slow types, if they come too late
            costs = self._costs(options, table, small=small)
            found = self._least(options, Size(found, "B"), found, costs)
            if self._small(found) == small:
                break
        return found

    def chosen(self, options: GgufOptions, table: Sensitivities, size: Size) -> dict[str, Any]:
        """The plan of the best file of a size, as backends.llamacpp.quantize has plans, with the
        predicted damage (``nats``) and the ``keys`` that its header gets. Raises InputError for a
        size that cannot be reached.
        """
        budget = self.bytes(size)
        costs = self._costs(options, table, small=self._small(budget))
        others, order = self._base(budget, costs)
        least = self._least(options, size, budget, costs)
        self.refuse(size, budget, least)
        # the header says which types were chosen: how long it is, is known when they are
        beside = least - choice.least(costs)
        fewest = choice.least(costs)
        while True:
            found = choice.choose(costs, max(fewest, budget - beside))
            types = others | found.types
            keys = self._keys(size, types, found.nats)
            taken = self._laid(types, order, options, keys)
            if taken <= budget:
                break
            if found.bytes == fewest:
                self.refuse(size, budget, taken)
            beside += taken - budget  # shards: where they are cut depends on the types
        stored = sum(self._bytes(name, kind, aligned=False) for name, kind in types.items())
        elements = sum(one.elements for one in self.head.tensors.values())
        weights = Counter[str]()
        for name, kind in types.items():
            weights[kind] += self.head.tensors[name].elements * (
                len(self.head.tensors[name].shape) > 1
            )
        most = weights.most_common(1)[0][0]
        bits = stored * 8 / elements
        return {
            "type": chosen_name(most, bits),
            "bytes": taken,
            "converted_bytes": taken,
            "bits_per_weight": bits,
            "needs_imatrix": False,
            "tensors": {name: types[name] for name in self.head.tensors},
            "order": order,
            "fallbacks": {},
            "keys": keys,
            "nats": found.nats,
        }

    def _small(self, budget: int) -> bool:
        """Whether a file of so many bytes may have slow types."""
        return budget < int(self.stock.get(SMALL, {}).get("bytes", 0))

    def _costs(
        self, options: GgufOptions, table: Sensitivities, *, small: bool
    ) -> dict[str, dict[str, Cost]]:
        allowed = candidates(options, table, self.whole, small=small)
        costs = table.costs(allowed, self.head.alignment)
        for name, kinds in costs.items():
            kinds[self.whole] = Cost(self._bytes(name, self.whole), 0.0)
        return costs

    def _base(self, budget: int, costs: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
        """The types of what was not measured, which are those of the file of llama.cpp that is
        nearest; and the order of all tensors.
        """
        base = self.stock[self.nearest(budget)]
        order = [name for name in base["order"] if name in base["tensors"]]
        return {name: kind for name, kind in base["tensors"].items() if name not in costs}, order

    def _least(
        self,
        options: GgufOptions,
        size: Size,
        budget: int,
        costs: Mapping[str, Mapping[str, Cost]],
    ) -> int:
        others, order = self._base(budget, costs)
        types = others | {
            name: min(kinds, key=lambda kind: kinds[kind].bytes) for name, kinds in costs.items()
        }
        return self._laid(types, order, options, self._keys(size, types, 0))

    def _bytes(self, name: str, kind: str, *, aligned: bool = True) -> int:
        _, block, size = gguf_head.TYPES[gguf_head.NUMBERS[kind]]
        plain = self.head.tensors[name].elements // block * size
        alignment = self.head.alignment if aligned else 1
        return -(-plain // alignment) * alignment

    def _laid(
        self,
        types: Mapping[str, str],
        order: Sequence[str],
        options: GgufOptions,
        keys: Mapping[str, str],
    ) -> int:
        """The exact size of a file, or of all its shards."""
        laid = gguf_head.quantized(self.head, types, order, 0, options.split_bytes, keys)
        return sum(one.size for one in laid)

    def _keys(self, size: Size, types: Mapping[str, str], nats: float) -> dict[str, str]:
        """What a file's header says of its types: a line for each tensor, as llama-quantize's
        --tensor-type-file reads it.
        """
        lines = "\n".join(f"{name}={kind}" for name, kind in types.items() if kind != "F32")
        return {
            f"{KEYS}version": __version__,
            f"{KEYS}size": str(size),
            f"{KEYS}predicted_kl_divergence": f"{nats:.6f}",
            f"{KEYS}tensor_types": lines,
        }


def _bits(size: int, head: gguf_head.Head) -> str:
    elements = sum(one.elements for one in head.tensors.values())
    return f" ({8 * (size - head.data_offset) / elements:.2f} bits per weight)"


def recipe(plan: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """How many tensors of each kind (attn_q, ffn_down …) have which type, for tables."""
    found: dict[str, Counter[str]] = {}
    for name, kind in plan["tensors"].items():
        if kind in UNQUANTIZED and not name.endswith(("embd.weight", "output.weight")):
            continue
        part = name.removesuffix(".weight").split(".")[-1]
        found.setdefault(part, Counter())[kind] += 1
    return {part: dict(kinds.most_common()) for part, kinds in found.items()}


def asked(options: GgufOptions) -> list[Any]:
    """The options that a choice depends on."""
    against = options.against if options.compares else ()
    return [options.size, against, options.candidates, options.split_size]
