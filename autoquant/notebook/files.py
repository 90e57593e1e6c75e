"""What a notebook has made: where the files lie, how large they are, how to run them from there; in
Colab buttons that download them or copy them to Google Drive.
"""

from __future__ import annotations

import html
import importlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from autoquant.core.errors import AutoQuantError
from autoquant.core.language import say
from autoquant.core.records import Artifact
from autoquant.display import tables
from autoquant.methods import METHODS
from autoquant.notebook.page import drive, in_colab, tooltip

if TYPE_CHECKING:
    from autoquant.result import Result


class Files:
    """The files of some runs, by any name. Prints paths, sizes and commands; a notebook shows links
    to what lies beside it.
    """

    def __init__(self, results: Mapping[str, Result] | Result) -> None:
        several = results.values() if isinstance(results, Mapping) else (results,)
        self.results: Sequence[Result] = tuple(several)

    def rows(self) -> list[tuple[str, Path, int, str]]:
        """Of each file or folder: its type, where it lies, bytes, and the command that runs it."""
        return [
            (artifact.type, path, artifact.bytes, _command(result, path))
            for result in self.results
            for artifact in result.artifacts
            if (path := _place(result, artifact)) is not None
        ]

    def __str__(self) -> str:
        return "\n".join(
            f"{kind}: {path} ({tables.size(size)})" + (f"\n    {command}" if command else "")
            for kind, path, size, command in self.rows()
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = []
        for result in self.results:
            folder = result.folder.resolve()
            where = say(
                "everything lies in {folder}; {card} is its model card",
                folder=f"<code>{html.escape(str(folder))}</code>",
                card=_link(folder / "README.md"),
            )
            title = html.escape(METHODS[result.method].title)
            parts.append(f"<p><b>{title}</b>: {where}</p>")
        for kind, path, size, command in self.rows():
            run = f"<br><code>{html.escape(command)}</code>" if command else ""
            parts.append(
                f"<p style='margin:2px 0 2px 1em'>{html.escape(kind)}, {tables.size(size)}:"
                f" {_link(path)}{run}</p>"
            )
        gone = [
            one.type
            for result in self.results
            for one in result.artifacts
            if _place(result, one) is None
        ]
        if gone:
            deleted = say("Deleted here as they were uploaded: {types}", types=", ".join(gone))
            parts.append(f"<p>{deleted}</p>")
        return "".join(parts)

    def _ipython_display_(self) -> None:
        display = importlib.import_module("IPython.display")
        display.display(display.HTML(self._repr_html_()))
        if in_colab():
            display.display(self.buttons())

    def buttons(self) -> Any:
        """In Colab: to download each file, and to copy everything to Google Drive."""
        import ipywidgets

        said = ipywidgets.HTML()
        made = []
        for kind, _, size, _ in self.rows():
            for one in self._parts(kind):
                button = ipywidgets.Button(
                    description=say("Download {type}", type=kind),
                    icon="download",
                    layout={"width": "16em"},
                )
                about = say(
                    "{file}, {size}, to your computer", file=one.name, size=tables.size(size)
                )
                tooltip(button, about)
                button.on_click(lambda _, one=one: _download(one, said))
                made.append(button)
        copy = ipywidgets.Button(
            description=say("Copy to Google Drive"), icon="cloud", layout={"width": "16em"}
        )
        tooltip(copy, say("all files of these runs, into the folder AutoQuant of your Drive"))
        copy.on_click(lambda _: self._copy(said))
        row = ipywidgets.Box([*made, copy], layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([row, said])

    def _parts(self, kind: str) -> list[Path]:
        """The files of a type, all its shards; none of a folder."""
        return [
            path
            for result in self.results
            for artifact in result.artifacts
            if artifact.type == kind and _place(result, artifact) is not None
            for path in artifact.paths_in(result.folder)
            if path.is_file()
        ]

    def _copy(self, said: Any) -> None:
        said.value = f'<span role="status">{say("copying …")}</span>'
        try:
            for result in self.results:
                target = drive() / "AutoQuant" / result.folder.resolve().name
                if target.resolve() == result.folder.resolve():
                    said.value = say("They lie there already.")
                    return
                shutil.copytree(
                    result.folder,
                    target,
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns(".autoquant"),
                )
            copied = say("copied to {folder}", folder=html.escape(str(target.parent)))
            said.value = f'<span role="status">✓ {copied}</span>'
        except (AutoQuantError, OSError) as error:
            told = str(error).removeprefix("out: ")
            said.value = f'<span role="alert">✗ {html.escape(told)}</span>'


def _place(result: Result, artifact: Artifact) -> Path | None:
    """Where an artifact lies; None if it was deleted when it was uploaded."""
    if artifact.facts.get("deleted"):
        return None
    return artifact.path_in(result.folder).resolve()


def _command(result: Result, path: Path) -> str:
    """The command that runs it with what most people take; empty where that is a script."""
    return METHODS[result.method].start.format(
        path=shlex.quote(str(path)),
        folder=shlex.quote(str(path.parent)),
        name=shlex.quote(path.name),
    )


def _link(path: Path) -> str:
    """A link to what lies beside the notebook or below it, else the path."""
    try:
        here = path.relative_to(Path.cwd().resolve())
    except ValueError:
        return f"<code>{html.escape(str(path))}</code>"
    target = quote(here.as_posix())
    return f'<a href="{target}" target="_blank">{html.escape(str(path))}</a>'


def _download(path: Path, said: Any) -> None:
    name = html.escape(path.name)
    said.value = f'<span role="status">{say("sending {file} …", file=name)}</span>'
    try:
        importlib.import_module("google.colab.files").download(str(path))
        sent = say("{file} goes to your computer", file=name)
        said.value = f'<span role="status">✓ {sent}</span>'
    except (AutoQuantError, OSError) as error:
        said.value = f'<span role="alert">✗ {html.escape(str(error))}</span>'
