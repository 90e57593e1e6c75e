"""Merging a LoRA adapter into a model tensor by tensor, by peft's own arithmetic, in float32. Runs
in a worker.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoquant.core.errors import InputError
from autoquant.formats.checkpoint import weight_files
from autoquant.formats.tensors import Tensors
from autoquant.formats.writer import ShardWriter
from autoquant.runtime.worker import Report
from autoquant.source.adapter import of_pattern, split
from autoquant.source.headers import headers_of, read_json
from autoquant.source.weights import ADAPTER, ADAPTER_CONFIG


def merge(base: str, adapter: str, target: str, modules: dict[str, str], *, report: Report) -> None:
    """Write the merged model's weights into ``target``, each in its base tensor's dtype.
    ``modules`` gives each module's tensor in the base's files.

    rsLoRA, DoRA and patterns of ranks and alphas are peft's; what the adapter brings whole takes
    the place of the base's. Raises InputError for values that are not finite.
    """
    import torch
    from safetensors.torch import load_file

    config = read_json(Path(adapter) / ADAPTER_CONFIG)
    changes: dict[str, dict[str, Any]] = {}
    for name, tensor in load_file(Path(adapter) / ADAPTER).items():
        module, part = split(name)
        changes.setdefault(modules[module], {"module": module})[part] = tensor.float()
    tensors = Tensors(base)
    names = list(headers_of(Path(base), [path.name for path in weight_files(Path(base))]))
    with ShardWriter(Path(target), names) as out:
        for i, name in enumerate(names, 1):
            before = tensors.raw(name)
            after = before
            if (change := changes.get(name)) is not None:
                after = _changed(before.float(), change, config)
                if not torch.isfinite(after).all():
                    raise InputError(f"{name} has NaN or Inf values after merging the adapter")
            dtype = before.dtype if before.is_floating_point() else after.dtype
            out.add(name, after.to(dtype))
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
