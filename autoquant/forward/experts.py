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

    def __init__(self, parameters: Parameters, name: str, device: str) -> None:
        self._parameters, self._name, self._device = parameters, name, device

    def __getitem__(self, expert: Any) -> Any:
        return self._read([int(expert)])[0]

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
