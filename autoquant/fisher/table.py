"""The sensitivities of a model: what each type of each tensor takes and loses. A small file that
serves any size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoquant.core import gguf_head
from autoquant.core.errors import InputError
from autoquant.core.files import key_of, write_atomically
from autoquant.core.records import Snapshot
from autoquant.fisher.choice import Cost

FILE = "sensitivity.json"
FORMAT = 1
SAMPLE = 1 << 20  # weights of a tensor that are quantized to each type (bench/RESULTS.md)


@dataclass(frozen=True)
class Row:
    """Of one tensor: its ``shape`` as GGUF has it (the row length first), the predicted damage in
    ``nats`` per token by type, and how many of its ``rows`` these were found on.
    """

    shape: tuple[int, ...]
    nats: dict[str, float]
    quantized: int
    rows: int

    def bytes(self, kind: str) -> int:
        """What a type of it takes."""
        _, block, size = gguf_head.TYPES[gguf_head.NUMBERS[kind]]
        return math.prod(self.shape) // block * size


@dataclass(frozen=True)
class Sensitivities:
    """The table of one model. ``weights`` is a hash of its files, ``about`` says how it was made:
    model, commit, text, samples, importance matrix, versions.
    """

    weights: str
    tensors: dict[str, Row]
    about: dict[str, Any] = field(default_factory=dict)

    def costs(
        self, candidates: Mapping[str, tuple[str, ...]], alignment: int
    ) -> dict[str, dict[str, Cost]]:
        """What the ``candidates`` of each tensor cost; bytes with what aligns them."""
        return {
            name: {
                kind: Cost(-(-row.bytes(kind) // alignment) * alignment, row.nats[kind])
                for kind in candidates[name]
                if kind in row.nats
            }
            for name, row in self.tensors.items()
        }

    def predicted(self, types: Mapping[str, str]) -> float | None:
        """The damage of a file of these tensor types in nats per token, unquantized ones none; None
        if it has a type that is not in the table.
        """
        total = 0.0
        for name, row in self.tensors.items():
            kind = types.get(name, "F32")
            if kind in ("F32", "F16", "BF16"):
                continue
            if kind not in row.nats:
                return None
            total += row.nats[kind]
        return total

    def write(self, path: Path) -> None:
        """Write the table, all or nothing."""
        data = {
            "format": FORMAT,
            "weights": self.weights,
            "about": self.about,
            "tensors": {
                name: {
                    "shape": list(row.shape),
                    "quantized": row.quantized,
                    "rows": row.rows,
                    "types": {
                        kind: {"bytes": row.bytes(kind), "nats": float(f"{nats:.6g}")}
                        for kind, nats in row.nats.items()
                    },
                }
                for name, row in self.tensors.items()
            },
        }
        write_atomically(path, json.dumps(data, indent=1) + "\n")


def read(path: Path) -> Sensitivities:
    """A table from its file. Raises InputError for what is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise InputError(
                f"sensitivity: {path.name} is of format {data['format']}, this version reads"
                f" {FORMAT}; measure again (leave sensitivity out)"
            )
        tensors = {
            name: Row(
                tuple(row["shape"]),
                {kind: float(one["nats"]) for kind, one in row["types"].items()},
                int(row["quantized"]),
                int(row["rows"]),
            )
            for name, row in data["tensors"].items()
        }
        found = Sensitivities(str(data["weights"]), tensors, dict(data["about"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"sensitivity: {path} is no table of sensitivities ({type(error).__name__}: {error});"
            " autoquant writes one as sensitivity.json"
        ) from None
    values = [nats for row in tensors.values() for nats in row.nats.values()]
    unknown = {kind for row in tensors.values() for kind in row.nats} - set(gguf_head.NUMBERS)
    if not values or unknown or not all(math.isfinite(one) and one >= 0 for one in values):
        raise InputError(f"sensitivity: {path} is damaged; measure again (leave sensitivity out)")
    return found


def weights_of(snapshot: Snapshot) -> str:
    """A hash of what the tensors of a model are made of: the same for the same weights, whatever
    lies beside them.
    """
    files = {
        name: digest
        for name, digest in snapshot.files.items()
        if name.endswith((".safetensors", ".bin", ".gguf"))
    }
    return key_of(files)


def refuse_other(found: Sensitivities, snapshot: Snapshot, shapes: Mapping[str, Any]) -> None:
    """Refuse a table of another model or commit: of other weights, or of tensors of other
    ``shapes``.
    """
    source, about = snapshot.source, found.about
    if found.weights != weights_of(snapshot):
        of = f"{about.get('model', 'another model')}"
        of += f" at commit {commit[:10]}" if (commit := about.get("commit")) else ""
        here = f"{source.id}" + (f" at commit {source.revision[:10]}" if source.revision else "")
        raise InputError(
            f"sensitivity: the table is of {of}, whose weights are not those of {here}; measure"
            " again (leave sensitivity out), or quantize that model"
        )
    for name, row in found.tensors.items():
        if name not in shapes or tuple(shapes[name]) != row.shape:
            raise InputError(
                f"sensitivity: {name} is not in this model, or has another shape; measure again"
                " (leave sensitivity out)"
            )
