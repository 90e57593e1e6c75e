"""Mixtures of experts whose checkpoints have a block's experts in one tensor (Llama 4, GPT-OSS), of
files that have them one by one: transformers does not join these. Runs in workers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autoquant.formats.architecture import Match, match

EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")


def transposed(experts: Any) -> bool:
    """Whether a module of experts has its matrices as [experts, inputs, outputs] (Llama 4, GPT-OSS)
    and not as [experts, outputs, inputs].
    """
    said = getattr(experts, "is_transposed", None)
    if said is not None:
        return bool(said)
    width = getattr(experts, "hidden_size", getattr(experts, "hidden_dim", 0))
    shape = experts.gate_up_proj.shape if hasattr(experts, "gate_up_proj") else (0, 0, 0)
    return bool(shape[1] == width != shape[2])


def interleaved(experts: Any) -> bool:
    """Whether gate and up projections take turns in one matrix (GPT-OSS), instead of one after the
    other.
    """
    return not getattr(experts, "is_concatenated", True)


class Joined:
    """A checkpoint's tensors as the model of ``kind`` takes them: those that it misses joined of
    experts one by one. ``shapes`` are those of the files, ``value`` gives a tensor of the files.
    ``match`` is that of the joined ones.
    """

    def __init__(
        self,
        kind: str,
        config: Any,
        shapes: Mapping[str, Sequence[int]],
        value: Callable[[str], Any],
    ) -> None:
        self._value = value
        self._groups: dict[str, dict[str, dict[int, str]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {n: tuple(one) for n, one in shapes.items()}
        self.match: Match = match(kind, config, shapes)
        missed = [n for n in map(str, self.match.info["missing_keys"]) if ".experts." in n]
        for name in list(shapes) if missed else ():
            if found := EXPERT.fullmatch(name):
                one = self._groups.setdefault(found[1], {}).setdefault(found[3], {})
                one[int(found[2])] = name
        if not self._groups:
            return
        modules = self.match.model.modules()
        owner = next((one for one in modules if hasattr(one, "gate_up_proj")), None)
        self._transposed, self._interleaved = transposed(owner), interleaved(owner)
        for base, halves in self._groups.items():
            count = len(halves["down_proj"])
            rows, inputs = self.shapes[halves["up_proj"][0]]
            sides = {"gate_up_proj": (2 * rows, inputs), "down_proj": (inputs, rows)}
            for last, (outputs, width) in sides.items():
                whole = (width, outputs) if self._transposed else (outputs, width)
                self.shapes[f"{base}.{last}"] = (count, *whole)
            for half in halves.values():
                for name in half.values():
                    del self.shapes[name]
        self.match = match(kind, config, self.shapes)

    def parts(self, name: str) -> list[str]:
        """The tensors of the files that one is made of."""
        base, _, last = name.rpartition(".")
        if base not in self._groups or last not in ("gate_up_proj", "down_proj"):
            return [name]
        halves = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
        return [one for half in halves for one in self._groups[base][half].values()]

    def value(
        self,
        name: str,
        experts: Sequence[int] | None = None,
        read: Callable[[str], Any] | None = None,
    ) -> Any:
        """One tensor; of experts that are joined here all, or some. None of another tensor's.
        ``read`` gives other values in the place of the files'.
        """
        import torch

        read = read or self._value
        base, _, last = name.rpartition(".")
        if base not in self._groups or last not in ("gate_up_proj", "down_proj"):
            return read(name)
        halves = self._groups[base]

        def stacked(half: str) -> Any:
            which = sorted(halves[half]) if experts is None else experts
            return torch.stack([read(halves[half][i]) for i in which])

        if last == "down_proj":
            whole = stacked(last)
        elif self._interleaved:
            gates, ups = stacked("gate_proj"), stacked("up_proj")
            whole = torch.stack([gates, ups], dim=2).flatten(1, 2)
        else:
            whole = torch.cat([stacked("gate_proj"), stacked("up_proj")], dim=1)
        return whole.transpose(1, 2).contiguous() if self._transposed else whole
