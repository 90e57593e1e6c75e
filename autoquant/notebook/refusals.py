"""Why a run would refuse a form's values on any model, found out while somebody types."""

from __future__ import annotations

import functools

from autoquant.core import bundled, files
from autoquant.core.errors import InputError
from autoquant.core.options import MethodOptions, UploadOptions
from autoquant.methods import METHODS
from autoquant.notebook.form_options import existing
from autoquant.source import resolve

# bytes of a text that is read while somebody types; a larger one is looked at when the run begins
LARGEST = 8 << 20


def refused(method: str, chosen: MethodOptions) -> str:
    """Why a run would refuse these options on any model; empty if it would not. Where they are sent
    does not matter here, and texts that are too large to be read at each key are left to the run.
    """
    sent = {one: field.default for one, field in UploadOptions.model_fields.items()}
    stamps, skipped = [], {}
    for one in ("calibration", "imatrix", "eval_text"):
        path = existing(str(getattr(chosen, one, "")))
        if path:
            seen = path.stat()
            stamps.append((one, seen.st_mtime_ns, seen.st_size))
            if seen.st_size > LARGEST:
                skipped[one] = "builtin"
    return _refusal(method, chosen.model_copy(update={**sent, **skipped}), tuple(stamps))


@functools.lru_cache(maxsize=256)
def _refusal(method: str, chosen: MethodOptions, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """The method's own check, on the embedded model, whose widths every group size and bit width
    fits: so what it refuses, it refuses of any model. ``stamps``: of the files that are read, so
    that a changed one is read again.
    """
    own = METHODS[method]
    if getattr(chosen, "backend", "") == "auto-gptq" and getattr(chosen, "algorithm", "") == "gptq":
        # it would look for CUDA in a process of its own, which takes seconds
        chosen = chosen.model_copy(update={"backend": "gptqmodel"})
    if getattr(chosen, "measurement", ""):
        # it is another model's, and may lie on the Hub
        chosen = chosen.model_copy(update={"measurement": ""})
    try:
        found = resolve("demo")
        own.check(found, own.resolve_defaults(found, chosen))
        if chosen.evaluate != "off":
            files.read_text(chosen.eval_text, "eval_text", bundled.EVALUATION_TEXT)
    except InputError as error:
        return str(error)
    except (OSError, RuntimeError, ValueError) as error:
        # a name that is no file's: too long, or of an unknown user's home
        return f"a file cannot be looked for ({error})"
    return ""
