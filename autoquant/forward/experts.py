"""The experts of a block, read one by one: their forward indexes the parameter that holds them all.
Runs in workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autoquant.forward.parameters import Parameters


class Experts:
    """Stands for a parameter [experts, …]: an expert is read when it is asked for. Where a model
    uses all at once (Llama 4), all are read.
    """

    def __init__(self, parameters: Parameters, name: str, device: str, shape: Any) -> None:
        self._parameters, self._name, self._device, self._shape = parameters, name, device, shape
        self.read: Callable[[str, Any, int, Any], None] | None = None
        """Is told of each that is read: the parameter, its shape, the expert, its weights."""

    def __getitem__(self, expert: Any) -> Any:
        found = self._read([int(expert)])[0]
        if self.read is not None:
            self.read(self._name, self._shape, int(expert), found)
        return found

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        whole = [one._read(None) if isinstance(one, Experts) else one for one in args]
        return function(*whole, **(kwargs or {}))

    def _read(self, experts: Sequence[int] | None) -> Any:
        return self._parameters.value(self._name, experts).to(self._device).float()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._read(None), name)
