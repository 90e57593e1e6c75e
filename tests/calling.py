"""Somebody's program, as mypy sees it: `make lint` fails if a wrong line stops being wrong."""

from __future__ import annotations

import autoquant


def right() -> autoquant.Result:
    """Everything that a caller may write."""
    autoquant.gguf("demo", types=["Q4_K_M", "Q8_0"], imatrix=autoquant.Calibration("my.txt"))
    autoquant.exl2("owner/model", bpw=[3.0, 4.25], head_bits=8, out="here")
    assert autoquant.plan("gptq", "demo", bits=3).fits
    assert autoquant.advise("demo", fits="T4", context=4096, kv_type="q8_0").room
    result = autoquant.gptq("demo", bits=4, algorithm="autoround", calibration="builtin")
    return result.evaluate(chunks=4)


def wrong() -> None:
    """And what it may not."""
    autoquant.gptq("demo", bits="four")  # type: ignore[arg-type]
    autoquant.advise("demo", kv_type="q8")  # type: ignore[arg-type]
    autoquant.gptq("demo", bit=4)  # type: ignore[call-arg]
    autoquant.awq("demo", algorithm="gptq")  # type: ignore[arg-type]
    autoquant.w8a8("demo").nothing()  # type: ignore[attr-defined]
