"""The quality table for SmolLM2-135M with and without importance matrix. usage: python -m
bench.smollm2 FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import autoquant
from autoquant.display import tables

TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


def main(model: Path) -> None:
    """Quantize both ways, measure, print one Markdown table."""
    body: list[tuple[str, ...]] = []
    for imatrix, types in (("none", TYPES), ("builtin", (*TYPES[2:], "IQ4_XS", "IQ3_M", "IQ2_M"))):
        result = autoquant.gguf(
            model,
            types=types,
            imatrix=imatrix,
            evaluate="on",
            out=Path("bench-work") / f"smollm2-{imatrix}",
        )
        rows = tables.rows(result)
        if not body:
            body.append((rows[0][0], "", *rows[0][1:]))
        body += [(row[0], "" if imatrix == "none" else "yes", *row[1:]) for row in rows[1:]]
        for artifact in result.artifacts:
            for note in artifact.notes:
                print(f"{artifact.type}: {note}", file=sys.stderr)
    print(tables.markdown(("type", "imatrix", *tables.HEAD[1:]), body, left=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
