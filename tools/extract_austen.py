"""Take Jane Austen's novels out of Debian's package r-cran-janeaustenr. usage: python
tools/extract_austen.py janeaustenr.rdb FOLDER

An R lazy-load database is a row of records: a big-endian length, a zlib stream, in it an R object
in XDR format. Only character vectors (type 16) are wanted: one novel each, one element a line. They
are written as FOLDER/austen_0.txt … in the order found: Emma, Mansfield Park, Northanger Abbey,
Persuasion, Pride and Prejudice, Sense and Sensibility.
"""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

CHARACTER_VECTOR = 16


def records(data: bytes) -> list[bytes]:
    """The uncompressed records of a database."""
    out, at = [], 0
    while at + 4 < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        stream = zlib.decompressobj()
        body = stream.decompress(data[at + 4 :])
        if len(body) != length:
            sys.exit(f"record at byte {at} has {len(body)} bytes where {length} were promised")
        out.append(body)
        at = len(data) - len(stream.unused_data)
    return out


def lines(body: bytes) -> list[str] | None:
    """The elements of a serialized character vector, or None for other objects."""
    (version,) = struct.unpack_from(">i", body, 2)
    at = 14
    if version == 3:  # the native encoding's name follows
        (length,) = struct.unpack_from(">i", body, at)
        at += 4 + length
    flags, count = struct.unpack_from(">ii", body, at)
    if flags & 255 != CHARACTER_VECTOR:
        return None
    at += 8
    out = []
    for _ in range(count):
        _, length = struct.unpack_from(">ii", body, at)
        at += 8
        out.append(body[at : at + max(length, 0)].decode("utf-8", "replace"))
        at += max(length, 0)
    return out


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    novels = [
        novel for novel in map(lines, records(Path(sys.argv[1]).read_bytes())) if novel is not None
    ]
    for i, novel in enumerate(novels):
        (folder / f"austen_{i}.txt").write_text("\n".join(novel), encoding="utf-8")
        print(i, len(novel), "lines:", novel[0])
