"""NF4, FP4 and LLM.int8() by bitsandbytes through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoquant.backends.folder import (
    SHARD,
    begin,
    half_dtype,
    keep_config,
    linear_layers,
    tidy,
)
from autoquant.runtime.worker import Report


def quantize(
    model: str,
    target: str,
    *,
    quant_type: str,
    double_quant: bool,
    threshold: float,
    scratch: str,
    report: Report,
) -> dict[str, Any]:
    """NF4, FP4 (4 bits) or LLM.int8() (``quant_type`` "nf4", "fp4", "int8") with bitsandbytes
    through transformers, on a GPU if there is one.

    4 bits are computed with in the dtype of the rest: the source's own, bfloat16 for one in
    float32.
    """
    config, _ = begin(model, scratch)

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    dtype = half_dtype(model)
    with torch.device("meta"):
        inside, skipped = linear_layers(
            AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
        )
    settings: Any = (
        BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=threshold, llm_int8_skip_modules=skipped
        )
        if quant_type == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quant_type,
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skipped,
        )
    )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=dtype,
        quantization_config=settings,
        device_map="cuda" if torch.cuda.is_available() else "cpu",
    )
    report(len(inside), len(inside))
    loaded.save_pretrained(target, max_shard_size=SHARD)
    keep_config(Path(target), config)
    tidy(Path(target), model)
    return {}
