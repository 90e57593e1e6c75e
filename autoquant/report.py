"""Tables for the terminal, the notebook and the card, and the size-against-quality plot."""

from __future__ import annotations

import base64
import html as escaping
import io
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoquant import trace
from autoquant.methods import METHODS, Method, measured
from autoquant.plans import Plan
from autoquant.results import Comparison, Evaluation, Result

BESIDE = "display:flex;flex-wrap:wrap;gap:1em"  # a table with its plot, below it where narrow
PLOT = "size-against-quality.png"
HEAD = (
    "type",
    "bits/weight",
    "size",
    "perplexity",
    "KL mean",
    "KL median",
    "KL 99 %",
    "same top token",
)


def size(n: int) -> str:
    """Bytes in decimal units, as the Hub shows them."""
    value, unit = (n / 1e9, "GB") if n >= 1e9 else (n / 1e6, "MB") if n >= 1e5 else (n / 1e3, "kB")
    return f"{value:.2f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def quality(row: Evaluation | None) -> tuple[str, ...]:
    """The quality columns of a row; dashes if it was not measured."""
    if row is None:
        return ("–",) * 5
    return (
        f"{row.perplexity:.3f} ± {row.perplexity_error:.3f}",
        f"{row.kl_mean:.4f}",
        f"{row.kl_median:.4f}",
        f"{row.kl_99:.3f}",
        f"{row.agreement:.1%}",
    )


def rows(result: Result) -> list[tuple[str, ...]]:
    """The table's rows, largest first; the unquantized model on top."""
    out: list[tuple[str, ...]] = []
    if result.reference is not None:
        perplexity = quality(result.reference)[0]
        bits = {"F32": "32.00", "F16": "16.00", "BF16": "16.00"}.get(result.source.dtype, "")
        out.append(
            ("unquantized", bits, size(result.source.bytes), perplexity, "0", "0", "0", "100.0%")
        )
    for artifact in sorted(result.artifacts, key=lambda a: -a.bytes):
        out.append(
            (
                artifact.type,
                f"{artifact.bits_per_weight:.2f}",
                size(artifact.bytes),
                *quality(artifact.evaluation),
            )
        )
    return out


def table(head: Sequence[str], body: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A plain table; the first ``left`` columns are set to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    return "\n".join([line(head), "  ".join("─" * width for width in widths), *map(line, body)])


def markdown(
    head: Sequence[str], body: Sequence[Sequence[str]], *, left: int = 1, words: int = 0
) -> str:
    """The same as a Markdown table; the last ``words`` columns are set to the left too."""
    right = range(left, len(head) - words)
    lines = [
        "| " + " | ".join(head) + " |",
        "| " + " | ".join("---:" if i in right else "---" for i in range(len(head))) + " |",
    ]
    return "\n".join(
        lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body]
    )


METHODS_NOTE = (
    "Type, bits a weight (everything counted, at the shapes of Llama-3.1-8B), KL divergence (nats a"
    " token) and share of same top tokens (of the embedded model) are those of a run without"
    " options. What loads the files: transformers, llama.cpp and hqq were run in the tests, the"
    " others were not. EXL2 was made on a CPU with the tests' stand-in for a GPU."
)


def methods() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table of all methods: head and rows."""
    seen = measured()
    head = (
        "method",
        "bits",
        "calibration",
        "GPU to quantize",
        "GPU to run",
        "loaded by",
        "type",
        "bits/weight",
        "KL mean",
        "same top token",
    )

    def row(method: Method) -> tuple[str, ...]:
        facts, found = method.facts, seen.get(method.name)
        figures = (
            (
                found["type"],
                f"{found['bits_per_weight']:.2f}",
                f"{found['kl_mean']:.4f}",
                f"{found['agreement']:.1%}",
            )
            if found
            else ("–",) * 4
        )
        return (
            method.name,
            facts.bits,
            facts.calibration,
            facts.gpu_to_quantize,
            facts.gpu_to_run,
            facts.runtimes,
            *figures,
        )

    return head, [row(method) for method in METHODS.values()]


def _protocol(result: Result) -> str:
    row = next((a.evaluation for a in result.artifacts if a.evaluation), None)
    if row is None:
        return ""
    return (
        "Perplexity ± one standard error and KL divergence (nats a token) against the unquantized"
        f" model, on the same {row.tokens:,} predictions."
    )


def terminal(result: Result) -> str:
    """The table for a terminal, with what it means and where the files are."""
    kind = "file" if METHODS[result.method].kind == "gguf" else "model"
    count = f"{len(result.artifacts)} {kind}{'s' if len(result.artifacts) != 1 else ''}"
    notes = [
        f"note: {artifact.type}: {note}" for artifact in result.artifacts for note in artifact.notes
    ]
    lines = [
        f"{result.source.id}: {METHODS[result.method].title}",
        "",
        table(HEAD, rows(result)),
        "",
        _protocol(result),
        *notes,
        (
            f"{count}, model card{' and plot' if result.reference else ''} in {result.folder}"
            f" ({result.seconds:.0f} s)"
        ),
    ]
    lines += [
        f"uploaded and compared with the server: {receipt.url} (commit {receipt.commit[:10]},"
        f" {len(receipt.files)} files)"
        for receipt in result.receipts
    ]
    width = min(120, shutil.get_terminal_size().columns)
    return "\n".join(
        line if "  " in line or "─" in line else textwrap.fill(line, width, break_long_words=False)
        for line in lines
        if line is not None
    )


def html(result: Result) -> str:
    """The table with the plot beside it, for a notebook."""
    picture = result.folder / PLOT
    image = picture_html(picture.read_bytes(), "size against quality") if picture.is_file() else ""
    uploads = "".join(
        "<br>Uploaded and compared with the server: <a"
        f' href="{escaping.escape(one.url)}">{escaping.escape(one.repo)}</a>'
        for one in result.receipts
    )
    return (
        f"<div><p><b>{escaping.escape(result.source.id)}</b>: {METHODS[result.method].title}</p>"
        f"<div style='{BESIDE}'>{_html_table(HEAD, rows(result))}{image}</div>"
        f"<p>{_protocol(result)}<br>Files: {escaping.escape(str(result.folder))}{uploads}</p></div>"
    )


def picture_html(png: bytes, alt: str) -> str:
    """A picture for a notebook."""
    return (
        f'<img alt="{escaping.escape(alt)}" style="max-width:min(100%,680px)"'
        f' src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )


def checks_html(result: Result) -> str:
    """What was looked at on each file of a result, and what was seen, for a notebook."""
    body = [
        (artifact.type, check.name, check.seen)
        for artifact in result.artifacts
        for check in artifact.checks
    ]
    notes = "".join(
        f"<p>⚠ {escaping.escape(artifact.type)}: {escaping.escape(note)}</p>"
        for artifact in result.artifacts
        for note in artifact.notes
    )
    return f"<div>{_html_table(('type', 'check', 'seen'), body, left=3)}{notes}</div>"


def checks(result: Result) -> str:
    """The same for a terminal."""
    return table(
        ("type", "check", "seen"),
        [
            (artifact.type, check.name, check.seen)
            for artifact in result.artifacts
            for check in artifact.checks
        ],
        left=3,
    )


def _compared(result: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    body: list[tuple[str, ...]] = []
    shown: set[str] = set()
    for name, one in result.results.items():
        first = one.source.id not in shown and one.reference is not None
        shown |= {one.source.id} if first else set()
        body += [
            (one.source.id if row[0] == "unquantized" else name, *row)
            for row in rows(one)
            if row[0] != "unquantized" or first
        ]
    return (result.label, *HEAD), body


def _about(result: Comparison) -> tuple[str, str]:
    """A comparison in words: what is compared, and how far."""
    sources = {one.source.id: one.source for one in result.results.values()}
    titles = dict.fromkeys(METHODS[one.method].title for one in result.results.values())
    protocol = next(filter(None, map(_protocol, result.results.values())), "")
    measured = {
        (a.evaluation.text_sha256, a.evaluation.tokens)
        for one in result.results.values()
        for a in one.artifacts
        if a.evaluation
    }
    if (
        len({one.source.id for one in result.results.values()}) < len(result.results)
        and len(measured) > 1
    ):
        protocol = (
            "These were not measured on the same tokens (another text, or more of it): the rows do"
            " not compare with each other."
        )
    if len({one.tokenizer for one in result.results.values() if one.tokenizer}) > 1:
        protocol += (
            " These models have different tokenizers: their perplexities a token do not compare"
            " with each other."
        )
    return f"{', '.join(sources)}: {', '.join(titles)}", protocol


def comparison(result: Comparison) -> str:
    """The table of several results, for a terminal."""
    head, body = _compared(result)
    title, protocol = _about(result)
    return "\n".join(
        [
            title,
            "",
            table(head, body, left=2),
            "",
            protocol,
            *(f"{name}: {one.folder}" for name, one in result.results.items()),
        ]
    )


def comparison_html(result: Comparison) -> str:
    """Table and plot of several results, for a notebook."""
    head, body = _compared(result)
    title, protocol = _about(result)
    drawn = io.BytesIO()
    image = (
        picture_html(drawn.getvalue(), "size against quality")
        if _draw(result.results, drawn)
        else ""
    )
    return (
        f"<div><p><b>{escaping.escape(title)}</b></p>"
        f"<div style='{BESIDE}'>{_html_table(head, body, left=2)}{image}</div>"
        f"<p>{escaping.escape(protocol)}</p></div>"
    )


def _html_table(head: Sequence[str], body: Sequence[Sequence[str]], *, left: int = 1) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        first = ";white-space:nowrap"  # a type's name is no text to be broken
        styles = [
            f"text-align:{'left' if i < left else 'right'}{'' if i else first}"
            for i in range(len(cells))
        ]
        return (
            "<tr>"
            + "".join(
                f"<{tag} style='{style}'>{escaping.escape(cell)}</{tag}>"
                for style, cell in zip(styles, cells, strict=True)
            )
            + "</tr>"
        )

    lines = "".join(line(row, "td") for row in body)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{lines}</tbody></table>"


def _planned(
    result: Plan,
) -> tuple[str, tuple[str, ...], list[tuple[str, ...]], list[str], list[str]]:
    """A plan's parts: the model in words, head and rows of the table, notes, verdict."""
    head = ("type", "bits/weight", "size", "imatrix", "note")
    body = [
        (
            (item.type, "–", "–", "", f"cannot be made: {item.impossible}")
            if item.impossible
            else (
                item.type,
                f"{item.bits_per_weight:.2f}",
                size(item.bytes),
                "needed" if item.needs_imatrix else "",
                item.note,
            )
        )
        for item in result.items
    ]
    notes = sorted({row[4] for row in body if row[4]})
    below = []
    if len(notes) > 1 or any(len(note) > 40 for note in notes):  # long notes go below the table
        marks = {note: f"[{i}]" for i, note in enumerate(notes, 1)}
        body = [(*row[:4], marks.get(row[4], "")) for row in body]
        below = [f"{mark} {note}" for note, mark in marks.items()]
    # a method without importance matrix needs no column for it
    filled = [i for i in range(len(head)) if any(row[i] for row in body)]
    source = result.source
    verdict = [
        *([f"to download: {size(result.download)}"] if result.download else []),
        (
            f"all of these together: {size(result.disk_needed)} on the disk (free:"
            f" {size(result.disk_free)})"
        ),
        (
            f"memory while working: about {size(result.memory_needed)} (available:"
            f" {size(result.memory_available)})"
        ),
        result.verdict[1],
    ]
    title = (
        f"{source.id}: {source.architecture}, {source.parameters / 1e6:,.1f} million parameters,"
        f" {source.dtype}, {size(source.bytes)}"
    )
    return (
        title,
        tuple(head[i] for i in filled),
        [tuple(row[i] for i in filled) for row in body],
        [*below, *(f"note: {note}" for note in result.notes)],
        verdict,
    )


def plan(result: Plan) -> str:
    """A plan as a table, with the verdict below."""
    title, head, body, notes, verdict = _planned(result)
    return "\n".join(
        [
            title,
            "",
            table(head, body),
            *(textwrap.fill(note, 110, subsequent_indent="    ") for note in notes),
            "",
            *verdict,
        ]
    )


def plan_html(result: Plan) -> str:
    """A plan for a notebook."""
    title, head, body, notes, verdict = _planned(result)
    lines = "".join(f"<div>{escaping.escape(line)}</div>" for line in (*notes, *verdict[:-1]))
    good = result.verdict[0]
    color = "--jp-success-color1,#2e7d32" if good else "--jp-error-color1,#b00020"
    return (
        f"<div><p><b>{METHODS[result.method].title}</b> of"
        f" {escaping.escape(title)}</p>{_html_table(head, body)}{lines}<div"
        f" style='color:var({color})'><b>{'✓' if good else '✗'}"
        f" {escaping.escape(verdict[-1])}</b></div></div>"
    )


def evaluations(measured: Sequence[tuple[str, Evaluation]]) -> str:
    """A table of measured files."""
    return table(("model", *HEAD[3:]), [(name, *quality(row)) for name, row in measured])


def plot(result: Result, path: Path) -> None:
    """Size against perplexity and against KL divergence, one point a file, as a PNG. Nothing if
    fewer than one was measured.
    """
    scratch = path.with_name(f".{path.name}.part")
    if _draw({result.source.id: result}, scratch):
        scratch.replace(path)


COLORS = (
    "#2a6f97",
    "#e07a1f",
    "#5f8f3e",
    "#8e5aa8",
    "#b23a48",
    "#4d4d4d",
    "#1fa2a6",
    "#c2a500",
    "#d16ba5",
    "#7a5230",
)


def _thin_out(figure: Any, axes: Sequence[Any]) -> None:
    """Take labels of points away that would lie on another one: such points are close together
    here, and the table has them.
    """
    figure.canvas.draw()
    for axis in axes:
        kept: list[Any] = []
        for text in axis.texts:
            box = text.get_window_extent()
            if any(box.overlaps(other) for other in kept):
                text.set_visible(False)
            else:
                kept.append(box)


def _draw(results: Mapping[str, Result], target: Path | io.BytesIO) -> bool:
    """Draw the measured artifacts of one or several results into a PNG; False if there are none."""
    with trace.library("plot"):
        drawn = _figure(results)
        if drawn is not None:
            drawn.savefig(target, format="png")
    return drawn is not None


def _figure(results: Mapping[str, Result]) -> Any:
    """The plot as matplotlib's Figure: perplexity left, KL divergence right; None if nothing was
    measured.
    """
    measured = {
        name: sorted((a for a in one.artifacts if a.evaluation), key=lambda a: a.bytes)
        for name, one in results.items()
        if one.reference is not None
    }
    measured = {name: artifacts for name, artifacts in measured.items() if artifacts}
    if not measured:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    largest = max(artifacts[-1].bytes for artifacts in measured.values())
    unit, scale = ("GB", 1e9) if largest >= 1e9 else ("MB", 1e6)
    every = [
        a.evaluation.kl_mean for artifacts in measured.values() for a in artifacts if a.evaluation
    ]
    for axis, label in (
        (left, "perplexity (lower is better)"),
        (right, "mean KL divergence, nats a token"),
    ):
        axis.set_xlabel(f"size, {unit}")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        axis.margins(x=0.16, y=0.16)
    for i, (name, artifacts) in enumerate(measured.items()):
        color = COLORS[i % len(COLORS)]
        x = [a.bytes / scale for a in artifacts]
        evaluations = [a.evaluation for a in artifacts if a.evaluation]
        for axis, values in (
            (left, [e.perplexity for e in evaluations]),
            (right, [e.kl_mean for e in evaluations]),
        ):
            axis.plot(x, values, "-", color=color, alpha=0.3, linewidth=1, zorder=1)
            axis.scatter(x, values, color=color, zorder=2, label=name)
            for artifact, at, value in zip(artifacts, x, values, strict=True):
                axis.annotate(
                    artifact.type,
                    (at, value),
                    xytext=(5, 5),
                    textcoords="offset points",
                    fontsize=8,
                )
    sizes = [a.bytes / scale for artifacts in measured.values() for a in artifacts]
    # nearly the same: some bytes more are not to look like a difference
    if max(sizes) < 1.1 * min(sizes):
        for axis in (left, right):
            axis.set_xlim(0.9 * min(sizes), 1.1 * max(sizes))
    models = {one.source.id: one.reference for one in results.values() if one.reference is not None}
    # before the limits are set: however far from the points, the line is to be seen
    for row in models.values():
        left.axhline(row.perplexity, color="#a4161a", linewidth=1, linestyle="--")
    low, high = left.get_ylim()
    left.set_ylim(low - 0.06 * (high - low), high)  # room for the label below the line
    for model, row in models.items():
        left.annotate(
            f"{model.rsplit('/', 1)[-1]} unquantized" if len(models) > 1 else "unquantized",
            (1, row.perplexity),
            xycoords=("axes fraction", "data"),
            xytext=(-4, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            color="#a4161a",
        )
    if all(value > 0 for value in every) and max(every) > 20 * min(every):
        right.set_yscale("log")
    if len(measured) > 1:
        left.legend(fontsize=8)
    _thin_out(figure, (left, right))
    figure.suptitle(f"{' and '.join(models)}: size against quality", fontsize=11)
    return figure
