"""llama.cpp's own quantizing of a file, and gguf-py's splitting, which ours must equal byte for
byte. Runs in a worker.
"""

from __future__ import annotations

import ctypes as C
from pathlib import Path

import gguf
import llama_cpp.llama_cpp as L

from autoquant.backends.llamacpp.library import why
from autoquant.backends.llamacpp.quantize import params_of
from autoquant.core.errors import ProcessFailed


def quantize(source: str, target: str, type: str, *, threads: int, imatrix: str = "") -> None:
    """Quantize a GGUF file by llama_model_quantize."""
    params, _keep = params_of(
        type,
        threads=threads,
        imatrix=imatrix,
        output_type="",
        embedding_type="",
        overrides=[],
        pure=False,
        dry_run=False,
    )
    if L.llama_model_quantize(source.encode(), target.encode(), C.byref(params)) != 0:
        raise ProcessFailed(f"llama.cpp could not quantize to {type}: {why()}")


def split(path: str, limit: int) -> list[str]:
    """Split a GGUF file by gguf-py's writer into shards of at most ``limit`` bytes of tensors; the
    paths.
    """
    given = Path(path)
    reader = gguf.GGUFReader(given)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(None, arch=arch, split_max_size=limit)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for one in reader.tensors:
        writer.add_tensor(one.name, one.data, raw_shape=one.data.shape, raw_dtype=one.tensor_type)
    writer.write_header_to_file(path=given)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(str(other) for other in given.parent.glob(f"{given.stem}-*-of-*.gguf"))
