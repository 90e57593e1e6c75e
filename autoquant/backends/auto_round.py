"""AutoRound, written in the GPTQ or AWQ format."""

from __future__ import annotations

import os
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
from autoquant.runtime.worker import Report


def quantize(
    model: str,
    target: str,
    packing: dict[str, Any],
    *,
    format: str,
    bits: int,
    group_size: int,
    sym: bool,
    iterations: int,
    batch_size: int,
    scratch: str,
    report: Report,
) -> dict[str, Any]:
    """AutoRound (Cheng et al. 2023: rounding and clipping learned by signed gradients, block by
    block), written in the GPTQ or AWQ format (``format``).
    """
    config, dtype = begin(model, scratch)

    import torch
    from auto_round import AutoRound
    from auto_round.compressors import orchestrator
    from auto_round.utils.device_manager import CpuARDevice
    from transformers import AutoModelForCausalLM, AutoTokenizer

    layers = blocks_of(config)

    class Bar:
        """Stands where AutoRound makes its progress bar, and tells us."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.n = 0

        def update(self, n: int = 1) -> None:
            self.n += n
            report(self.n, layers)

        def set_description(self, *_: Any) -> None:
            pass

        def close(self) -> None:
            pass

    orchestrator.tqdm = Bar
    # on a processor without the instructions it would make the whole model float32, twice its size;
    # products are float32 all the same (multiply_in_float32)
    CpuARDevice.supports_bf16 = lambda _: True
    freeze()
    ids = calibration.pack(model, **packing)
    length = len(ids[0])
    samples = [
        {
            "input_ids": torch.tensor([sample]),
            "attention_mask": torch.ones(1, length, dtype=torch.long),
        }
        for sample in ids
    ]
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    rounder: Any = AutoRound(
        loaded,
        AutoTokenizer.from_pretrained(model),
        scheme="W4A16",
        bits=bits,
        group_size=group_size,
        sym=sym,
        iters=iterations,
        nsamples=len(ids),
        seqlen=length,
        batch_size=min(batch_size, len(ids)),
        dataset=samples,
        device_map=0 if torch.cuda.is_available() else "cpu",
        low_gpu_mem_usage=True,
        enable_torch_compile=False,
    )
    rounder.quantize_and_save(target, format=format)
    # it makes a folder named after model and scheme
    inner = [path for path in Path(target).iterdir() if path.is_dir()]
    for folder in inner:
        for path in folder.iterdir():
            os.replace(path, Path(target) / path.name)
        folder.rmdir()
    keep_unquantized(Path(target), model)
    keep_config(Path(target), config)
    tidy(Path(target), model)
    return used(ids)
