"""The parameters of a model of transformers, made of a checkpoint's tensors one by one, by
transformers' own transforms; the one place where what is wrong with a weight is refused. Runs in
workers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from autoquant.core.errors import CheckFailed
from autoquant.formats.architecture import Maker, class_of
from autoquant.formats.experts import Joined
from autoquant.forward.weights import Weights
from autoquant.runtime.worker import out_of_memory

NAMED = 3  # tensors named in an error


class Parameters:
    """The parameters of a ``config``'s model by name; ``weights`` gives the checkpoint's tensors.

    Raises CheckFailed, naming the tensor, for a checkpoint that lacks some, or has some of another
    shape; and when one is read, whatever it is made of, for one that cannot be made, has another
    shape than the model's, or NaN or Inf among its values. ``outside`` are the beginnings of names
    that are not looked at: of parts that see or hear.
    """

    def __init__(self, config: Any, weights: Weights, outside: Sequence[str] = ()) -> None:
        self.weights, self._config = weights, config
        kind = class_of(config).__name__
        # a copy: to be matched it is told how to attend
        self._joined = Joined(kind, copy.deepcopy(config), weights.shapes, self._read)
        matched = self._joined.match
        self.taken, self._tied = matched.taken, dict(matched.model.all_tied_weights_keys or {})
        self._model = matched.model
        missing = [
            str(name)
            for name in sorted(matched.info["missing_keys"])
            if not str(name).startswith(tuple(outside))
        ]
        odd = [name for name, *_ in matched.info["mismatched_keys"]]
        if missing or odd:
            listed = ", ".join([*missing, *map(str, odd)][:NAMED])
            raise CheckFailed(f"tensors missing or of another shape: {listed}")
        self._whole: tuple[str, Any] = ("", None)
        self._shapes = {n: tuple(one.shape) for n, one in self._model.state_dict().items()}
        # one transform may make several: which, it says of tensors without data
        self._by: dict[str, tuple[str, Maker]] = {}
        for target, maker in matched.makers.items():
            made = [target]
            if not self._plain(maker):
                made = list(self._convert(target, maker, self._without_data))
            self._by |= dict.fromkeys(made, (target, maker))

    def __contains__(self, name: str) -> bool:
        return self._tied.get(name, name) in self._by

    def value(self, name: str, experts: Sequence[int] | None = None) -> Any:
        """One parameter, or of one that holds a block's experts the ``experts`` with these numbers,
        in a dtype of the checkpoint.
        """
        count = None if experts is None else len(experts)
        return self._sound(name, self._value(name, experts), count)

    def _value(self, name: str, experts: Sequence[int] | None) -> Any:
        target, maker = self._by[self._tied.get(name, name)]
        if self._plain(maker):
            return self._one(maker.tensors[0][0], experts)
        if experts is None:
            return self._convert(target, maker, self._joined.value)[name]
        # of tensors of one expert each those of the experts, by their places
        counts: dict[str, list[str]] = {}
        for tensor, pattern in maker.tensors:
            counts.setdefault(pattern, []).append(tensor)
        some = Maker(
            maker.transform,
            [(tensors[i], pattern) for pattern, tensors in counts.items() for i in experts]
            if len(next(iter(counts.values()))) > 1
            else maker.tensors,
        )
        whole = len(next(iter(counts.values()))) == 1
        read = (lambda one: self._one(one, experts)) if whole else self._joined.value
        return self._convert(target, some, read)[name]

    def rows(self, name: str, first: int, last: int) -> Any:
        """Some rows of one parameter."""
        _, maker = self._by[self._tied.get(name, name)]
        tensors = self._joined.parts(maker.tensors[0][0])
        if self._plain(maker) and len(tensors) == 1:
            with _reading(tensors[0]):
                found = self.weights.rows(tensors[0], first, last)
            if found is not None:
                return self._sound(name, found, last - first)
        if self._whole[0] != name:  # what is read in pieces is not made anew for each
            self._whole = (name, self.value(name))
        return self._whole[1][first:last]

    def places(self) -> dict[str, tuple[str, int | None]]:
        """Of each of the checkpoint's tensors the parameter that it goes into, and which expert's
        it is, if that holds several.
        """
        found: dict[str, tuple[str, int | None]] = {}
        for name, (_, maker) in self._by.items():
            counts = dict[str, int]()
            for tensor, pattern in maker.tensors:
                for stored in self._joined.parts(tensor):
                    key = f"{pattern} {stored.rpartition('.')[0].rpartition('.')[2]}"
                    at = counts[key] = counts.get(key, -1) + 1
                    found[stored] = (name, at)
            if max(counts.values(), default=0) == 0:
                found |= {one: (name, None) for one, (owner, _) in found.items() if owner == name}
        return found

    def given_back(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values of parameters (by name, in their shapes), as the checkpoint's tensors that these
        are made of have them: what is done to a tensor is done to the places in it. Places of
        parameters without values have zeros.
        """
        import torch

        found: dict[str, Any] = {}
        of: dict[str, list[str]] = {}
        for name in values:
            of.setdefault(self._by[self.origin(name)][0], []).append(name)
        for target, names in of.items():
            maker = self._by[self.origin(names[0])][1]
            tensors = [one for tensor, _ in maker.tensors for one in self._joined.parts(tensor)]
            if len(tensors) == 1 and self._plain(maker):
                found[tensors[0]] = values[names[0]]
                continue
            places, at = {}, 0
            for one in tensors:
                shape = tuple(self.weights.shapes[one])
                end = at + math.prod(shape)
                places[one] = torch.arange(at, end, dtype=torch.int32).reshape(shape)
                at = end
            made = self._convert(
                target, maker, lambda one, p=places: self._joined.value(one, read=p.__getitem__)
            )
            flat = torch.zeros(at, device=values[names[0]].device)
            for name in names:
                place = made[self.origin(name)].flatten().long().to(flat.device)
                flat[place] = values[name].flatten().float()
            sizes = [one.numel() for one in places.values()]
            for one, part in zip(tensors, flat.split(sizes), strict=True):
                found[one] = part.reshape(places[one].shape)
        return found

    def expect(self, names: Iterable[str]) -> None:
        """Say which parameters will be asked for soon."""
        makers = (self._by[self._tied.get(name, name)][1] for name in names)
        tensors = (tensor for maker in makers for tensor, _ in maker.tensors)
        self.weights.expect(one for tensor in tensors for one in self._joined.parts(tensor))

    def origin(self, name: str) -> str:
        """The parameter that one shares its values with; itself if there is none."""
        return str(self._tied.get(name, name))

    def _read(self, tensor: str) -> Any:
        """One of the checkpoint's tensors, whatever it is made of."""
        with _reading(tensor):
            return self.weights.value(tensor)

    def _sound(self, name: str, value: Any, count: int | None = None) -> Any:
        """A parameter's value, or ``count`` of its rows or experts, unless something is wrong with
        it.
        """
        wanted = self._shapes.get(name, tuple(value.shape))
        wanted = wanted if count is None else (count, *wanted[1:])
        if tuple(value.shape) != wanted:
            raise CheckFailed(f"{name} has shape {list(value.shape)} instead of {list(wanted)}")
        if not _finite(value):
            raise CheckFailed(f"{name} has NaN or Inf values")
        return value

    def _plain(self, maker: Maker) -> bool:
        """Whether a parameter is one tensor as it is."""
        return len(maker.tensors) == 1 and not getattr(maker.transform, "operations", None)

    def _one(self, tensor: str, experts: Sequence[int] | None) -> Any:
        import torch

        if experts is None:
            return self._joined.value(tensor)
        if len(self._joined.parts(tensor)) > 1:
            return self._joined.value(tensor, experts)
        with _reading(tensor):
            rows = [self.weights.rows(tensor, i, i + 1) for i in experts]
        if any(one is None for one in rows):
            return self._joined.value(tensor)[list(experts)]
        return torch.cat(rows)

    def _without_data(self, tensor: str) -> Any:
        import torch

        return torch.empty(self._joined.shapes[tensor], device="meta")

    def _convert(self, target: str, maker: Maker, read: Any) -> dict[str, Any]:
        """What a transform makes of its tensors, by parameter."""
        maker.transform.collected_tensors.clear()
        for tensor, pattern in maker.tensors:
            maker.transform.collected_tensors[pattern].append(read(tensor))
        made = maker.transform.convert(target, model=self._model, config=self._config)
        return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}


@contextmanager
def _reading(tensor: str) -> Iterator[None]:
    """Name the tensor that a reader fails on: of a quantized one a part may be missing, or have
    another shape than the others.
    """
    try:
        yield
    except (LookupError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        lacks = "is missing" if isinstance(error, KeyError) else ""
        raise CheckFailed(f"{tensor} cannot be read: {error} {lacks}".rstrip()) from error


def _finite(value: Any) -> bool:
    """Whether all numbers of a tensor are finite in float32."""
    import torch

    if value.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        value = value.float()
    # a sum is fastest, and not finite where one of its terms is not; that of many float16 may be
    # too large all the same
    if value.sum().isfinite() or not value.numel():
        return True
    return bool(torch.stack(value.aminmax()).isfinite().all())
