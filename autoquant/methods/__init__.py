"""Every method, written out by hand."""

from __future__ import annotations

from autoquant.methods.awq import Awq
from autoquant.methods.base import AnyMethod
from autoquant.methods.bitsandbytes import Bitsandbytes
from autoquant.methods.exl2 import Exl2
from autoquant.methods.exl3 import Exl3
from autoquant.methods.gguf import Gguf
from autoquant.methods.gptq import Gptq
from autoquant.methods.hqq import Hqq
from autoquant.methods.w8a8 import W8a8

METHODS: dict[str, AnyMethod] = {
    method.name: method
    for method in (
        Gguf(),
        Gptq(),
        Exl2(),
        Exl3(),
        Awq(),
        Hqq(),
        Bitsandbytes(),
        W8a8(),
    )
}
