"""Tables for the terminal, the notebook and the card, and the size-against-quality plot."""

from __future__ import annotations

import html as escaping
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from autoquant import trace
from autoquant.methods import METHODS
from autoquant.plans import Plan
from autoquant.results import Artifact, Comparison, Evaluation, Result

PLOT = "size-against-quality.png"
HEAD = ("type", "bits/weight", "size", "perplexity", "KL mean", "KL median", "KL 99 %", "same top token")


def size(n: int) -> str:
    """Bytes in decimal units, as the Hub shows them."""
    value, unit = (n / 1e9, "GB") if n >= 1e9 else (n / 1e6, "MB") if n >= 1e5 else (n / 1e3, "kB")
    return f"{value:.2f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def quality(row: Evaluation | None) -> tuple[str, ...]:
    """The quality columns of a row; dashes if it was not measured."""
    if row is None:
        return ("–",) * 5
    return (f"{row.perplexity:.3f} ± {row.perplexity_error:.3f}", f"{row.kl_mean:.4f}", f"{row.kl_median:.4f}", f"{row.kl_99:.3f}", f"{row.agreement:.1%}")


def rows(result: Result) -> list[tuple[str, ...]]:
    """The table's rows, largest first; the unquantized model on top."""
    out: list[tuple[str, ...]] = []
    if result.reference is not None:
        perplexity = quality(result.reference)[0]
        bits = {"F32": "32.00", "F16": "16.00", "BF16": "16.00"}.get(result.source.dtype, "")
        out.append(("unquantized", bits, size(result.source.bytes), perplexity, "0", "0", "0", "100.0%"))
    for artifact in sorted(result.artifacts, key=lambda a: -a.bytes):
        out.append((artifact.type, f"{artifact.bits_per_weight:.2f}", size(artifact.bytes), *quality(artifact.evaluation)))
    return out


def table(head: Sequence[str], body: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A plain table; the first ``left`` columns are set to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths, strict=True))).rstrip()

    return "\n".join([line(head), "  ".join("─" * width for width in widths), *map(line, body)])


def markdown(head: Sequence[str], body: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """The same as a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" if i < left else "---:" for i in range(len(head))) + " |"]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body])


def _protocol(result: Result) -> str:
    row = next((a.evaluation for a in result.artifacts if a.evaluation), None)
    if row is None:
        return ""
    return f"Perplexity ± one standard error and KL divergence (nats a token) against the unquantized model, on the same {row.tokens:,} predictions."


def terminal(result: Result) -> str:
    """The table for a terminal, with what it means and where the files are."""
    kind = "file" if METHODS[result.method].kind == "gguf" else "model"
    count = f"{len(result.artifacts)} {kind}{'s' if len(result.artifacts) != 1 else ''}"
    notes = [f"note: {artifact.type}: {note}" for artifact in result.artifacts for note in artifact.notes]
    lines = [f"{result.source.id}: {METHODS[result.method].title}", "", table(HEAD, rows(result)), "", _protocol(result), *notes,
             f"{count}, model card{' and plot' if result.reference else ''} in {result.folder} ({result.seconds:.0f} s)"]
    lines += [f"uploaded and compared with the server: {receipt.url} (commit {receipt.commit[:10]}, {len(receipt.files)} files)" for receipt in result.receipts]
    width = min(120, shutil.get_terminal_size().columns)
    return "\n".join(line if "  " in line or "─" in line else textwrap.fill(line, width, break_long_words=False) for line in lines if line is not None)


def html(result: Result) -> str:
    """The table with the plot beside it, for a notebook."""
    import base64

    picture = result.folder / PLOT
    image = f'<img alt="size against quality" style="max-width:480px" src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}">' if picture.is_file() else ""
    return (f"<div><p><b>{escaping.escape(result.source.id)}</b>: {METHODS[result.method].title}</p><div style='display:flex;flex-wrap:wrap;gap:1em'>"
            f"{_html_table(HEAD, rows(result))}{image}</div><p>{_protocol(result)}<br>Files: {escaping.escape(str(result.folder))}</p></div>")


def _compared(result: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    first = next(iter(result.results.values()))
    body = [("unquantized", "", *rows(first)[0][1:])] if first.reference is not None else []
    for name, one in result.results.items():
        body += [(name, *row) for row in rows(one) if row[0] != "unquantized"]
    return ("calibration", *HEAD), body


def comparison(result: Comparison) -> str:
    """The table of several calibration sets, for a terminal."""
    head, body = _compared(result)
    first = next(iter(result.results.values()))
    return "\n".join([f"{first.source.id}: {METHODS[first.method].title}", "", table(head, body, left=2), "", _protocol(first),
                      f"each in a folder of its own in {first.folder.parent}"])


def comparison_html(result: Comparison) -> str:
    """The table of several calibration sets, for a notebook."""
    head, body = _compared(result)
    first = next(iter(result.results.values()))
    return (f"<div><p><b>{escaping.escape(first.source.id)}</b>: {METHODS[first.method].title}</p>{_html_table(head, body)}"
            f"<p>{_protocol(first)}<br>Folders: {escaping.escape(str(first.folder.parent))}</p></div>")


def _html_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{escaping.escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f"<table><thead><tr>{''.join(f'<th>{escaping.escape(cell)}</th>' for cell in head)}</tr></thead><tbody>{cells}</tbody></table>"


def plan(result: Plan) -> str:
    """A plan as a table, with the verdict below."""
    head = ("type", "bits/weight", "size", "imatrix", "note")
    body = [(item.type, "–", "–", "", f"cannot be made: {item.impossible}") if item.impossible else
            (item.type, f"{item.bits_per_weight:.2f}", size(item.bytes), "needed" if item.needs_imatrix else "", item.note) for item in result.items]
    notes = sorted({row[4] for row in body if row[4]})
    if len(notes) > 1 or any(len(note) > 40 for note in notes):  # long notes go below the table
        marks = {note: f"[{i}]" for i, note in enumerate(notes, 1)}
        body = [(*row[:4], marks.get(row[4], "")) for row in body]
        below = [textwrap.fill(f"{mark} {note}", 110, subsequent_indent="    ") for note, mark in marks.items()]
    else:
        below = []
    filled = [i for i in range(len(head)) if any(row[i] for row in body)]  # a method without importance matrix needs no column for it
    shown = table(tuple(head[i] for i in filled), [tuple(row[i] for i in filled) for row in body])
    source = result.source
    verdict = [*([f"to download: {size(result.download)}"] if result.download else []),
               f"all of these together: {size(result.disk_needed)} on the disk (free: {size(result.disk_free)})",
               f"memory while working: about {size(result.memory_needed)} (available: {size(result.memory_available)})",
               "it fits" if result.fits else "it does NOT fit" + (": ask for fewer or smaller types" if result.disk_needed > result.disk_free else "")]
    return "\n".join([f"{source.id}: {source.architecture}, {source.parameters / 1e6:,.1f} million parameters, {source.dtype}, {size(source.bytes)}", "",
                      shown, *below, *(f"note: {note}" for note in result.notes), "", *verdict])


def evaluations(measured: Sequence[tuple[str, Evaluation]]) -> str:
    """A table of measured files."""
    return table(("model", *HEAD[3:]), [(name, *quality(row)) for name, row in measured])


def plot(result: Result, path: Path) -> None:
    """Size against perplexity and against KL divergence, one point a file, as a PNG. Nothing if fewer than one was measured."""
    measured = sorted((a for a in result.artifacts if a.evaluation), key=lambda a: a.bytes)
    if not measured or result.reference is None:
        return
    with trace.library("plot"):
        _draw(result, measured, path)


def _draw(result: Result, measured: list[Artifact], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reference = result.reference
    assert reference is not None
    figure = Figure(figsize=(9.6, 4.2), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    unit, scale = ("GB", 1e9) if measured[-1].bytes >= 1e9 else ("MB", 1e6)
    x = [a.bytes / scale for a in measured]
    evaluations = [a.evaluation for a in measured if a.evaluation]
    series = ((left, [e.perplexity for e in evaluations], "perplexity (lower is better)"), (right, [e.kl_mean for e in evaluations], "mean KL divergence, nats a token"))
    for axis, values, label in series:
        axis.plot(x, values, "-", color="#c9c9c9", linewidth=1, zorder=1)
        axis.scatter(x, values, color="#2a6f97", zorder=2)
        axis.set_xlabel(f"size, {unit}")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        axis.margins(x=0.16, y=0.16)
    left.axhline(reference.perplexity, color="#a4161a", linewidth=1, linestyle="--")
    left.annotate("unquantized", (1, reference.perplexity), xycoords=("axes fraction", "data"), xytext=(-4, -4), textcoords="offset points",
                  ha="right", va="top", fontsize=8, color="#a4161a")
    if all(e.kl_mean > 0 for e in evaluations) and max(e.kl_mean for e in evaluations) > 20 * min(e.kl_mean for e in evaluations):
        right.set_yscale("log")
    for axis, values, _ in series:
        for i, (artifact, value) in enumerate(zip(measured, values, strict=True)):
            axis.annotate(artifact.type, (x[i], value), xytext=(5, 5), textcoords="offset points", fontsize=8)
    figure.suptitle(f"{result.source.id}: size against quality", fontsize=11)
    scratch = path.with_name(f".{path.name}.part")
    figure.savefig(scratch, format="png")
    scratch.replace(path)

