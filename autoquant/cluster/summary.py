"""The page on a batch, in Markdown and HTML: each file with what it lost and where it is, and what
went wrong.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from autoquant.cluster.board import OURS, Row, counted
from autoquant.cluster.jobs import Batch
from autoquant.cluster.work import DONE, FAILED
from autoquant.core.files import write_atomically
from autoquant.core.records import Artifact, RunRecord
from autoquant.display import engines, tables
from autoquant.display.shown import below_a_notebooks

HEAD = ("job", "model", "type", "bits/weight", "size", "perplexity", "KL mean", "top-1 agreement")
AGAIN = "Run the same batch again: what is done stays, what failed is tried again."
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:80em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td{vertical-align:top}"
    "th,td{padding:.25em .75em;border-bottom:1px solid #ccc;text-align:left}"
)


@dataclass(frozen=True)
class _Line:
    """A row of a table, and where its last column leads."""

    cells: tuple[str, ...]
    text: str
    address: str


class Page(str):
    """summary.md's text; in a notebook it shows itself, with links from where the notebook lies."""

    folder = Path()

    @classmethod
    def of(cls, path: Path) -> Page:
        """The page at a path."""
        page = cls(path.read_text(encoding="utf-8"))
        page.folder = path.parent
        return page

    def _repr_markdown_(self) -> str:
        inside = Path(os.path.relpath(self.folder)).as_posix()
        return below_a_notebooks(re.sub(r"\]\(<(?!\w+://)", f"](<{inside}/", self))


def write(batch: Batch, rows: Sequence[Row], results: Mapping[str, RunRecord]) -> Path:
    """Write summary.md and summary.html into the batch's folder; the first one's path."""
    title = f"{len(rows)} jobs: {counted(rows)}"
    files = [one.evaluation for row in rows for one in _files(row, results)]
    mixed = engines.mixed(files)
    made = [line for row in rows for line in _made(row, results, mixed=mixed)]
    wrong = [
        _Line((row.job.name, row.line), "log", f"{OURS}/logs/{row.job.name}.txt")
        for row in rows
        if row.state == FAILED
    ]
    rest = [row.job.name for row in rows if row.state not in (DONE, FAILED)]
    text, page = [f"# {title}"], [f"<h1>{escape(title)}</h1>"]
    columns = (*HEAD, *([engines.HEAD] if mixed else []), "where")
    for name, head, lines, below in (
        ("Made", columns, made, engines.said(files)),
        ("Failed", ("job", "what went wrong", "log"), wrong, [AGAIN]),
    ):
        if lines:
            linked = [(*one.cells, f"[{one.text}](<{one.address}>)") for one in lines]
            # figures to the right, between names and links
            left, words = (3, len(head) - len(HEAD)) if lines is made else (len(head), 0)
            drawn = tables.markdown(head, linked, left=left, words=words)
            text += [f"## {name}", drawn, *below]
            page += [f"<h2>{name}</h2>", _html(head, lines)]
            page += [f"<p>{escape(said)}</p>" for said in below]
    if rest:
        text.append(f"Not finished: {', '.join(rest)}.")
        page.append(f"<p>{escape(text[-1])}</p>")
    path = batch.folder / "summary.md"
    write_atomically(path, "\n\n".join(text) + "\n")
    html = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(page)}</body></html>\n"
    )
    write_atomically(batch.folder / "summary.html", html)
    return path


def _files(row: Row, results: Mapping[str, RunRecord]) -> tuple[Artifact, ...]:
    """What a job has made of what was asked for."""
    return results[row.job.name].offered if row.job.name in results else ()


def _made(row: Row, results: Mapping[str, RunRecord], *, mixed: bool) -> list[_Line]:
    """A line for each file of a job, with a link to it: on the Hub, if it was uploaded. What ran it
    stands there where the page's files are ``mixed``.
    """
    if row.job.name not in results:
        return []
    run, lines = results[row.job.name], []
    urls = {file.name: one.url for one in run.receipts for file in one.files}
    for one in run.offered:
        perplexity, kl, _, _, agreement = tables.quality(one.evaluation)
        cells = (row.job.name, run.source.id, one.type, f"{one.bits_per_weight:.2f}")
        url = urls.get(one.name) or next((receipt.url for receipt in run.receipts), "")
        here = Path(row.job.name, one.path_in(Path())).as_posix()
        link = ("on the Hub", url) if url else ("here", here)
        ran = (engines.by(one.evaluation),) if mixed else ()
        measured = (tables.size(one.bytes), perplexity, kl, agreement, *ran)
        lines.append(_Line((*cells, *measured), *link))
    return lines


def _html(head: Sequence[str], lines: Sequence[_Line]) -> str:
    body = "".join(
        "<tr>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in one.cells)
        + f"<td><a href='{escape(one.address)}'>{escape(one.text)}</a></td></tr>"
        for one in lines
    )
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{body}</table>"
