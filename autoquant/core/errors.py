"""The errors a user can meet. Anything else that escapes is a bug of ours."""

from __future__ import annotations

import textwrap

from autoquant.core.redact import redact

WIDTH = 88  # letters in a line of a notebook's page


class AutoQuantError(Exception):
    """Base of every error this package raises on purpose; its text is one line made for the user,
    without any token.

    ``exit_status`` is what the command line exits with.
    """

    exit_status = 1

    def __init__(self, text: str) -> None:
        super().__init__(redact(text))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback: the line, in a notebook too, broken between
        words, where the page would break it anywhere.
        """
        said = f"{type(self).__name__}: {self}"
        return textwrap.wrap(said, WIDTH, break_long_words=False, break_on_hyphens=False)


class InputError(AutoQuantError):
    """What was asked for cannot be done as asked: a bad option, folder, file, or too little room.

    Raised before anything is converted wherever that is possible; the text names the value, what is
    allowed and what to do.
    """

    exit_status = 2


class OutOfMemory(AutoQuantError):
    """Memory ran out in a worker process, on the processor or the GPU; a caller that knows how says
    what would fit.

    ``where`` is where, in words, and ``gpu`` whether on a GPU; ``available`` are the bytes there
    are in all, or 0 if that is not known.
    """

    where = ""
    gpu = False
    available = 0


class Stopped(AutoQuantError):
    """The user stopped a run in a notebook."""

    exit_status = 130


class CheckFailed(AutoQuantError):
    """A file was made, but a check on it failed. The run stops and the journal stays."""


class ProcessFailed(AutoQuantError):
    """A child process ended badly, or ended well without the file it was meant to write.

    ``signal`` is the number of the signal that ended it, or 0.
    """

    signal = 0


class HubFailed(AutoQuantError):
    """The Hugging Face Hub could not be reached or did not answer as it should, after several
    tries. Running again continues.
    """
