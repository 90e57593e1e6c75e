"""GPTQ and AWQ by GPTQModel."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autoquant import calibration
from autoquant.backends import renamed
from autoquant.backends.folder import (
    begin,
    blocks_of,
    freeze,
    keep_config,
    tidy,
    used,
)
from autoquant.core.errors import InputError
from autoquant.formats.architecture import class_of, config_of
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
    dynamic: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[str, Any]:
    """GPTQ or AWQ (``algorithm`` "gptq", "awq") with GPTQModel, on a GPU if there is one. Of GPTQ
    ``dynamic`` gives modules whose names match a pattern bits and a group size of their own.

    Returned are, beside what is said of the samples, ``rounded``: how many matrices (experts) were
    rounded to the nearest because too few samples reached them; and ``published names``: whether
    the checkpoint's names are others than GPTQModel's, whose own loader then does not find them.

    The samples must all have one length (as calibration.pack makes them): of samples that differ,
    GPTQModel 7.6's AWQ looks at the last batch only, and on a CPU it then scales the inputs that q,
    k and v share three times over, because it keeps them without a copy (KL 0.15 instead of 0.06 on
    four layers of SmolLM2-135M).
    """
    config, dtype = begin(model, scratch)

    import torch
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.models.auto import MODEL_MAP
    from gptqmodel.models.base import BaseQModel
    from gptqmodel.quantization.config import AWQConfig, GPTQConfig

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
            dynamic={name: dict(own) for name, own in (dynamic or {}).items()} or None,
            offload_to_disk_path=scratch,
            # the library's default, which it refuses for whole rows
            act_group_aware=not desc_act and group_size > 0,
        )
    # samples are of text alone; and a block may lack modules that others have (our checks say what
    # was not quantized)
    kind = MODEL_MAP.get(config["model_type"], BaseQModel)
    kind.require_load_processor = kind.layer_modules_strict = False
    kind.prepare_dataset = BaseQModel.prepare_dataset
    loaded: Any = GPTQModel.load(model, settings, device=device, dtype=dtype)
    layers = blocks_of(config)
    loaded.layer_callback = lambda *, layer_idx, submodule_finalized: report(layer_idx + 1, layers)
    loaded.quantize(
        [{"input_ids": sample, "attention_mask": [1] * len(sample)} for sample in ids],
        batch_size=batch_size,
        backend=backend,
    )
    saved = f"{scratch}/saved"
    loaded.save(saved)
    division, taken, other = renamed.write(saved, target, model, algorithm)
    shutil.copyfile(f"{saved}/config.json", f"{target}/config.json")
    more = renamed.exceptions(division, taken, algorithm)
    if dynamic:
        more["dynamic"] = {**more.get("dynamic", {}), **dynamic}
    keep_config(Path(target), config, more)
    tidy(Path(target), model)
    few = [one for one in loaded.quant_log if str(one.get("loss")).startswith("fallback")]
    return {**used(ids), "rounded": len(few), "published names": other}


def modules(model: str, algorithm: str) -> list[str]:
    """The names, within a block, of the modules that GPTQModel quantizes of a model: all experts,
    one by one, and not what it leaves as it is by design. Raises InputError for an architecture
    that it does not know, and of which it cannot tell the blocks by itself (it tries to for GPTQ).
    """
    import torch
    from gptqmodel.models.auto import MODEL_MAP
    from gptqmodel.models.base import BaseQModel
    from gptqmodel.quantization.config import METHOD, GPTQConfig

    config, settings = config_of(model), GPTQConfig(bits=4)
    kind = MODEL_MAP.get(config.model_type, BaseQModel)
    if kind is BaseQModel:
        with torch.device("meta"):
            whole = class_of(config)(config)
        tree = kind._auto_detect_module_tree(kind.__new__(kind), whole, METHOD(algorithm))
        if tree is None:
            raise InputError(
                f"GPTQModel does not know the architecture {config.model_type!r}; it knows"
                f" {len(MODEL_MAP)}, nearest: {', '.join(_nearest(config.model_type, MODEL_MAP))}."
                " Algorithm autoround may take it (--algorithm autoround), and so may GGUF, HQQ,"
                " bitsandbytes and W8A8"
            )
        kind.module_tree = tree
    groups = kind.simple_layer_modules(config, settings)
    return sorted({name for group in groups for name in group})


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, list(known), n=5, cutoff=0.3)
