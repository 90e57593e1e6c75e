"""Writing safetensors files tensor by tensor: memory is one tensor, however large the model.

The format has its header at the beginning; room is left for it, and filled with spaces at the end,
which the format allows (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

SHARD = 4 << 30  # bytes, the most in one file but for a single larger tensor
ENTRY = 160  # bytes of a tensor's entry in the header beside its name, at most
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class ShardWriter:
    """Writes ``model.safetensors`` into a folder, or shards of at most ``limit`` bytes (0: SHARD)
    with their index. ``names`` are all tensors that may be added. Use as a context manager: left
    with an exception, it takes its files away.
    """

    def __init__(self, folder: Path, names: Iterable[str], limit: int = 0) -> None:
        self.folder, self.limit = folder, limit or SHARD
        self._room = -(-sum(len(json.dumps(name)) + ENTRY for name in names) // 4096) * 4096 + 4096
        self._shards: list[list[str]] = []
        self._file: BinaryIO | None = None
        self._header: dict[str, Any] = {}
        self._bytes = self.total = 0

    def _part(self, number: int) -> Path:
        return self.folder / f".shard-{number}.part"

    def add(self, name: str, tensor: Any) -> None:
        """Append one torch tensor; it may lie on any device."""
        import torch

        flat = tensor.detach().cpu().contiguous()
        size = flat.numel() * flat.element_size()
        if self._file is not None and self._header and self._bytes + size > self.limit:
            self._close()
        if self._file is None:
            self._file = open(self._part(len(self._shards)), "wb")
            self._file.seek(8 + self._room)
        # NumPy has not all of torch's dtypes, but bytes are bytes
        if size:
            flat.reshape(-1).view(torch.uint8).numpy().tofile(self._file)
        self._header[name] = {
            "dtype": DTYPES[str(tensor.dtype).removeprefix("torch.")],
            "shape": list(tensor.shape),
            "data_offsets": [self._bytes, self._bytes + size],
        }
        self._bytes += size
        self.total += size

    def _close(self) -> None:
        if self._file is None:
            return
        header = {"__metadata__": {"format": "pt"}, **self._header}
        text = json.dumps(header, separators=(",", ":")).encode()
        assert len(text) <= self._room
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + text.ljust(self._room))
        self._file.close()
        self._shards.append(list(self._header))
        self._file, self._header, self._bytes = None, {}, 0

    def finish(self) -> None:
        """Give the files their names, and write the index of several."""
        self._close()
        many = len(self._shards)
        listed: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = "model.safetensors"
            if many > 1:
                file = f"model-{number + 1:05d}-of-{many:05d}.safetensors"
            os.replace(self._part(number), self.folder / file)
            listed |= dict.fromkeys(names, file)
        if many > 1:
            index = {"metadata": {"total_size": self.total}, "weight_map": listed}
            (self.folder / "model.safetensors.index.json").write_text(
                json.dumps(index, indent=2) + "\n", encoding="utf-8"
            )

    def __enter__(self) -> ShardWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
            return
        if self._file is not None:
            self._file.close()
        for path in self.folder.glob(".shard-*.part"):
            path.unlink()
