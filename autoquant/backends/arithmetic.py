"""Products of 16-bit numbers on processors without bfloat16 instructions."""

from __future__ import annotations

from typing import Any


def has_bfloat16_instructions() -> bool:
    """Whether the processor has them. oneDNN says yes for any AVX-512, where it emulates them."""
    import platform

    import torch

    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return platform.machine() not in ("x86_64", "AMD64") or bool(
        torch.cpu._is_avx512_bf16_supported()
    )


def multiply_in_float32() -> None:
    """On a processor without bfloat16 instructions, let a model's products of 16 bits (linear
    layers, attention) be made in float32, in this process: torch's own are slow there, and so are
    those that oneDNN emulates with AVX-512.

    Results are rounded to 16 bits as before; weights and memory stay 16 bits wide. What it saves:
    bench/RESULTS.md.
    """
    import torch

    if has_bfloat16_instructions():
        return

    def wide(value: Any) -> Any:
        return (
            value.float()
            if isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
            else value
        )

    def widened(plain: Any) -> Any:
        def product(*values: Any, **named: Any) -> Any:
            first, mixed = (*values, *named.values())[0], torch.is_autocast_enabled("cpu")
            if (
                first.device.type != "cpu"
                or first.dtype == torch.float64
                or "out" in named
                or (not mixed and first.dtype not in (torch.bfloat16, torch.float16))
            ):
                return plain(*values, **named)
            with torch.autocast("cpu", enabled=False):  # which would make 16 bits of them again
                wide_product = plain(
                    *map(wide, values), **{name: wide(value) for name, value in named.items()}
                )
            return wide_product.to(torch.get_autocast_dtype("cpu") if mixed else first.dtype)

        return product

    torch.nn.functional.linear = widened(torch.nn.functional.linear)
    torch.nn.functional.scaled_dot_product_attention = widened(
        torch.nn.functional.scaled_dot_product_attention
    )
    # attention of models that transformers does not run with the one above
    torch.matmul = widened(torch.matmul)
