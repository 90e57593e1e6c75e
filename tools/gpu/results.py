"""What a stage sees: checks with figure and tolerance, one table line each, kept as JSON."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu.watch import Watch

PASSED, FAILED, NOT_REHEARSED = "passed", "failed", "not rehearsed"
COLUMNS = ("stage", "check", "result", "seconds", "GPU GB", "figure", "tolerance")
WIDTHS = (10, 30, 13, 8, 7, 58, 0)
NEEDS_CUDA = "needs a CUDA GPU"


@dataclass(frozen=True)
class Seen:
    """What a check saw: whether it passed, the figure and its tolerance in words, all figures.

    ``seconds`` are told where the work was done before the check, beside others.
    """

    passed: bool
    figure: str
    tolerance: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """One line of the table. Memory is in bytes; 0 where nothing was seen."""

    stage: str
    check: str
    result: str
    seconds: float
    gpu_bytes: int
    host_bytes: int
    figure: str
    tolerance: str
    data: dict[str, Any] = field(default_factory=dict)


def header() -> str:
    """The table's first line."""
    return _cells(COLUMNS)


def line(row: Row) -> str:
    """A row as a line of the table."""
    memory = f"{row.gpu_bytes / 1e9:.2f}" if row.gpu_bytes else "-"
    return _cells(
        (row.stage, row.check, row.result, f"{row.seconds:.1f}", memory, row.figure, row.tolerance)
    )


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        cells = (
            row.stage,
            row.check,
            row.result,
            f"{row.seconds:.1f}",
            f"{row.gpu_bytes / 1e9:.2f}" if row.gpu_bytes else "-",
            row.figure,
            row.tolerance,
        )
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cells(cells: tuple[str, ...]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True))
    return "  ".join(padded).rstrip()


@dataclass
class Stage:
    """One stage at work, in a process of its own.

    ``work`` is a folder for what is made; ``reference`` holds figures of a CPU, by name; ``kept``
    collects those that this run would hand on as such. ``cuda`` says whether there is a GPU. If
    words are given (``only``), checks whose names contain none of them are left out.
    """

    name: str
    out: Path
    work: Path
    rehearse: bool
    cuda: bool
    reference: dict[str, Any]
    only: tuple[str, ...] = ()
    rows: list[Row] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)

    def wanted(self, *names: str) -> bool:
        """Whether any of some checks is to be done."""
        return not self.only or any(word in name for word in self.only for name in names)

    def check(
        self,
        name: str,
        look: Callable[[], Seen],
        *,
        needs_cuda: bool = False,
        cpu_too: bool = False,
    ) -> bool:
        """Do one check and print its line. Whatever it raises is a failure with that reason.

        One that ``needs_cuda`` is not done without, and never counts as passed there. In a
        rehearsal it is tried all the same if it can run on a CPU (``cpu_too``), so that its code
        is: what it then sees is told, and what it raises is a failure.
        """
        if not self.wanted(name):
            return False
        without = needs_cuda and not self.cuda
        if without and not (self.rehearse and cpu_too):
            result = NOT_REHEARSED if self.rehearse else FAILED
            self._add(Row(self.name, name, result, 0, 0, 0, NEEDS_CUDA, ""))
            return False
        begin = time.monotonic()
        with Watch(gpu=self.cuda) as watch:
            try:
                seen = look()
            except Exception as error:  # noqa: BLE001 (a check that breaks must not stop the rest)
                traceback.print_exc()  # to the stage's log
                said = " ".join(f"{type(error).__name__}: {error}".split())
                seen = Seen(False, said[:400], data={"trace": traceback.format_exc()[-6000:]})
        result = FAILED if not seen.passed else NOT_REHEARSED if without else PASSED
        figure = f"on the CPU: {seen.figure}" if without else seen.figure
        self._add(
            Row(
                self.name,
                name,
                result,
                seen.seconds or time.monotonic() - begin,
                watch.gpu_bytes,
                watch.host_bytes,
                figure,
                seen.tolerance,
                seen.data,
            )
        )
        return result == PASSED

    def keep(self, name: str, figure: Any) -> None:
        """Note a figure that a later run may be compared with."""
        self.kept[name] = figure

    def expected(self, name: str) -> Any:
        """A CPU's figure. Raises KeyError with its name if the reference lacks it."""
        if name not in self.reference:
            raise KeyError(f"the reference figures have no {name!r}: rehearse again")
        return self.reference[name]

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(line(row), flush=True)
        self.save()

    def save(self) -> None:
        """Write what has been seen so far, so that a stage cut off by its limit leaves it."""
        made = {"stage": self.name, "rows": [asdict(row) for row in self.rows], "kept": self.kept}
        path = self.out / f"{self.name}.json"
        path.with_suffix(".part").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".part").replace(path)


def read(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """The rows and kept figures of a stage; none if it wrote none."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [], {}
    return [Row(**row) for row in made["rows"]], dict(made["kept"])
