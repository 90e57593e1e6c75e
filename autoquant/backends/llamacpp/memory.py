"""What llama.cpp will take of memory, asked of itself: it opens a header without allocating."""

from __future__ import annotations

import ctypes as C
import re

import llama_cpp.llama_cpp as L

from autoquant.backends.llamacpp.library import said, why
from autoquant.core.errors import ProcessFailed

KV_TYPES = {"f16": L.GGML_TYPE_F16, "q8_0": L.GGML_TYPE_Q8_0, "q4_0": L.GGML_TYPE_Q4_0}
BATCH, MICRO_BATCH = 2048, 512  # tokens; llama-server's defaults (-b, -ub)
# how it logs each; "KV buffer size" is 0 where nothing is allocated, the next line has the size
_SAID = {
    "cache": re.compile(r"llama_kv_cache\w*: size = +([\d.]+) MiB \("),
    "state": re.compile(r" RS buffer size = +([\d.]+) MiB"),
    "compute": re.compile(r" compute buffer size = +([\d.]+) MiB"),
    "output": re.compile(r" output buffer size = +([\d.]+) MiB"),
}


def buffers(header: str, context: int, kv_type: str = "f16") -> dict[str, int]:
    """Bytes that llama.cpp takes beside the weights for ``context`` tokens of one sequence, as
    ``llama-server --parallel 1`` does: ``cache`` (keys and values), ``state`` (of layers that have
    a recurrent one), ``compute`` (intermediate values, and the logits of one token), ``output``.
    ``weights`` are those of the file's own types.

    The file may be a header and a hole: of its weights nothing is read or allocated
    (llama_model_params.no_alloc, by which llama.cpp's ``--fit`` works). The compute buffer is that
    of the processor; of a graphics card it differs by the few tensors that are copied between both.
    Raises ProcessFailed if llama.cpp does not open the file.
    """
    params = L.llama_model_default_params()
    none = (C.c_void_p * 1)(None)  # of the devices beside the processor: a driver takes seconds
    params.devices = C.cast(none, C.c_void_p)
    params.no_alloc, params.load_mode = True, L.LLAMA_LOAD_MODE_NONE
    params.use_extra_bufts = False
    said.lines.clear()
    model = L.llama_model_load_from_file(header.encode(), params)
    if not model:
        raise ProcessFailed(f"llama.cpp cannot open {header}: {why()}")
    settings = L.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = context, BATCH, MICRO_BATCH
    settings.n_seq_max = settings.n_outputs_max = 1
    settings.swa_full = False  # a sliding window is kept, not the whole context
    settings.type_k = settings.type_v = KV_TYPES[kv_type]
    if not L.llama_init_from_model(model, settings):
        raise ProcessFailed(f"llama.cpp makes no context of {context} tokens: {why()}")
    return {
        "weights": int(L.llama_model_size(model)),
        **{name: _sum(pattern) for name, pattern in _SAID.items()},
    }


def _sum(pattern: re.Pattern[str]) -> int:
    """Bytes of all lines that say such a size: there is one a device, and one a kind of cache."""
    return round(sum(float(match[1]) for match in map(pattern.search, said.lines) if match) * 2**20)
