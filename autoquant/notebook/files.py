"""What a notebook has made: where the files lie, how large they are, how to run them from there; in
Colab buttons that download them or copy them to Google Drive.
"""

from __future__ import annotations

import html
import importlib
import os
import shlex
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from autoquant.core.errors import AutoQuantError
from autoquant.core.language import say, told
from autoquant.core.records import COMPARED, Artifact
from autoquant.display import tables
from autoquant.display.html import Markup, table
from autoquant.methods import METHODS
from autoquant.notebook.page import drive, in_colab, tooltip

if TYPE_CHECKING:
    from autoquant.result import Result

ELSEWHERE = (
    "These paths are Colab's: on your computer put that of the downloaded file in their place."
)
COMMAND = (  # a line each, also where it is broken
    "display:block;white-space:pre-wrap;overflow-wrap:anywhere;padding:1px 6px 1px 3em;"
    "text-indent:-2.5em"
)
CONTEXT = 4096  # tokens: what fits on most cards
HEAD = ("run", "model", "method", "type", "size", "file or folder", "model card")
# what a command begins with, and where that program comes from
PROGRAMS = {
    "llama-server": "llama-server comes with llama.cpp"
    " (https://github.com/ggml-org/llama.cpp/releases); when it runs, open http://localhost:8080.",
    "vllm": "vLLM needs an NVIDIA GPU: pip install vllm. When it runs, it answers at"
    " http://localhost:8000/v1, as OpenAI's API does.",
    "autoquant": "The command autoquant comes with this package; the model card says how to install"
    " it elsewhere.",
    "python main.py": "main.py is TabbyAPI's (https://github.com/theroyallab/tabbyAPI): run it in"
    " its folder.",
}


class Files:
    """The files of some runs, by any name. Prints paths, sizes and commands; a notebook shows links
    to what lies beside it.
    """

    def __init__(self, results: Mapping[str, Result] | Result) -> None:
        named = results if isinstance(results, Mapping) else {"": results}
        self.results: Mapping[str, Result] = dict(named)

    def rows(self) -> list[tuple[str, Path, int, str]]:
        """Of each file or folder: its type, where it lies, bytes, and the command that runs it."""
        return [row for result in self.results.values() for row in _rows(result)]

    def _beside(self) -> Iterator[Path]:
        """The folders in which those of the runs lie."""
        return (one.folder.resolve().parent for one in self.results.values())

    def _needed(self) -> list[str]:
        """What the commands need that is not installed with this package."""
        commands = [command for *_, command in self.rows()]
        needed = [
            said for word, said in PROGRAMS.items() if any(c.startswith(word) for c in commands)
        ]
        for one in self.results.values():
            if package := METHODS[one.method].start_needs:
                types = ", ".join(artifact.type for artifact in one.artifacts)
                needed.append(f"For {types} also: pip install {package}")
        return needed

    def __str__(self) -> str:
        if not self.results:
            return say("No run has made any.")
        lines = [
            f"{kind}: {path} ({tables.size(size)})" + (f"\n    {command}" if command else "")
            for kind, path, size, command in self.rows()
        ]
        return "\n".join([*lines, *map(told, self._needed())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self.results:  # such as of a batch whose jobs all failed
            return f"<p>{say('No run has made any.')}</p>"
        body, gone = [], list[str]()
        shared = os.path.commonpath([*self._beside()])
        for name, result in self.results.items():
            card = _link((result.folder / "README.md").resolve())
            stock = {one.type for one in result.artifacts if COMPARED in one.facts}
            body += [
                (
                    name,
                    result.source.id,
                    METHODS[result.method].title,
                    f"{kind} (llama.cpp's)" if kind in stock else kind,
                    tables.size(size).replace(" ", "\u00a0"),
                    Markup(_link(path, Path(os.path.relpath(path, shared)).as_posix())),
                    Markup(card),
                )
                for kind, path, size, _ in _rows(result)
            ]
            gone += [one.type for one in result.artifacts if _place(result, one) is None]
        # what is the same of all stands in no column, nor what a run's name says, nor a name twice
        varied = [i for i in range(len(HEAD)) if i > 2 or len({row[i] for row in body}) > 1]
        heading = [row[i] for i in (1, 2) if i not in varied for row in body]
        if 0 in varied:
            heading = [row[1] for row in body if 1 not in varied]
            varied = [i for i in varied if i != 2]
        if all(f">{row[0]}<" in row[5] or row[0] == row[5] for row in body):
            varied = [i for i in varied if i != 0]
        title = ", ".join(dict.fromkeys(heading))
        parts = [f"<p><b>{html.escape(title)}</b></p>"] if title else []
        if body:
            cells = [[row[i] for i in varied] for row in body]
            parts.append(table([HEAD[i] for i in varied], cells, left=len(varied)))
        if len(self.results) == 1:
            (only,) = self.results.values()
            shared = str(only.folder.resolve())
        one, place = len(body) == 1, f"<code>{html.escape(shared)}</code>"
        it, them = say("It is in {folder}", folder=place), say("They are in {folder}", folder=place)
        parts.append(f"<p>{it if one else them}</p>")
        if gone:
            deleted = say("Deleted here as they were uploaded: {types}", types=", ".join(gone))
            parts.append(f"<p>{html.escape(deleted)}</p>")
        commands = [command for *_, command in self.rows() if command]
        if commands:
            it, them = say("To run it, in a terminal:"), say("To run one of them, in a terminal:")
            parts.append(f"<p>{it if one else them}</p>")
            parts += [f"<code style='{COMMAND}'>{html.escape(one)}</code>" for one in commands]
        elsewhere = [ELSEWHERE] if commands and in_colab() else []
        parts += [f"<p>{html.escape(told(one))}</p>" for one in (*elsewhere, *self._needed())]
        return f"<div>{''.join(parts)}</div>"

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
        for name, result in self.results.items():
            for artifact in result.artifacts:
                called = artifact.type if len(self.results) == 1 else f"{name}: {artifact.type}"
                for one in artifact.paths_in(result.folder) if _place(result, artifact) else ():
                    made.append(_button(called, artifact, one, said))
        copy = ipywidgets.Button(
            description=say("Copy to Google Drive"), icon="cloud", layout={"width": "16em"}
        )
        tooltip(copy, say("all files of these runs, into the folder AutoQuant of your Drive"))
        copy.on_click(lambda _: self._copy(said))
        row = ipywidgets.Box([*made, copy], layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([row, said])

    def _copy(self, said: Any) -> None:
        said.value = f'<span role="status">{say("copying …")}</span>'
        try:
            for result in self.results.values():
                target = drive() / "AutoQuant" / _within(result.folder)
                if (drive() / "AutoQuant").resolve() in result.folder.resolve().parents:
                    said.value = say("They lie there already.")
                    return
                shutil.copytree(
                    result.folder,
                    target,
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns(".autoquant"),
                )
            copied = say("copied to {folder}", folder=html.escape(str(drive() / "AutoQuant")))
            said.value = f'<span role="status">✓ {copied}</span>'
        except (AutoQuantError, OSError) as error:
            told = str(error).removeprefix("out: ")
            said.value = f'<span role="alert">✗ {html.escape(told)}</span>'


def _within(folder: Path) -> Path:
    """What a run's folder is called elsewhere: its path below the notebook's folder, so that runs
    of two models that were compared, ``MODEL-compared/8bit``, keep apart; else its name.
    """
    try:
        return folder.resolve().relative_to(Path.cwd().resolve())
    except ValueError:
        return Path(folder.resolve().name)


def _place(result: Result, artifact: Artifact) -> Path | None:
    """Where an artifact lies; None if it was deleted when it was uploaded."""
    if artifact.facts.get("deleted"):
        return None
    return artifact.path_in(result.folder).resolve()


def _rows(result: Result) -> list[tuple[str, Path, int, str]]:
    """Of each file or folder: its type, where it lies, bytes, and the command that runs it."""
    return [
        (artifact.type, path, artifact.bytes, _command(result, path))
        for artifact in result.artifacts
        if (path := _place(result, artifact)) is not None
    ]


def _command(result: Result, path: Path) -> str:
    """The command that runs it with what most people take; empty where that is a script."""
    return METHODS[result.method].start.format(
        context=min(result.source.context, CONTEXT),
        path=shlex.quote(str(path)),
        folder=shlex.quote(str(path.parent)),
        name=shlex.quote(path.name),
    )


def _link(path: Path, name: str = "") -> str:
    """A link with a name (its own, if none is given) to what lies beside the notebook or below it;
    where a page reaches no files, the name; else the path.
    """
    name = html.escape(name or path.name)
    try:
        here = path.relative_to(Path.cwd().resolve())
    except ValueError:
        return f"<code>{html.escape(str(path))}</code>"
    if in_colab():
        return name
    return f'<a href="{quote(here.as_posix())}" target="_blank">{name}</a>'


def _button(called: str, artifact: Artifact, path: Path, said: Any) -> Any:
    """A button that downloads a file of an artifact, or its folder."""
    import ipywidgets

    button = ipywidgets.Button(
        description=say("Download {type}", type=called),
        icon="download",
        layout={"width": "16em"},
    )
    name, size = path.resolve().name, tables.size(artifact.bytes)
    about = (
        say("{file}, {size} as a zip file, to your computer", file=name, size=size)
        if path.is_dir()
        else say("{file}, {size}, to your computer", file=name, size=size)
    )
    tooltip(button, about)
    button.on_click(lambda _: _download(path, said))
    return button


def packed(folder: Path) -> Path:
    """A folder as one file beside it, ``NAME.zip`` (with the names of the folders that it lies in,
    below the notebook's), without what a run keeps there for itself; the
    file that is there is taken if the folder is no newer. Raises OSError, and then leaves nothing
    half-written.
    """
    name = "-".join(_within(folder).parts)
    target, half = (folder.with_name(f"{name}{end}") for end in (".zip", ".zip.part"))
    inside = [one for one in folder.rglob("*") if one.is_file() and ".autoquant" not in one.parts]
    newest = max(one.stat().st_mtime_ns for one in inside)
    if target.is_file() and target.stat().st_mtime_ns > newest:
        return target
    try:
        with zipfile.ZipFile(half, "w") as file:  # codes do not get smaller
            for one in sorted(inside):
                file.write(one, one.relative_to(folder.parent))
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)
    return target


def _download(path: Path, said: Any) -> None:
    name = html.escape(path.name)
    doing = (
        say("packing {file} …", file=name) if path.is_dir() else say("sending {file} …", file=name)
    )
    said.value = f'<span role="status">{doing}</span>'
    try:
        path = packed(path.resolve()) if path.is_dir() else path
        importlib.import_module("google.colab.files").download(str(path))
        sent = say("{file} goes to your computer", file=name)
        said.value = f'<span role="status">✓ {sent}</span>'
    except (AutoQuantError, OSError) as error:
        said.value = f'<span role="alert">✗ {html.escape(str(error))}</span>'
