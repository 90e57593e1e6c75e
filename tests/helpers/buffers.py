"""llama.cpp's own log of a file that it loads: the sizes of its buffers. Runs in a worker."""

from __future__ import annotations

import re

import llama_cpp.llama_cpp as L

from autoquant.backends.llamacpp import memory
from autoquant.backends.llamacpp.library import said


def logged(path: str, context: int, kv_type: str) -> dict[str, float]:
    """Load a file and make a context, allocating all of it; MiB by the kind of buffer: model, KV,
    RS, compute.
    """
    params = L.llama_model_default_params()
    params.use_extra_bufts, params.n_gpu_layers = False, 0
    said.lines.clear()
    model = L.llama_model_load_from_file(path.encode(), params)
    settings = L.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = context, memory.BATCH, memory.MICRO_BATCH
    settings.n_seq_max = settings.n_outputs_max = 1
    settings.swa_full = False
    settings.type_k = settings.type_v = memory.KV_TYPES[kv_type]
    assert L.llama_init_from_model(model, settings)
    found = dict.fromkeys(("model", "KV", "RS", "compute"), 0.0)
    for line in said.lines:
        if match := re.search(r" (model|KV|RS|compute) buffer size = +([\d.]+) MiB", line):
            found[match[1]] += float(match[2])
    return found
