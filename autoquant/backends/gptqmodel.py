"""GPTQ and AWQ by GPTQModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoquant import calibration
from autoquant.backends.folder import (
    begin,
    blocks_of,
    freeze,
    keep_config,
    keep_unquantized,
    tidy,
    used,
)
from autoquant.core.errors import InputError
from autoquant.runtime.worker import Report


def quantize(
    model: str,
    target: str,
    packing: dict[str, Any],
    *,
    algorithm: str,
    bits: int,
    group_size: int,
    sym: bool,
    batch_size: int,
    scratch: str,
    report: Report,
    desc_act: bool = False,
    damp_percent: float = 0.05,
) -> dict[str, Any]:
    """GPTQ or AWQ (``algorithm`` "gptq", "awq") with GPTQModel, on a GPU if there is one.

    The samples must all have one length (as calibration.pack makes them): of samples that differ,
    GPTQModel 7.6's AWQ looks at the last batch only, and on a CPU it then scales the inputs that q,
    k and v share three times over, because it keeps them without a copy (KL 0.15 instead of 0.06 on
    four layers of SmolLM2-135M).
    """
    config, dtype = begin(model, scratch)

    import torch
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.models.auto import SUPPORTED_MODELS
    from gptqmodel.quantization.config import AWQConfig, GPTQConfig

    if config.get("model_type") not in SUPPORTED_MODELS:
        raise InputError(
            f"GPTQModel does not know the architecture {config.get('model_type')!r}; it knows:"
            f" {', '.join(sorted(SUPPORTED_MODELS))}"
        )
    freeze()
    ids = calibration.pack(model, **packing)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    settings: Any
    backend = BACKEND.AUTO
    if algorithm == "awq":
        settings = AWQConfig(
            bits=bits, group_size=group_size, sym=sym, offload_to_disk_path=scratch
        )
        if device == "cpu":
            backend = BACKEND.AWQ_TORCH  # what it packs with; the default one needs CUDA
    else:
        settings = GPTQConfig(
            bits=bits,
            group_size=group_size,
            desc_act=desc_act,
            sym=sym,
            damp_percent=damp_percent,
            offload_to_disk_path=scratch,
            # the library's default, which it refuses for whole rows
            act_group_aware=not desc_act and group_size > 0,
        )
    loaded: Any = GPTQModel.load(model, settings, device=device, dtype=dtype)
    layers = blocks_of(config)
    loaded.layer_callback = lambda *, layer_idx, submodule_finalized: report(layer_idx + 1, layers)
    loaded.quantize(
        [{"input_ids": sample, "attention_mask": [1] * len(sample)} for sample in ids],
        batch_size=batch_size,
        backend=backend,
    )
    loaded.save(target)
    keep_unquantized(Path(target), model)
    keep_config(Path(target), config)
    tidy(Path(target), model)
    return used(ids)
