"""What a notebook needs beside its form: whether this is Colab, its Drive, a model in place of one
that cannot be reached, a run that can be stopped, a login.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoquant import source
from autoquant.core.errors import HubFailed, InputError, Stopped
from autoquant.core.language import say, told
from autoquant.core.progress import in_notebook
from autoquant.hub.client import offline
from autoquant.methods import METHODS

log = logging.getLogger(__name__)
# open (Apache-2.0), of a size that a free machine quantizes in minutes, with rows of multiples of
# 256, as llama.cpp's k-quants want them
MODEL = "Qwen/Qwen3-0.6B"
# one family, one tokenizer: their perplexities compare
SMALLER, LARGER = "HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-360M-Instruct"
OTHERS = tuple(
    one.notebook_defaults["model"] for one in METHODS.values() if "model" in one.notebook_defaults
)
DEFAULTS = (MODEL, SMALLER, LARGER, *OTHERS)
DRIVE = Path("/content/drive")


def in_colab() -> bool:
    """Whether this is a notebook in Colab."""
    return "COLAB_RELEASE_TAG" in os.environ


class Note:
    """Some lines for the reader of a notebook; addresses in them can be clicked."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines

    def __repr__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        shown = []
        for line in map(html.escape, self.lines):
            line = re.sub(r"(https?://[^ ]+)", r'<a href="\1">\1</a>', line)
            line = re.sub(r"`([^`]+)`", r"<code>\1</code>", line)
            shown.append(f"<p>{line}</p>")
        return "".join(shown)


class Question:
    """A question to models: a text box in Jupyter, whose ``text`` cells read; elsewhere what it
    began with.
    """

    def __init__(self, text: str, typed: str = "") -> None:
        self.began, self._text, self._box = text, typed or text, None
        if in_notebook() and not in_colab():
            import ipywidgets

            self._box = ipywidgets.Textarea(
                value=self._text,
                description=say("prompt"),
                rows=3,
                layout={"width": "48em", "max_width": "98%"},
            )
            about = say("what the models are asked; run the next cell to see what they say")
            tooltip(self._box, about)

    @property
    def text(self) -> str:
        """What stands there now."""
        return str(self._box.value) if self._box is not None else self._text

    def _ipython_display_(self) -> None:
        show = importlib.import_module("IPython.display").display
        show(self._box if self._box is not None else Note(f"{say('Prompt:')} {self._text}"))


def question(text: str, namespace: Mapping[str, Any]) -> Question:
    """The question that begins with a text, or with what was typed in the one that ``namespace``
    (``globals()`` of the notebook) has as ``question`` already: a cell that runs again keeps it.
    """
    earlier = namespace.get("question")
    if isinstance(earlier, Question) and earlier.began == text:
        return Question(text, earlier.text)
    return Question(text)


def tooltip(widget: Any, text: str) -> None:
    """A tooltip; ipywidgets 7 calls it otherwise."""
    name = next((one for one in ("tooltip", "description_tooltip") if widget.has_trait(one)), None)
    if name:
        setattr(widget, name, text)


def reachable(model: str, fallback: str = "demo") -> str:
    """The model itself, or the bundled one if it is a notebook's default and the Hub cannot be
    reached: so that every notebook runs without a network, and says so.

    A model that somebody chose is never replaced.
    """
    if model not in DEFAULTS or not _missing(model):
        return model
    return fallback


def reachable_pair(small: str, large: str) -> tuple[str, str]:
    """Two models of one family to be compared, or both bundled ones, where a default of the
    notebook cannot be had: one of each family would not compare.

    Nothing is replaced if one of them was chosen by somebody.
    """
    if not {small, large} <= {SMALLER, LARGER} or not _missing(small, large):
        return small, large
    return "demo-small", "demo"


def reachable_all(models: Sequence[str]) -> list[str]:
    """The models themselves, but for defaults of the notebook that cannot be had: for these the
    bundled ones, as far as they go.
    """
    defaults = [one for one in models if one in DEFAULTS]
    if not _missing(*defaults):
        return list(models)
    bundled = dict(zip(defaults, ("demo-small", "demo"), strict=False))
    return [bundled.get(one, one) for one in models if one in bundled or one not in DEFAULTS]


def _missing(*models: str) -> bool:
    """Whether one of some models cannot be had because the Hub cannot be reached, which is then
    said of all that bundled ones will replace. Raises InputError if the Hub answered and refused.
    """
    for model in models:
        try:
            source.resolve(model)
        except (HubFailed, InputError) as failure:
            if isinstance(failure, InputError) and not offline():
                # the Hub answered: a refused token or a model that is gone is for the user to know
                raise
            _goes_on(models, told(str(failure)))
            return True
    return False


def _goes_on(models: Sequence[str], why: str) -> None:
    if len(models) == 1:
        what = say(
            "Continuing with the bundled demo model: everything below is about a tiny model"
            " trained on Jane Austen's novels."
        )
        reason = say("{model} is not available: {why}", model=models[0], why=why)
    else:
        what = say(
            "Continuing with the two bundled demo models (demo-small is tiny-austen-2m, demo is"
            " tiny-austen-4m): everything below is about tiny models trained on Jane Austen's"
            " novels."
        )
        reason = say("{models} are not available: {why}", models=", ".join(models), why=why)
    if in_notebook():
        importlib.import_module("IPython.display").display(Note(f"⚠ {what}", reason))
    else:
        log.warning("%s %s", what, reason)


def drive() -> Path:
    """The user's Google Drive, mounted. Raises InputError outside Colab, or if it may not be."""
    if not in_colab():
        raise InputError(
            "out: drive means Google Drive as Colab mounts it, and this is not Colab; name a"
            " folder, or leave it empty"
        )
    drive: Any = importlib.import_module("google.colab.drive")
    try:
        drive.mount(str(DRIVE))
    except Exception as error:  # noqa: BLE001
        # Colab raises ValueError and kinds of its own: all mean that there is no Drive
        raise InputError(
            f"out: Google Drive could not be mounted ({type(error).__name__}: {error}); allow it"
            " when Colab asks, or leave out empty"
        ) from None
    return DRIVE / "MyDrive"


def can_stop() -> bool:
    """Whether a button reaches this kernel while a cell runs: since ipykernel 7 with JupyterLab
    4.4, which handle widgets beside the running cell.
    """
    if not in_notebook() or in_colab():
        return False
    ipykernel = importlib.import_module("ipykernel")
    return bool(ipykernel.version_info >= (7,))


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Work that may be stopped: by Jupyter's ■ and, where it can work, by a button. Finished files
    are kept; running the cell again continues.

    Raises Stopped (one line, no traceback) instead of KeyboardInterrupt.
    """
    button = None
    if can_stop():
        import ipywidgets
        from IPython.display import display

        show: Any = display
        button = ipywidgets.Button(
            description=say("Stop (or ■)"), icon="stop", button_style="warning"
        )
        tooltip(
            button,
            say("stop this run; finished files are kept, and running the cell again continues"),
        )
        main = threading.get_ident()

        def stop(_: Any) -> None:
            button.description, button.disabled = say("Stopping …"), True
            # what ■ does; a flag set from another thread would not end a wait
            signal.pthread_kill(main, signal.SIGINT)

        button.on_click(stop)
        show(button)
        # ipykernel 7.4 hears a widget in the shell that spoke last, which is about to be busy;
        # without this note the page's own choice counts: a subshell
        vars(button.comm).pop("_reply_subshell_id", None)
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped("finished files are kept; run this cell again to resume") from None
    finally:
        if button is not None:
            button.close()


def login() -> Any:
    """A password field and a button that store a Hugging Face token, for notebooks where neither a
    secret nor a login is there.

    Returns an ipywidgets box to display. The token goes to ``huggingface_hub.login``, which asks
    the Hub whose it is and keeps it under HF_HOME; the field is emptied at once, so that it is not
    saved with the notebook. (``huggingface_hub.notebook_login`` starts a device code instead, since
    release 1.)
    """
    import ipywidgets
    from huggingface_hub import login as store

    from autoquant.hub.client import connect

    client = connect()
    field = ipywidgets.Password(
        description="HF token", placeholder="hf_…", layout={"width": "30em"}
    )
    place = f"{client.endpoint}/settings/tokens"
    tooltip(field, say("a token with write access, from {place}", place=place))
    button = ipywidgets.Button(description=say("Log in"))
    tooltip(button, say("store the token for this machine"))
    link = f'<a href="{place}" target="_blank">{place}</a>'
    said = ipywidgets.HTML(
        value=say("No token yet? Make one at {place} (write access).", place=link)
    )

    def click(_: Any) -> None:
        token, field.value = field.value.strip(), ""
        if not token:
            said.value = say("Paste a token first.")
            return
        try:
            store(token=token)
        except (ValueError, OSError) as error:
            # refused by the Hub; huggingface_hub's HTTP errors are OSErrors
            said.value = say(
                "Not accepted ({error}). Copy the token again, or make a new one.",
                error=type(error).__name__,
            )
            return
        name = connect().api.whoami()["name"]
        said.value = say("Logged in as {name}.", name=f"<b>{name}</b>")

    button.on_click(click)
    return ipywidgets.VBox([ipywidgets.HBox([field, button]), said])
