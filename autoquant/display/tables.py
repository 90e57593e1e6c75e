"""Records as tables of text: for the terminal, in the chosen language; and Markdown for cards and
docs, which is English.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence

from autoquant.core.language import say, told
from autoquant.core.plans import Plan
from autoquant.core.records import COMPARED, UNQUANTIZED, Artifact, Evaluation, RunRecord, Source
from autoquant.display import engines, gains

PLOT = "size-against-quality.png"  # a run's plot, beside its files if it has two or more
WIDTHS = {"F32": "32.00", "F16": "16.00", "BF16": "16.00"}  # of what is not quantized

TOLD_APART = (
    "The ± comes mostly from the choice of text and is similar in every row, so compare rows by"
    " their KL divergence."
)
HEAD = (
    "type",
    "bits/weight",
    "size",
    "perplexity",
    "KL mean",
    "KL median",
    "KL 99 %",
    "top-1 agreement",
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
        _little(row.kl_mean, 4),
        _little(row.kl_median, 4),
        _little(row.kl_99, 3),
        f"{row.agreement:.1%}",
    )


def _little(value: float, digits: int) -> str:
    """A divergence; of one that would round to nothing, that there is one."""
    least = 10.0**-digits
    return f"<{least:.{digits}f}" if 0 < value < least / 2 else f"{value:.{digits}f}"


def reference_name(source: Source) -> str:
    """What the model is called that others are measured against."""
    quantized = source.gguf and source.dtype not in WIDTHS
    return f"source, {source.dtype}" if quantized else UNQUANTIZED


def reference_model(source: Source) -> str:
    """The same in a sentence."""
    name = reference_name(source)
    return "unquantized model" if name == UNQUANTIZED else f"{source.dtype} file it is made of"


def largest_first(result: RunRecord) -> list[Artifact]:
    """The artifacts in the order of the table's rows."""
    return sorted(result.artifacts, key=lambda a: -a.bytes)


def rows(result: RunRecord) -> list[tuple[str, ...]]:
    """The table's rows, largest first; the unquantized model on top."""
    out: list[tuple[str, ...]] = []
    if result.reference is not None:
        perplexity = quality(result.reference)[0]
        source = result.source
        bits = WIDTHS.get(source.dtype, "")
        if source.gguf and not bits:
            bits = f"{8 * source.bytes / source.parameters:.2f}"
        name = reference_name(source)
        out.append((name, bits, size(source.bytes), perplexity, "0", "0", "0", "100.0%"))
    for artifact in largest_first(result):
        out.append(
            (
                f"{artifact.type} (llama.cpp's)" if COMPARED in artifact.facts else artifact.type,
                f"{artifact.bits_per_weight:.2f}",
                size(artifact.bytes),
                *quality(artifact.evaluation),
            )
        )
    return out


def table(head: Sequence[str], body: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A plain table; the first ``left`` columns are set to the left, the others to the right."""
    head, body = tuple(map(told, head)), [tuple(map(told, row)) for row in body]
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
    """The same as a Markdown table; the last ``words`` columns are set to the left too. A number
    and its unit or error are not to be put on two lines.
    """
    right = range(left, len(head) - words)
    body = [
        [cell.replace(" ", "\u00a0") if i in right else cell for i, cell in enumerate(row)]
        for row in body
    ]
    lines = [
        "| " + " | ".join(head) + " |",
        "| " + " | ".join("---:" if i in right else "---" for i in range(len(head))) + " |",
    ]
    return "\n".join(
        lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body]
    )


def evaluations(measured: Sequence[tuple[str, Evaluation]]) -> str:
    """A table of measured files, the unquantized model first, with what is to be said of who ran
    them.
    """
    files = [row for _, row in measured[1:]]
    mixed = engines.mixed(files)
    head = ("model", *HEAD[3:], *([engines.HEAD] if mixed else []))
    body = [(name, *quality(row), *([engines.by(row)] if mixed else [])) for name, row in measured]
    return "\n\n".join([table(head, body), *map(told, engines.said(files))])


def protocol(result: RunRecord, *, alone: bool = True) -> str:
    """How a run's artifacts were measured, in words; empty if they were not. ``alone``: no file of
    another model stands beside them, so that a reader is told what tells them apart.
    """
    row = next((a.evaluation for a in result.artifacts if a.evaluation), None)
    if row is None:
        return ""
    said = (
        "Perplexity ± one standard error and KL divergence (nats per token: mean, median, 99th"
        f" percentile) against the {reference_model(result.source)}, on the same"
        f" {row.tokens:,} predictions. Top-1 agreement: how often the likeliest token is the same."
    )
    return f"{said} {TOLD_APART}" if alone else said


def by_kind(run: RunRecord) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Mean KL divergence on each kind of text: head and rows; none if there is one kind."""
    measured = [one for one in run.artifacts if one.evaluation and one.evaluation.by_kind]
    ordered = sorted(measured, key=lambda a: -a.bytes)
    kinds = dict.fromkeys(k for a in ordered if a.evaluation for k in a.evaluation.by_kind)
    body = [
        (a.type, *(f"{a.evaluation.by_kind[kind]['kl_mean']:.4f}" for kind in kinds))
        for a in ordered
        if a.evaluation
    ]
    return ("type", *kinds), body if kinds else []


def kinds_of(measured: Sequence[tuple[str, Evaluation]]) -> str:
    """A table of measured files with a row for each kind of text; empty if there is one."""
    body = [
        (
            name,
            kind,
            f"{one['perplexity']:.3f}",
            f"{one['kl_mean']:.4f}",
            f"{one['agreement']:.1%}",
        )
        for name, row in measured
        for kind, one in row.by_kind.items()
    ]
    head = ("model", "text", "perplexity", "KL mean", "top-1 agreement")
    return table(head, body, left=2) if body else ""


def result(run: RunRecord, title: str) -> str:
    """A run's table for a terminal, with what it means and where the files are. ``title`` is the
    method's.
    """
    kind = "model" if any(artifact.is_folder for artifact in run.artifacts) else "file"
    count = say(f"{{n}} {kind}{'s' * (len(run.artifacts) != 1)}", n=len(run.artifacts))
    made = say(
        "{files}, model card{plot} in {folder} ({seconds} s)",
        files=count,
        plot=say(" and plot") if PLOT in run.extras else "",
        folder=run.folder,
        seconds=f"{run.seconds:.0f}",
    )
    lines = [
        f"{run.source.id}: {title}",
        "",
        table(HEAD, rows(run)),
        "",
        protocol(run),
        *map(str, gains.of(run)),
        *(
            f"note: {artifact.type}: {note}"
            for artifact in run.artifacts
            for note in artifact.notes
        ),
        made,
    ]
    lines += [
        f"uploaded and compared with the server: {receipt.url} (commit {receipt.commit[:10]},"
        f" {len(receipt.files)} files)"
        for receipt in run.receipts
    ]
    width = min(120, shutil.get_terminal_size().columns)
    return "\n".join(
        line
        if "  " in line or "─" in line
        else textwrap.fill(told(line), width, break_long_words=False)
        for line in lines
    )


def checks(run: RunRecord) -> str:
    """What was looked at on each file of a run, and what was seen."""
    return table(("type", "check", "what was found"), checked(run), left=3)


def checked(run: RunRecord) -> list[tuple[str, str, str]]:
    """The rows of :func:`checks`."""
    return [(one.type, check.name, check.seen) for one in run.artifacts for check in one.checks]


def time_here(seconds: Mapping[str, float]) -> str:
    """A plan's time, as far as it is known."""
    parts = [
        say("{time} to {doing}", time=told(minutes(value)), doing=told(doing))
        for doing, value in seconds.items()
    ]
    listed = ", ".join(parts)
    if "quantize" in seconds:
        return say("time here: about {parts}", parts=listed)
    return say("time here: about {parts}; quantizing is not counted", parts=listed)


def minutes(seconds: float) -> str:
    """A time in words, as exact as an estimate is."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    count, unit = (seconds, "second") if seconds < 50 else (seconds / 60, "minute")
    count = max(1, round(count, -1 if count > 10 and unit == "second" else 0))
    return f"{count:.0f} {unit}{'s' if count > 1 else ''}"


def plan(planned: Plan) -> str:
    """A plan as a table, with the verdict below."""
    title, head, body, notes, verdict = plan_parts(planned)
    wrapped = (textwrap.fill(told(note), 110, subsequent_indent="    ") for note in notes)
    return "\n".join([told(title), "", table(head, body), *wrapped, "", *map(told, verdict)])


def plan_parts(
    planned: Plan,
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
        for item in planned.items
    ]
    notes = sorted({row[4] for row in body if row[4]})
    below = []
    if len(notes) > 1 or any(len(note) > 40 for note in notes):  # long notes go below the table
        marks = {note: f"[{i}]" for i, note in enumerate(notes, 1)}
        body = [(*row[:4], marks.get(row[4], "")) for row in body]
        below = [f"{mark} {note}" for note, mark in marks.items()]
    # a method without importance matrix needs no column for it
    filled = [i for i in range(len(head)) if any(row[i] for row in body)]
    source = planned.source
    disk, free = size(planned.disk_needed), size(planned.disk_free)
    memory, available = size(planned.memory_needed), size(planned.memory_available)
    verdict = [
        *([f"to download: {size(planned.download)}"] if planned.download else []),
        f"disk while working: about {disk} (free: {free})",
        f"memory while working: about {memory} (available: {available})",
        *([time_here(planned.seconds)] if planned.seconds else []),
        planned.verdict[1],
    ]
    title = (
        f"{source.id}: {source.architecture}, {source.parameters / 1e6:,.1f} million parameters,"
        f" {source.dtype}, {size(source.bytes)}"
    )
    return (
        title,
        tuple(head[i] for i in filled),
        [tuple(row[i] for i in filled) for row in body],
        [*below, *(f"note: {note}" for note in planned.notes)],
        verdict,
    )
