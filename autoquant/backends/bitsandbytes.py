"""NF4, FP4 and LLM.int8() by bitsandbytes, laid out as transformers writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoquant.backends.tensorwise import Division, begin, rewrite
from autoquant.runtime.worker import Report

EIGHT = ("weight", "SCB", "weight_format")
FOUR = (
    "weight",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    "weight.quant_state.bitsandbytes__nf4",
    "weight.quant_state.bitsandbytes__fp4",
)
BLOCK = 64  # weights that share a scale, what transformers leaves the library's default


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
    """NF4, FP4 (4 bits) or LLM.int8() (``quant_type`` "nf4", "fp4", "int8") with bitsandbytes'
    own functions, tensor by tensor, on a GPU if there is one.

    4 bits are computed with in the dtype of the rest: the source's own, bfloat16 for one in
    float32.
    """
    begin(scratch)
    division = Division(model)

    import torch
    from bitsandbytes import functional
    from transformers import BitsAndBytesConfig

    dtype = division.half()
    named: dict[str, Any] = {"llm_int8_skip_modules": division.plain}

    def four(matrix: Any, _: str) -> Mapping[str, Any]:
        packed, state = functional.quantize_4bit(
            matrix.to(dtype).contiguous(),
            blocksize=BLOCK,
            compress_statistics=double_quant,
            quant_type=quant_type,
            quant_storage=torch.uint8,
        )
        parts = state.as_dict(packed=True)
        return {"weight": packed, **{f"weight.{name}": value for name, value in parts.items()}}

    def eight(matrix: Any, _: str) -> Mapping[str, Any]:
        # its layers take 16 bits through float16, whatever the model's own dtype
        half = matrix.to(dtype).to(torch.float16).contiguous()
        codes, scales, _ = functional.int8_vectorwise_quant(half)
        row_major = torch.zeros((), dtype=torch.uint8)
        return {"weight": codes, "SCB": scales, "weight_format": row_major}

    if quant_type == "int8":
        settings: Any = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold, **named)
    else:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quant_type,
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=dtype,
            **named,
        )
    rewrite(
        division,
        target,
        eight if quant_type == "int8" else four,
        suffixes=EIGHT if quant_type == "int8" else FOUR,
        dtype=dtype,
        block=settings.to_dict(),
        report=report,
    )
    return {}
