"""Why a run would refuse a form's values on any model, found out while somebody types."""

from __future__ import annotations

import functools

from autoquant.core import bundled, texts
from autoquant.core.errors import InputError
from autoquant.core.options import MethodOptions, UploadOptions
from autoquant.methods import METHODS
from autoquant.notebook.form_options import existing
from autoquant.source import resolve

# bytes of a text that is read while somebody types; a larger one is looked at when the run begins
LARGEST = 8 << 20


def refused(method: str, options: MethodOptions) -> str:
    """Why a run would refuse these options on any model; empty if it would not. Where they are sent
    does not matter here, and texts that are too large to be read at each key are left to the run.
    """
    sent = {one: field.default for one, field in UploadOptions.model_fields.items()}
    stamps, skipped = [], {}
    for one in ("calibration", "imatrix", "eval_text"):
        path = existing(str(getattr(options, one, "")))
        if path:
            status = path.stat()
            stamps.append((one, status.st_mtime_ns, status.st_size))
            if status.st_size > LARGEST:
                skipped[one] = "builtin"
    return _refusal(method, options.model_copy(update={**sent, **skipped}), tuple(stamps))


@functools.lru_cache(maxsize=256)
def _refusal(method: str, options: MethodOptions, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """The method's own check, on the bundled model, whose widths every group size and bit width
    fits: so what it refuses, it refuses of any model. ``stamps``: of the files that are read, so
    that a changed one is read again.
    """
    own = METHODS[method]
    options = own.without_slow_checks(options)
    try:
        source = resolve("demo")
        own.check(source, own.resolve_defaults(source, options))
        if options.evaluate != "off":
            texts.parts(options.eval_text, "eval_text", bundled.EVALUATION)
    except InputError as error:
        return str(error)
    except (OSError, RuntimeError, ValueError) as error:
        # a name that is no file's: too long, or of an unknown user's home
        return f"this is not a usable file name ({error})"
    return ""
