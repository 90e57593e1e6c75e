"""The head of a GGUF file, read from its first bytes alone: of a file on the Hub there is no more.

Layout: magic, version, how many tensors and keys; the keys, each with its value; the tensors, each
with name, shape, type and place; then, aligned, the tensors' data. Source:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIRST = 1 << 20  # bytes that are looked at first; a vocabulary of 100,000 tokens has some MB
MOST = 1 << 30
MAGIC, VERSIONS = b"GGUF", (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
# number -> name, weights in a block, its bytes (ggml.h, ggml-common.h)
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
# what llama.cpp writes itself when it quantizes; the first is GGML_QNT_VERSION
WRITTEN = ("general.quantization_version", "general.file_type")
SPLIT = ("split.no", "split.count", "split.tensors.count")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class Unsupported(ValueError):
    """A version or type that is not, or no longer, in use."""


class Cut(ValueError):
    """The head goes on behind the bytes that were given."""


@dataclass(frozen=True)
class Entry:
    """A tensor: type, shape with the row length first, offset in the data, bytes."""

    type: str
    shape: tuple[int, ...]
    offset: int
    bytes: int

    @property
    def elements(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Head:
    """``values`` of the keys (of an array its length), the keys' own bytes in ``raw``, the
    ``tensors`` by name, and where their data begin.
    """

    values: dict[str, Any]
    raw: dict[str, bytes]
    tensors: dict[str, Entry]
    data_offset: int

    @property
    def alignment(self) -> int:
        """Of the tensors' data, in bytes."""
        return int(self.values.get("general.alignment", 32))


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        self.at += size
        if self.at > len(self.data):
            raise Cut(f"more than {len(self.data):,} bytes")
        return self.data[self.at - size : self.at]

    def number(self, kind: str) -> Any:
        """The next number."""
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))[0]

    def text(self) -> str:
        """The next string."""
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """The next value; of an array its length."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(_scalar(kind))
        inner, length = self.number("I"), self.number("Q")
        if inner == STRING:
            for _ in range(length):
                self.take(self.number("Q"))
        else:
            self.take(length * struct.calcsize(_scalar(inner)))
        return length


def _scalar(kind: int) -> str:
    if kind not in SCALARS:
        raise ValueError(f"a value of the unknown kind {kind}")
    return SCALARS[kind]


def parse(data: bytes) -> Head:
    """The head at the beginning of ``data``. Raises Cut if there is more of it, ValueError if it is
    none.
    """
    cursor = _Cursor(data)
    if data[:4] != MAGIC[: len(data)]:
        raise ValueError("it does not begin with GGUF")
    cursor.take(4)
    version = cursor.number("I")
    if version not in VERSIONS:
        raise Unsupported(f"it is GGUF of version {version}")
    tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
    values, raw = {}, {}
    for _ in range(key_count):
        begin, name = cursor.at, cursor.text()
        values[name] = cursor.value(cursor.number("I"))
        raw[name] = data[begin : cursor.at]
    tensors = {}
    for _ in range(tensor_count):
        name = cursor.text()
        shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))
        kind, offset = cursor.number("I"), cursor.number("Q")
        if kind not in TYPES:
            raise Unsupported(f"{name} is of type {kind}")
        named, block, size = TYPES[kind]
        tensors[name] = Entry(named, shape, offset, math.prod(shape) // block * size)
    alignment = int(values.get("general.alignment", 32))
    if alignment < 1:
        raise ValueError(f"general.alignment is {alignment}")
    return Head(values, raw, tensors, -(-cursor.at // alignment) * alignment)


def read(path: Path) -> Head:
    """A file's head. Raises ValueError if it is no GGUF file, or shorter than its head says."""
    size, length = path.stat().st_size, FIRST
    while True:
        with open(path, "rb") as file:
            data = file.read(length)
        try:
            head = parse(data)
        except Cut:
            if length >= min(size, MOST):
                raise ValueError("it ends within its own head") from None
            length *= 2
            continue
        end = max((one.offset + one.bytes for one in head.tensors.values()), default=0)
        if head.data_offset + end > size:
            raise ValueError(
                f"it has {size:,} bytes, its tensors end at {head.data_offset + end:,}"
            )
        return head


def shards(name: str) -> list[str]:
    """The names of all files that a file is one of: itself, or all shards."""
    match = SHARD.search(name)
    if match is None or not 0 < int(match[1]) <= int(match[2]):
        return [name]
    stem, count = name[: match.start()], int(match[2])
    return [f"{stem}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]


@dataclass(frozen=True)
class Laid:
    """A file that is to be written: its ``head``, each tensor's offset in the file, its size, and
    the ``alignment`` of the tensors.
    """

    head: bytes
    offsets: dict[str, int]
    size: int
    alignment: int


def quantized(
    head: Head,
    types: Mapping[str, str],
    order: Sequence[str],
    file_type: int,
    limit: int = 0,
    more: Mapping[str, str] | None = None,
) -> list[Laid]:
    """The file that llama.cpp writes when it quantizes one: the same keys, with two at the end
    (``file_type`` is a number of its enum llama_ftype), and the tensors in its ``order`` and of
    other ``types``. With a ``limit`` its shards, see :func:`cut`. ``more`` keys have texts.
    """
    more = more or {}
    kept = [raw for name, raw in head.raw.items() if name not in (*SPLIT, *WRITTEN, *more)]
    kept += [_text(name) + struct.pack("<I", STRING) + _text(text) for name, text in more.items()]
    kept += [_number_key(name, value) for name, value in zip(WRITTEN, (2, file_type), strict=True)]
    entries = {}
    for name in order:
        one, (_, block, size) = head.tensors[name], TYPES[NUMBERS[types[name]]]
        # ggml drops trailing dimensions of 1
        dims = max((n for n, width in enumerate(one.shape, 1) if width != 1), default=1)
        entries[name] = Entry(
            types[name], one.shape[:dims], 0, math.prod(one.shape) // block * size
        )
    return cut(kept, entries, head.alignment, limit)


def unchanged(head: Head, limit: int = 0) -> list[Laid]:
    """A file of the same keys and tensors, or its shards."""
    kept = [raw for name, raw in head.raw.items() if name not in SPLIT]
    return cut(kept, head.tensors, head.alignment, limit)


def cut(
    keys: Sequence[bytes], entries: Mapping[str, Entry], alignment: int, limit: int
) -> list[Laid]:
    """A file of these keys and tensors; or, if it has more than ``limit`` bytes, its shards, each
    of at most as many bytes of tensors (a larger tensor has a shard of its own). As gguf-py's
    writer cuts: the first one has the keys, all have the three by which llama.cpp finds the others.
    """
    whole = _laid(keys, entries, alignment)
    if not limit or whole.size <= limit:
        return [whole]
    parts: list[dict[str, Entry]] = [{}]
    for name, one in entries.items():
        if parts[-1] and sum(other.bytes for other in parts[-1].values()) + one.bytes > limit:
            parts.append({})
        parts[-1][name] = one
    if len(parts) == 1:
        return [whole]
    return [
        _laid([*(() if i else keys), *_split_keys(i, len(parts), len(entries))], part, alignment)
        for i, part in enumerate(parts)
    ]


def shard_name(name: str, number: int, count: int) -> str:
    """The name of a shard (from 0) of a file, as llama.cpp expects it; of a single one, its own."""
    if count == 1:
        return name
    return f"{name.removesuffix('.gguf')}-{number + 1:05d}-of-{count:05d}.gguf"


def _split_keys(number: int, count: int, tensors: int) -> list[bytes]:
    """The keys of a shard."""
    kinds = zip(SPLIT, (2, 2, 5), ("H", "H", "i"), (number, count, tensors), strict=True)
    return [
        _text(name) + struct.pack(f"<I{code}", kind, value) for name, kind, code, value in kinds
    ]


def _text(text: str) -> bytes:
    own = text.encode()
    return struct.pack("<Q", len(own)) + own


def _number_key(name: str, value: int) -> bytes:
    return _text(name) + struct.pack("<II", 4, value)


def _laid(keys: Sequence[bytes], tensors: Mapping[str, Entry], alignment: int) -> Laid:
    """A file of these keys and tensors."""
    out = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys))
    offsets, at = {}, 0
    for name, one in tensors.items():
        out += _text(name) + struct.pack("<I", len(one.shape))
        out += struct.pack(f"<{len(one.shape)}Q", *one.shape)
        out += struct.pack("<IQ", NUMBERS[one.type], at)
        offsets[name] = at
        at += -(-one.bytes // alignment) * alignment
    head = bytes(out + bytes(-len(out) % alignment))
    placed = {name: len(head) + offset for name, offset in offsets.items()}
    return Laid(head, placed, len(head) + at, alignment)


def write_joined(heads: Sequence[Head], path: Path) -> int:
    """One head for all shards of a model, followed by a hole of the data's size (no bytes on the
    disk): what quantizing is planned on. Returns its size.
    """
    first = heads[0]
    kept = [raw for name, raw in first.raw.items() if name not in SPLIT]
    tensors = {name: one for head in heads for name, one in head.tensors.items()}
    joined = _laid(kept, tensors, first.alignment)
    with open(path, "wb") as file:
        file.write(joined.head)
        file.truncate(joined.size)
    return joined.size
