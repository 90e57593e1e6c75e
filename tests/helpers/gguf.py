"""GGUF files and importance matrices, read and made with gguf-py and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoquant.core.bundled import MODEL as DEMO_FOLDER


def tensor_types(path: str) -> dict[str, str]:
    from autoquant.formats.gguf import Header

    return {name: tensor.type for name, tensor in Header(path).tensors.items()}


def value(path: str, key: str, kind: str = "str") -> Any:
    from autoquant.formats.gguf import Header

    return Header(path).get(key, kind)


def not_in(path: str, folder: str, prefix: str) -> list[str]:
    """The tensors of a model folder whose names begin so and whose values no tensor of a GGUF file
    has, by number and mean magnitude: they may lie there in another order.
    """
    import numpy as np

    from autoquant.formats.gguf import Header
    from autoquant.formats.tensors import Tensors

    header, tensors = Header(path), Tensors(folder)
    held = [header.values(tensor) for tensor in header.tensors.values()]
    seen = [(one.size, float(np.abs(one).mean())) for one in held]
    lost = []
    for name in tensors.names():
        value = tensors.get(name)
        size, mean = value.size, float(np.abs(value).mean())
        near = any(n == size and abs(m - mean) < 0.01 * mean for n, m in seen)
        if name.startswith(prefix) and not near:
            lost.append(name)
    return lost


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


def imatrices(path: str, folder: str) -> dict[str, str]:
    """Importance matrices as people have them, of one of ours: in llama.cpp's older format, under
    other names, without a block, with one too many, with NaN, cut short.
    """
    import struct

    import gguf
    import numpy as np

    own, into = gguf.GGUFReader(path), Path(folder)
    into.mkdir()
    tensors = {one.name: np.array(one.data) for one in own.tensors}
    names = sorted(n.removesuffix(".in_sum2") for n in tensors if n.endswith(".in_sum2"))

    def write(name: str, entries: dict[str, Any]) -> None:
        writer = gguf.GGUFWriter(str(into / name), arch="llama")
        writer.kv_data[0].pop("general.architecture")
        writer.add_string("general.type", "imatrix")
        for entry, (sums, counts) in entries.items():
            writer.add_tensor(f"{entry}.in_sum2", sums.reshape(1, -1))
            writer.add_tensor(f"{entry}.counts", counts.reshape(-1, 1))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    whole = {name: (tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"]) for name in names}
    write("partial.gguf", {n: one for n, one in whole.items() if not n.startswith("blk.3.")})
    write("absent.gguf", {**whole, "blk.4.attn_q.weight": whole[names[0]]})
    write("nan.gguf", {**whole, names[0]: (whole[names[0]][0] * np.nan, whole[names[0]][1])})
    old = struct.pack("<i", len(names))
    for name in names:
        sums, counts = (one.reshape(-1) for one in whole[name])
        values = (sums / counts[0]).astype("<f4")  # calls 1: the mean itself
        old += struct.pack("<i", len(name)) + name.encode()
        old += struct.pack("<ii", 1, values.size) + values.tobytes()
    (into / "legacy.dat").write_bytes(old + struct.pack("<ii", 20, 5) + b"a.txt")
    (into / "cut.dat").write_bytes(old[:-100])
    for name in ("gguf.dat", "model.imatrix"):
        (into / name).write_bytes(Path(path).read_bytes())
    return {one.name: str(one) for one in into.iterdir()}


def head(path: str) -> dict[str, Any]:
    """A file's head by ggml, and the types that gguf-py knows."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

    from autoquant.formats.gguf import Header

    seen = Header(path)
    return {
        "tensors": {
            name: [one.type, [n for n in one.shape if n > 1 or one.shape == (1,)], one.bytes]
            for name, one in seen.tensors.items()
        },
        "data_offset": seen.data_offset,
        "types": [[int(one), one.name, *GGML_QUANT_SIZES[one]] for one in GGMLQuantizationType],
        "file_types": {
            str(int(one)): one.name.removeprefix("MOSTLY_").removeprefix("ALL_")
            for one in LlamaFileType
            if one.name not in ("GUESSED", "MOSTLY_NVFP4", "MOSTLY_Q1_0", "MOSTLY_Q2_0")
        },
    }


def convert_in_small_pieces(*, report: Any, emit: Any, **kwargs: Any) -> dict[str, Any]:
    """The converter, with tensors of more than 4096 weights read and quantized in parts."""
    from autoquant.backends.llamacpp import convert, one_pass

    one_pass.PIECE, one_pass.TASK = 1 << 12, 1 << 10
    return convert.convert(**kwargs, report=report, emit=emit)


def convert_with_a_wrong_size(*, report: Any, emit: Any, **kwargs: Any) -> dict[str, Any]:
    """The converter, with a check that fails of the type Q8_0."""
    from autoquant.backends.llamacpp import check, convert

    real = check.verify

    def verify(path: str, header: str, plan: dict[str, Any], **more: Any) -> dict[str, Any]:
        wrong = {**plan, "bytes": 1} if plan["type"] == "Q8_0" else plan
        return real(path, header, wrong, **more)

    check.verify = verify
    return convert.convert(**kwargs, report=report, emit=emit)


def quantized(source: str, type: str, imatrix: str, folder: str) -> str:
    """The sha256 of what llama_model_quantize makes of a file."""
    from autoquant.core.files import sha256_of
    from bench import referee

    target = Path(folder) / f"{type}.gguf"
    referee.quantize(source, str(target), type, threads=2, imatrix=imatrix)
    return sha256_of(target)


def in_shards(source: str, type: str, folder: str, limit: int) -> list[str]:
    """The sha256 of the shards that gguf-py cuts of what llama_model_quantize makes."""
    from autoquant.core.files import sha256_of
    from bench import referee

    quantized(source, type, "", folder)
    return [sha256_of(Path(path)) for path in referee.split(f"{folder}/{type}.gguf", limit)]


def same_tensors(one: str, other: str) -> list[str]:
    """The tensors that two files do not have alike."""
    from autoquant.formats.gguf import Header

    ours, theirs = Header(one), Header(other)
    if ours.tensors.keys() != theirs.tensors.keys():
        return sorted(ours.tensors.keys() ^ theirs.tensors.keys())
    return [
        name
        for name, tensor in ours.tensors.items()
        if tensor.type != theirs.tensors[name].type
        or not (ours.rows(tensor) == theirs.rows(theirs.tensors[name])).all()
    ]
