"""The rows of a model's tensors, as they are given: by the converter from a checkpoint, or by a
GGUF file. Some rows at a time, wherever that can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from autoquant.core import gguf_head
from autoquant.runtime import trace

if TYPE_CHECKING:
    from autoquant.backends.llamacpp.ggml import Bytes

Rows = Callable[[str], "Iterator[Bytes]"]  # of a tensor's name, its rows [n, bytes], in order
# weights of one piece: 32 MB as float32, and as much again of what it was
PIECE = 8 << 20
DTYPES = ("F32", "F16", "BF16")


@dataclass
class Origins:
    """Where a converter's tensors are from, by their names in GGUF: the checkpoint's ``names``; and
    in ``plain``, of those that are tensors of it as they are, these (gguf-py's LocalTensor): one,
    or one for each expert.
    """

    names: dict[str, str] = field(default_factory=dict)
    plain: dict[str, list[Any]] = field(default_factory=dict)


def watch(converter: Any) -> Origins:
    """Let a converter tell where its tensors are from; to be read when it has prepared them."""
    import torch
    from gguf.utility import LocalTensor

    origins = Origins()
    own = converter.modify_tensors

    def leaf(tensor: Any) -> Any:
        arguments: tuple[Any, ...] = getattr(tensor, "_args", ())
        if len(arguments) == 2 and arguments[1] is torch.float32:  # .to(float32)
            arguments = getattr(arguments[0], "_args", ())
        found = arguments[0] if len(arguments) == 1 else None
        return found if isinstance(found, LocalTensor) and found.dtype in DTYPES else None

    def leaves(made: Any) -> list[Any]:
        """Of experts that are joined, each one's tensor."""
        if getattr(made, "_func", None) is not torch.stack or made._kwargs not in ({}, {"dim": 0}):
            return []
        return [leaf(one) for one in made._args[0]] if len(made._args) == 1 else []

    def modify_tensors(tensor: Any, name: str, block: Any) -> Iterator[tuple[str, Any]]:
        for new_name, made in own(tensor, name, block):
            found = [leaf(tensor)] if made is tensor else leaves(made)
            origins.names[new_name] = name
            if found and None not in found:
                origins.plain[new_name] = found
            yield new_name, made

    converter.modify_tensors = modify_tensors
    return origins


def of_converter(head: gguf_head.Head, tensors: dict[str, Any], origins: Origins) -> Rows:
    """Of a converter's prepared ``tensors`` (name -> gguf-py's TensorInfo, which is emptied as it
    is read). Memory: a piece, or the largest tensor that is no plain one.
    """

    def rows(name: str) -> Iterator[Bytes]:
        entry, info = head.tensors[name], tensors[name]
        plain = origins.plain.get(name, [])
        if plain and (entry.elements > PIECE or len(plain) > 1):
            each = entry.elements // entry.shape[0] // len(plain)
            for leaf in plain:
                raw = leaf.mmap_bytes().reshape(each, -1)
                for part in _in_pieces(raw, entry.shape[0]):
                    yield _converted(part, leaf.dtype, entry.type)
        else:
            with trace.library("convert"):
                if isinstance(info.tensor, gguf.LazyChunkedTensor):
                    value = np.concatenate([np.asarray(one) for one in _chunks(info.tensor)])
                else:
                    value = gguf.LazyNumpyTensor.to_eager(info.tensor)
            each = entry.elements // entry.shape[0]
            yield np.ascontiguousarray(value).view(np.uint8).reshape(each, -1)
        info.tensor = None

    return rows


def of_files(paths: Sequence[str]) -> Rows:
    """Of a GGUF file, or all its shards."""
    from autoquant.formats.gguf import Header  # loads llama.cpp

    where = {name: (file, one) for file in map(Header, paths) for name, one in file.tensors.items()}

    def rows(name: str) -> Iterator[Bytes]:
        file, tensor = where[name]
        for part in _in_pieces(file.rows(tensor), tensor.shape[0]):
            yield np.array(part)  # off the mapped file

    return rows


def _in_pieces(raw: Any, width: int) -> Iterator[Any]:
    step = max(1, PIECE // width)
    for first in range(0, len(raw), step):
        yield raw[first : first + step]


def _chunks(tensor: Any) -> Iterator[Any]:
    """What gguf-py's LazyChunkedTensor would write, one after the other."""
    for load in tensor._chunks:
        chunk = load()
        yield gguf.quants.quantize(chunk, tensor._qtype) if tensor._qtype is not None else chunk


def _converted(raw: Bytes, dtype: str, kind: str) -> Bytes:
    """Rows of a checkpoint's ``dtype`` as the converter makes them of a GGUF type."""
    if dtype == kind:
        return np.array(raw)  # off the mapped file
    import torch

    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    values = torch.from_numpy(np.array(raw)).view(dtypes[dtype]).float().numpy()
    made = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    return np.ascontiguousarray(made).view(np.uint8).reshape(len(raw), -1)
