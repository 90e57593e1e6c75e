"""Models whose tensors are made when they are read: of a LoRA adapter and what it changes, by
peft's own arithmetic, in float32; of a quantized checkpoint its 16-bit form. Runs in workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from autoquant.core.errors import InputError
from autoquant.core.records import Source
from autoquant.formats.checkpoint import weight_files
from autoquant.formats.tensors import Tensors
from autoquant.formats.writer import ShardWriter
from autoquant.runtime.worker import Report
from autoquant.source.adapter import of_pattern, split, tensors_by_module
from autoquant.source.headers import headers_of, read_json
from autoquant.source.unquantized import Form
from autoquant.source.weights import ADAPTER, ADAPTER_CONFIG


class Model(Protocol):
    """A model whose tensors are made when they are asked for."""

    def needs(self, name: str) -> list[str]:
        """The stored tensors that one is made of."""

    def value(self, name: str) -> Any:
        """One tensor, as torch has it."""

    def rows(self, name: str, first: int, last: int) -> Any:
        """Some rows of one (of its first dimension); None where only the whole can be made."""


class Plain:
    """A model whose tensors are those that are stored."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def needs(self, name: str) -> list[str]:
        """Itself."""
        return [name]

    def value(self, name: str) -> Any:
        """One tensor, as torch has it."""
        return self.tensors.raw(name)

    def rows(self, name: str, first: int, last: int) -> Any:
        """Some rows of one."""
        return self.tensors.rows(name, first, last)


class Merged:
    """A ``base`` with the adapter in a folder, each tensor in its base's dtype. ``modules`` gives
    each module's tensor in the base.

    rsLoRA, DoRA and patterns of ranks and alphas are peft's; what the adapter brings whole takes
    the place of the base's.
    """

    def __init__(self, adapter: str, modules: Mapping[str, str], base: Model) -> None:
        from safetensors.torch import load_file

        self.base, self.needs = base, base.needs
        self.config = read_json(Path(adapter) / ADAPTER_CONFIG)
        self.changes: dict[str, dict[str, Any]] = {}
        for name, tensor in load_file(Path(adapter) / ADAPTER).items():
            module, part = split(name)
            change = self.changes.setdefault(modules[module], {"module": module})
            change[part] = tensor.float()

    def rows(self, name: str, first: int, last: int) -> Any:
        """Some rows of one that the adapter does not change."""
        return None if name in self.changes else self.base.rows(name, first, last)

    def value(self, name: str) -> Any:
        """One tensor, as torch has it. Raises InputError for values that are not finite."""
        import torch

        before = self.base.value(name)
        change = self.changes.get(name)
        if change is None:
            return before
        after = _changed(before.float(), change, self.config)
        if not torch.isfinite(after).all():
            raise InputError(f"{name} has NaN or Inf values after merging the adapter")
        return after.to(before.dtype if before.is_floating_point() else after.dtype)


def model_of(
    folder: Path, tensors: Tensors, *, stored: bool, adapter: str, modules: Mapping[str, str]
) -> Model:
    """The model of the stored ``tensors``: ``folder`` has their config and headers, ``stored`` says
    that they are quantized, ``adapter`` is the folder of one that changes it, or empty.
    """
    base: Model = Form(folder, tensors) if stored else Plain(tensors)
    return Merged(adapter, modules, base) if adapter else base


def made_of(source: Source) -> dict[str, Any] | None:
    """How a worker makes the tensors of a model that is not made: see :func:`model_of`;
    None for one that has nothing to be made.
    """
    if source.stored_in is None and source.adapter is None:
        return None
    base = source.adapted or source
    return {
        "outline": str(source.folder),
        "files": str(base.stored_in or base.folder),
        "stored": base.stored_in is not None,
        "adapter": str(source.adapter or ""),
        "modules": tensors_by_module(base) if source.adapter else {},
    }


def merge(base: str, adapter: str, target: str, modules: dict[str, str], *, report: Report) -> None:
    """Write the merged model's weights into ``target`` (see :class:`Merged`). Runs in a worker."""
    model = Merged(adapter, modules, Plain(Tensors(base)))
    names = list(headers_of(Path(base), [path.name for path in weight_files(Path(base))]))
    with ShardWriter(Path(target), names) as out:
        for i, name in enumerate(names, 1):
            out.add(name, model.value(name))
            report(i, len(names))


def _changed(weight: Any, change: dict[str, Any], config: dict[str, Any]) -> Any:
    """A weight with its change."""
    import torch
    from peft import LoraConfig, get_peft_model

    weight = change.get("", weight)
    if not any(part.startswith(".lora") for part in change):
        return weight
    embeds = ".lora_embedding_A" in change
    first, second = (
        (".lora_embedding_A", ".lora_embedding_B")
        if embeds
        else (".lora_A.weight", ".lora_B.weight")
    )
    rows, columns = weight.shape

    class One(torch.nn.Module):  # type: ignore[misc]
        """A model of that one layer."""

        def __init__(self) -> None:
            super().__init__()
            kind: Any = torch.nn.Embedding if embeds else torch.nn.Linear
            self.layer = kind(rows, columns) if embeds else kind(columns, rows, bias=False)
            self.layer.weight.data = weight

    model: Any = get_peft_model(
        One(),
        LoraConfig(
            r=change[first].shape[0],
            lora_alpha=of_pattern(config, "alpha_pattern", "lora_alpha", change["module"]),
            target_modules=["layer"],
            use_rslora=bool(config.get("use_rslora")),
            use_dora=bool(config.get("use_dora")),
        ),
    )
    layer = model.base_model.model.layer
    if embeds:
        layer.lora_embedding_A["default"].data = change[first]
        layer.lora_embedding_B["default"].data = change[second]
    else:
        layer.lora_A["default"].weight.data = change[first]
        layer.lora_B["default"].weight.data = change[second]
    if (vector := change.get(".lora_magnitude_vector")) is not None:
        layer.lora_magnitude_vector["default"].weight.data = vector
    return model.merge_and_unload().layer.weight.data
