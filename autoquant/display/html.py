"""Records as HTML, for notebooks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from autoquant.core.plans import Plan
from autoquant.core.records import RunRecord
from autoquant.display import gains, plot, tables

BESIDE = "display:flex;flex-wrap:wrap;gap:1em"  # a table with its plot, below it where narrow


def table(head: Sequence[str], body: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table; the first ``left`` columns are set to the left, the others to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        first = ";white-space:nowrap"  # a type's name is no text to be broken
        styles = [
            f"text-align:{'left' if i < left else 'right'}{'' if i else first}"
            for i in range(len(cells))
        ]
        drawn = (
            f"<{tag} style='{style}'>{escape(cell)}</{tag}>"
            for style, cell in zip(styles, cells, strict=True)
        )
        return f"<tr>{''.join(drawn)}</tr>"

    lines = "".join(line(row, "td") for row in body)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{lines}</tbody></table>"


def picture(png: bytes, alt: str, *, wide: bool = False) -> str:
    """A picture; ``wide``: as wide as there is room."""
    width = "100%" if wide else "min(100%,680px)"
    return (
        f'<img alt="{escape(alt)}" style="max-width:{width}"'
        f' src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )


def result(run: RunRecord, title: str) -> str:
    """A run's table with the plot beside it. ``title`` is the method's."""
    drawn = run.folder / plot.PLOT
    alt = plot.described({run.source.id: run})
    image = picture(drawn.read_bytes(), alt) if drawn.is_file() else ""
    uploads = "".join(
        "<br>Uploaded and compared with the server:"
        f' <a href="{escape(one.url)}">{escape(one.repo)}</a>'
        for one in run.receipts
    )
    rows = table(tables.HEAD, tables.rows(run))
    gained = "".join(f"<p><b>{escape(str(one))}</b></p>" for one in gains.of(run))
    files = f"Files: {escape(str(run.folder))}{uploads}"
    return (
        f"<div><p><b>{escape(run.source.id)}</b>: {title}</p>"
        f"<div style='{BESIDE}'>{rows}{image}</div>"
        f"{gained}<p>{tables.protocol(run)}<br>{files}</p></div>"
    )


def checks(run: RunRecord) -> str:
    """What was looked at on each file of a run, and what was seen."""
    notes = "".join(
        f"<p>⚠ {escape(artifact.type)}: {escape(note)}</p>"
        for artifact in run.artifacts
        for note in artifact.notes
    )
    return f"<div>{table(('type', 'check', 'seen'), tables.checked(run), left=3)}{notes}</div>"


def comparison(
    results: Mapping[str, RunRecord], label: str, titles: Sequence[str], more: Sequence[str] = ()
) -> str:
    """Table and plot of several runs; see :func:`autoquant.display.tables.comparison`."""
    head, body = tables.compared(results, label)
    title, said = tables.about(results, titles)
    drawn = io.BytesIO()
    shown = plot.draw(results, drawn)
    image = picture(drawn.getvalue(), plot.described(results)) if shown else ""
    return (
        f"<div><p><b>{escape(title)}</b></p>"
        f"<div style='{BESIDE}'>{table(head, body, left=2)}{image}</div>"
        f"<p>{'<br>'.join(map(escape, (said, *more)))}</p></div>"
    )


def plan(planned: Plan, title: str) -> str:
    """A plan's table with its verdict. ``title`` is the method's."""
    what, head, body, notes, verdict = tables.plan_parts(planned)
    lines = "".join(f"<div>{escape(line)}</div>" for line in (*notes, *verdict[:-1]))
    good = planned.verdict[0]
    color = "--jp-success-color1,#2e7d32" if good else "--jp-error-color1,#b00020"
    said = f"{'✓' if good else '✗'} {escape(verdict[-1])}"
    return (
        f"<div><p><b>{title}</b> of {escape(what)}</p>{table(head, body)}{lines}"
        f"<div style='color:var({color})'><b>{said}</b></div></div>"
    )
