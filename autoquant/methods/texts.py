"""Texts that are too short for a run, found before its work: one chunk or sample is needed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoquant import calibration
from autoquant.calibration import CalibrationOptions
from autoquant.core import bundled
from autoquant.core.errors import InputError
from autoquant.core.options import MethodOptions, meant
from autoquant.core.records import Source
from autoquant.core.texts import Document, plain, read_text
from autoquant.evaluate.scoring import CONTEXT
from autoquant.runtime import process

OURS = (bundled.BUILTIN, *bundled.KINDS)  # texts that are long enough
SURE = 12  # characters; no tokenizer takes more for a token of running text


def refuse_short(
    source: Source, options: MethodOptions, env: Mapping[str, str], *, measured: bool
) -> None:
    """Refuse a text of the user's own that has no chunk to measure on, or no sample to calibrate
    on: by the model's tokenizer, in a worker, where it is short enough to be doubted.
    """
    asked: list[tuple[str, Sequence[Document], int, str]] = []
    if measured and options.eval_text not in OURS:
        text = read_text(options.eval_text, "eval_text", bundled.EVALUATION)
        asked.append(("eval_text", [text], min(CONTEXT, source.context), "a longer text"))
    asked += _calibrating(source, options)
    for option, documents, needed, instead in asked:
        if sum(len(plain(one)) for one in documents[:1000]) >= SURE * needed:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            target = "autoquant.calibration:count"
            more: dict[str, Any] = {"special": option != "calibration"}
            more["folder"] = str(source.folder)
            if source.gguf:  # its head, which is here, has the vocabulary
                target = "autoquant.backends.llamacpp.library:count"
                more = {"path": str(source.folder / source.gguf)}
            found = process.call(
                target, log=Path(scratch) / "log", env=env, texts=list(documents), **more
            )
        if found < needed:
            raise InputError(
                f"{option}: the text has {found} tokens; at least {needed} are needed. Give"
                f" {instead}"
            )


def _calibrating(
    source: Source, options: MethodOptions
) -> list[tuple[str, Sequence[Document], int, str]]:
    """The text that a run calibrates on, or computes an importance matrix on, if it is a file."""
    values = {name: getattr(options, name) for name in type(options).model_fields}
    kinds = ("none", "fisher", "calibration", *OURS)
    given = values.get("imatrix", "none")
    if given not in kinds and getattr(options, "given_imatrix", None) is None:
        text = read_text(given, "imatrix", bundled.CALIBRATION)
        least = min(CONTEXT, source.context)
        return [("imatrix", [text], least, "a longer one; 50,000 tokens are recommended")]
    if not isinstance(options, CalibrationOptions) or not calibration.is_file(options):
        return []
    if not meant(type(options), "calibration_length", values):
        return []
    length = min(options.calibration_length, source.context)
    texts = calibration.documents(options, source.folder).texts
    return [("calibration", texts, length, "a longer text or a smaller calibration_length")]
