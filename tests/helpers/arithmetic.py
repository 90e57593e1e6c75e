"""Products of 16 bits, with bfloat16 instructions and without."""

from __future__ import annotations

from typing import Any


def instructions() -> list[Any]:
    """Whether arithmetic finds bfloat16 instructions on some processors, by who says that it has
    them.
    """
    import platform

    import torch

    from autoquant.backends import arithmetic

    found = []
    for machine, who in (
        ("x86_64", "oneDNN and AVX-512"),
        ("x86_64", "oneDNN"),
        ("x86_64", "neither"),
        ("aarch64", "oneDNN"),
    ):
        platform.machine = lambda machine=machine: machine  # type: ignore[misc]
        torch.ops.mkldnn._is_mkldnn_bf16_supported = lambda who=who: "oneDNN" in who  # type: ignore[misc]
        torch.cpu._is_avx512_bf16_supported = lambda who=who: "AVX" in who  # type: ignore[misc]
        found.append([machine, who, arithmetic.has_bfloat16_instructions()])
    return found


def products(instructions: bool) -> dict[str, Any]:
    """Linear layers and attention of 16 bits on a processor with bfloat16 instructions or not."""
    import torch

    from autoquant.backends import arithmetic

    torch.manual_seed(0)
    functional = torch.nn.functional
    plain, attention, multiply = (
        functional.linear,
        functional.scaled_dot_product_attention,
        torch.matmul,
    )
    arithmetic.has_bfloat16_instructions = lambda: instructions  # type: ignore[assignment]
    arithmetic.multiply_in_float32()
    layer, inputs, heads = (
        torch.nn.Linear(64, 48),
        torch.randn(5, 64),
        torch.randn(1, 2, 5, 16).bfloat16(),
    )
    exact = plain(inputs, layer.weight, layer.bias)
    rounded = plain(*(value.bfloat16().float() for value in (inputs, layer.weight, layer.bias)))
    found = {
        "replaced": functional.linear is not plain,
        "float32 as before": bool(
            torch.equal(functional.linear(inputs, layer.weight, layer.bias), exact)
        ),
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = functional.linear(inputs, layer.weight, bias=layer.bias)
    wide = heads.float()
    mask = torch.zeros(5, 5).bfloat16()
    return {
        **found,
        "mixed: rounded after the product only": (
            bool(torch.equal(mixed, exact.bfloat16()))
            and not torch.equal(mixed, rounded.bfloat16())
        ),
        "16 bits": bool(torch.equal(layer.bfloat16()(inputs.bfloat16()), rounded.bfloat16())),
        "attention": bool(
            torch.equal(
                functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask),
                attention(wide, wide, wide, attn_mask=mask.float()).bfloat16(),
            )
        ),
        "products": bool(
            torch.equal(torch.matmul(heads, heads.mT), multiply(wide, wide.mT).bfloat16())
        ),
    }


def widths_in_autoround(instructions: bool, model: str, folder: str) -> dict[str, Any]:
    """The dtypes a model has when AutoRound has done its first block, and whether products are
    replaced.
    """
    import auto_round
    import torch

    from autoquant.backends import arithmetic
    from autoquant.backends import auto_round as backend

    plain, real, held, seen = torch.nn.functional.linear, auto_round.AutoRound, [], {}
    # what it finds out by itself
    auto_round.utils.device.CpuInfo.bf16 = property(lambda _: instructions)
    torch.cuda.is_available = lambda: False
    arithmetic.has_bfloat16_instructions = lambda: instructions  # type: ignore[assignment]

    def given(model: Any, *args: Any, **more: Any) -> Any:
        held.append(model)
        return real(model, *args, **more)

    def report(done: int, total: int) -> None:
        if not seen:
            seen.update({str(weight.dtype): len(weight) for weight in held[0].parameters()})

    auto_round.AutoRound = given
    text = " ".join(str(i) for i in range(2000))
    backend.quantize(
        model,
        f"{folder}/out",
        {"texts": [text], "samples": 2, "length": 32, "seed": 0},
        format="auto_gptq",
        bits=4,
        group_size=32,
        sym=True,
        iterations=1,
        batch_size=2,
        scratch=f"{folder}/scratch",
        report=report,
    )
    return {"dtypes": sorted(seen), "products in float32": torch.nn.functional.linear is not plain}
