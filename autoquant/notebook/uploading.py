"""The upload cell of a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from autoquant.core import bundled
from autoquant.core.errors import InputError
from autoquant.core.language import say
from autoquant.core.progress import in_notebook
from autoquant.hub.client import find_token
from autoquant.notebook import choosing
from autoquant.notebook.page import Note, in_colab, login, stoppable

if TYPE_CHECKING:
    from autoquant.result import Result


class Form(Protocol):
    """What uploading needs of a form (notebook.forms.Form)."""

    name: str

    @property
    def options(self) -> Any:
        """All values, checked."""
        ...

    @property
    def model(self) -> str:
        """The model that was asked for."""
        ...


def upload(result: Result, given: Mapping[str, Any], form: Form) -> Any:
    """Upload a run by the values of UploadOptions (``given``), or say how. Nothing is sent twice.
    Returns lines that show themselves, or a field for a token where none is found. Raises
    InputError for files of the bundled model that stand in for another.
    """
    values = dict(given)
    repo = values.pop("upload")
    if form.name == "all":
        owner = form.options.owner
        repo = f"{owner}/{result.source.name}-{result.method.upper()}" if owner else ""
    if (
        repo
        and result.source.folder in bundled.MODELS.values()
        and form.model not in bundled.MODELS
    ):
        raise InputError(
            "upload: these files were made from the bundled demo model, which replaced"
            f" {form.model}; nothing is sent under another model's name. Rerun from the form"
            " when the Hub can be reached"
        )
    if not repo:
        name = "owner" if form.name == "all" else "upload"
        field = f"`{name}`"
        again = (
            say(
                "Enter {name} in the form, run the form's cell and the one below it again, then",
                name=field,
            )
            if in_colab()
            else say("Enter {name} in the form, then run", name=field)
        )
        return Note(
            say(
                "Nothing is uploaded. {again} this cell. The token is the Colab secret HF_TOKEN,"
                " the environment variable HF_TOKEN, or the login of `hf auth login`; if there is"
                " none, this cell shows a field for it.",
                again=again,
            )
        )
    if in_notebook() and find_token() is None:
        choosing.show(Note(say("No token is found. Log in here, then run this cell again:")))
        return login()
    with stoppable():
        receipts = result.upload(repo, **values)
    return Note(
        say("Uploaded, and compared with the server file by file:"),
        *(
            say(
                "{place} (commit {commit}, {count} files)",
                place=one.url,
                commit=one.commit[:10],
                count=len(one.files),
            )
            for one in receipts
        ),
    )
