"""GGUF files and importance matrices, read and made with gguf-py and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoquant.core.bundled import MODEL as DEMO_FOLDER


def tensor_types(path: str) -> dict[str, str]:
    from autoquant.formats.gguf import Header

    return {name: tensor.type for name, tensor in Header(path).tensors.items()}


def value(path: str, key: str) -> Any:
    from autoquant.formats.gguf import Header

    return Header(path).get(key)


def imatrix_layout(path: str) -> dict[str, Any]:
    """Read with gguf-py, not with our own code."""
    import gguf

    reader = gguf.GGUFReader(path)
    field = lambda key: reader.get_field(key).contents()  # noqa: E731
    return {
        "type": field("general.type"),
        "chunks": int(field("imatrix.chunk_count")),
        "chunk_size": int(field("imatrix.chunk_size")),
        "datasets": field("imatrix.datasets"),
        "tensors": {t.name: [int(n) for n in t.shape] for t in reader.tensors},
        "counts": {
            t.name: t.data.reshape(-1).tolist()
            for t in reader.tensors
            if t.name.endswith(".counts")
        },
    }


def bits_of_llama_8b(path: str, types: list[str]) -> dict[str, tuple[float, bool]]:
    """A header-only, sparse GGUF with Llama-3.1-8B's shapes, dry-run to each type."""
    import os

    import gguf
    import numpy as np

    from autoquant.backends.llamacpp.quantize import dry_run

    width, inner, layers, vocabulary = 4096, 14336, 32, 128256
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(32)
    writer.add_head_count_kv(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(1)
    shapes = {
        "token_embd.weight": (vocabulary, width),
        "output.weight": (vocabulary, width),
        "output_norm.weight": (width,),
    }
    for i in range(layers):
        shapes |= {
            f"blk.{i}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (width,),
                "ffn_norm": (width,),
                "attn_q": (width, width),
                "attn_k": (1024, width),
                "attn_v": (1024, width),
                "attn_output": (width, width),
                "ffn_gate": (inner, width),
                "ffn_up": (inner, width),
                "ffn_down": (width, inner),
            }.items()
        }
    total = 0
    for name, shape in shapes.items():
        kind = np.dtype(np.float16 if len(shape) == 2 else np.float32)
        size = int(np.prod(shape)) * kind.itemsize
        writer.add_tensor_info(name, shape, kind, size)
        total += -(-size // 32) * 32
    writer.write_header_to_file(Path(path))
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-os.path.getsize(path) // 32) * 32 + total)
    return {
        plan["type"]: (plan["bits_per_weight"], plan["needs_imatrix"])
        for plan in dry_run(path, types)
    }


def imatrix_against_transformers(imatrix: str, chunks: int) -> dict[str, Any]:
    """The worst relative difference of a tensor's sums from those of forward hooks in transformers,
    float32.
    """
    import gguf
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from autoquant.core.bundled import CALIBRATION_TEXT

    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    model = AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(DEMO_FOLDER).encode(
        CALIBRATION_TEXT.read_text()[: chunks * 256 * 12], add_special_tokens=False
    )
    sums: dict[str, Any] = {}
    for i, layer in enumerate(model.model.layers):
        for path, name in names.items():
            key = f"blk.{i}.{name}.weight.in_sum2"

            def hook(module: Any, inputs: Any, output: Any, key: str = key) -> None:
                sums[key] = sums.get(key, 0) + (inputs[0][0].double() ** 2).sum(0)

            layer.get_submodule(path).register_forward_hook(hook)
    with torch.inference_mode():
        for i in range(chunks):
            model(input_ids=torch.tensor([ids[i * 256 : (i + 1) * 256]]))
    ours = {t.name: t.data.reshape(-1) for t in gguf.GGUFReader(imatrix).tensors}
    worst = max(
        float(np.abs(ours[key] - value.numpy()).sum() / value.numpy().sum())
        for key, value in sums.items()
    )
    return {"tensors": len(sums), "worst": worst}
