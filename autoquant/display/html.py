"""Records as HTML, for notebooks: in the language that is spoken there."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from autoquant.core import language
from autoquant.core.language import say, told
from autoquant.core.plans import Plan
from autoquant.core.records import RunRecord
from autoquant.display import compared, gains, plot, tables

SHORT, LONG = 16, 20  # letters of a text that is not broken, and of a name that may be
UNFOLDED = 14  # rows of checks that are shown without being asked for
BESIDE = "display:flex;flex-wrap:wrap;gap:1em"  # a table with its plot, below it where narrow


class Markup(str):
    """A cell that is HTML already."""


def table(
    head: Sequence[str], body: Sequence[Sequence[str]], *, left: int = 1, words: int = 0
) -> str:
    """A table; the first ``left`` columns are set to the left, the others to the right, the last
    ``words`` to the left too.
    """
    right = range(left, len(head) - words)

    def shown(cell: str) -> str:
        # a number and its unit stay together where a head is broken
        return cell if isinstance(cell, Markup) else escape(told(cell)).replace(" %", "\u00a0%")

    def line(cells: Sequence[str], tag: str) -> str:
        # neither a type's name nor a number with its unit is a text to be broken; a long name is
        whole = ";white-space:nowrap"
        name = ";overflow-wrap:anywhere;min-width:9em"
        styles = [
            f"text-align:{'right' if i in right else 'left'}"
            + (name if long and not i else whole if not 0 < i < left or len(cell) <= SHORT else "")
            * (tag == "td")
            for i, cell in enumerate(cells)
        ]
        drawn = (
            f"<{tag} style='{style}'>{shown(cell)}</{tag}>"
            for style, cell in zip(styles, cells, strict=True)
        )
        return f"<tr>{''.join(drawn)}</tr>"

    long = any(len(row[0]) > LONG for row in body)
    lines = "".join(line(row, "td") for row in body)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{lines}</tbody></table>"


def picture(png: bytes, alt: str, *, wide: bool = False) -> str:
    """A picture; ``wide``: as wide as there is room."""
    alt = told(alt)
    width = "100%" if wide else "min(100%,680px)"
    return (
        f'<img alt="{escape(alt)}" style="max-width:{width}"'
        f' src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )


def result(run: RunRecord, title: str) -> str:
    """A run's table with the plot beside it. ``title`` is the method's."""
    drawn, runs = run.folder / plot.PLOT, {run.source.id: run}
    image = ""
    if drawn.is_file():  # which is English: it goes to the Hub
        english = language.chosen() == language.ENGLISH
        png = drawn.read_bytes() if english else plot.png(runs)
        image = picture(png, plot.described(runs))
    uploads = "".join(
        f"<br>{escape(told('Uploaded and compared with the server:'))}"
        f' <a href="{escape(one.url)}">{escape(one.repo)}</a>'
        for one in run.receipts
    )
    rows = table(tables.HEAD, tables.rows(run))
    gained = "".join(f"<p><b>{escape(told(str(one)))}</b></p>" for one in gains.of(run))
    files = f"{escape(told('Files:'))} {escape(str(run.folder))}{uploads}"
    return (
        f"<div><p><b>{escape(run.source.id)}</b>: {title}</p>"
        f"<div style='{BESIDE}'>{rows}{image}</div>"
        f"{gained}<p>{escape(told(tables.protocol(run)))}<br>{files}</p></div>"
    )


def checks(run: RunRecord, name: str = "") -> str:
    """What was looked at on each file of a run, and what was seen: folded where it is long, or one
    of several, which has a ``name``.
    """
    notes = "".join(
        f"<p>⚠ {escape(artifact.type)}: {escape(told(note))}</p>"
        for artifact in run.artifacts
        for note in artifact.notes
    )
    rows = tables.checked(run)
    passed = say("{n} checks passed", n=len(rows))
    shown = table(("type", "check", "what was found"), rows, left=3)
    opened = " open" if len(rows) <= UNFOLDED and not name else ""
    said = escape(f"{name}: {passed}" if name else passed)
    return f"<div><details{opened}><summary>✓ {said}</summary>{shown}</details>{notes}</div>"


def comparison(
    results: Mapping[str, RunRecord], label: str, titles: Sequence[str], more: Sequence[str] = ()
) -> str:
    """Table and plot of several runs; see :func:`autoquant.display.compared.comparison`."""
    head, body = compared.compared(results, label)
    title, said = compared.about(results, titles)
    below = (said, *compared.run_by(results), *more)
    drawn = plot.png(results)
    image = picture(drawn, plot.described(results)) if drawn else ""
    return (
        f"<div><p><b>{escape(title)}</b></p>"
        f"<div style='{BESIDE}'>{table(head, body, left=2)}{image}</div>"
        f"<p>{'<br>'.join(escape(told(line)) for line in below)}</p></div>"
    )


def plan(planned: Plan, title: str) -> str:
    """A plan's table with its verdict. ``title`` is the method's."""
    what, head, body, notes, verdict = tables.plan_parts(planned)
    lines = "".join(f"<div>{escape(told(line))}</div>" for line in (*notes, *verdict[:-1]))
    said = verdict_line(planned.verdict[0], told(verdict[-1]))
    return f"<div><p>{escape(told(f'{title} of {what}'))}</p>{table(head, body)}{lines}{said}</div>"


def verdict_line(good: bool, said: str) -> str:
    """Whether something can be done, in its color."""
    color = "--jp-success-color1,#2e7d32" if good else "--jp-error-color1,#b00020"
    mark = "✓" if good else "✗"
    return f"<div style='color:var({color})'><b>{mark} {escape(said)}</b></div>"
