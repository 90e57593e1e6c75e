"""Writing what llama.cpp's converter has prepared: the head alone, or the whole file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from autoquant.runtime.worker import Report


def write_header(writer: Any, path: Path) -> int:
    """Write everything but the weights to ``path``, make it a sparse file of the full size, which
    is returned.
    """
    total: int = sum(
        -(-info.nbytes // writer.data_alignment) * writer.data_alignment
        for info in writer.tensors[0].values()
    )
    writer.state = type(writer.state).NO_FILE  # it may be written again, with more fields
    writer.write_header_to_file(path=path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // writer.data_alignment) * writer.data_alignment
    os.truncate(path, start + total)
    return int(start + total)


def write_weights(writer: Any, header: Path, target: Path, report: Report | None) -> None:
    """Write the whole file: the header's bytes as they are, then each tensor, computed as it is
    written (as write_tensors_to_file does).
    """
    tensors = list(writer.tensors[0].values())
    padded = [-(-info.nbytes // writer.data_alignment) * writer.data_alignment for info in tensors]
    with open(header, "rb") as file:
        start = header.stat().st_size - sum(padded)
        head = file.read(start)
    done = 0
    with open(target, "wb") as out:
        out.write(head)
        for info, size in zip(tensors, padded, strict=True):
            info.tensor.tofile(out)
            out.write(bytes(size - info.nbytes))
            if out.tell() != start + done + size:
                raise OSError(
                    f"wrote {out.tell() - start - done} bytes of a tensor of {info.nbytes} to"
                    f" {target}"
                )
            info.tensor = None  # give its memory back
            done += size
            if report is not None:
                report(done, sum(padded))
