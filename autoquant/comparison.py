"""Several results side by side: a Comparison, and the function that makes one of calibration
sets.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoquant import answering
from autoquant.calibration import Calibration
from autoquant.core.errors import InputError
from autoquant.core.options import build
from autoquant.display import compared, engines, html
from autoquant.display.shown import Checks
from autoquant.evaluate import paired
from autoquant.methods import METHODS
from autoquant.methods.base import AnyMethod
from autoquant.result import Result, quantize
from autoquant.runtime import preload
from autoquant.source import resolve


@dataclass(frozen=True, repr=False)
class Comparison:
    """Several results by name: of calibration sets, methods, bit widths or models. Prints as one
    table; in a notebook it shows itself with one plot.

    ``label`` is what the names are.
    """

    results: dict[str, Result]
    label: str = "run"

    def __getitem__(self, name: str) -> Result:
        return self.results[name]

    def __str__(self) -> str:
        return compared.comparison(self.results, self.label, self._titles(), self._two())

    __repr__ = __str__  # what a Python prompt shows

    def _repr_html_(self) -> str:
        return html.comparison(self.results, self.label, self._titles(), self._two())

    def checks(self) -> Checks:
        """What was looked at on each file of each run, and what was seen; prints as tables."""
        return Checks(self.results)

    def differences(self) -> paired.Differences:
        """Each measured file against the one with the lowest perplexity: the difference of their
        mean log-probabilities on the same tokens, its error, and whether it counts. Prints as a
        table. Raises InputError as :meth:`Result.difference` does.
        """
        return paired.against_best(self._scored())

    def answer(
        self, prompt: str = answering.PROMPT, *, tokens: int = answering.TOKENS
    ) -> answering.Answers:
        """What each unquantized model, once, and every file say to a prompt; see
        :meth:`Result.answer`.
        """
        several = len(self.results) > 1
        asked = [
            (f"{name} {artifact.type}" if several else artifact.type, one, artifact)
            for name, one in self.results.items()
            for artifact in one.artifacts
        ]
        return answering.answer(asked, prompt, tokens)

    def _scored(self) -> list[paired.Scored]:
        return [
            paired.Scored(f"{name} {artifact.type}", artifact.evaluation, one.folder)
            for name, one in self.results.items()
            for artifact in one.artifacts
            if artifact.evaluation is not None
        ]

    def _two(self) -> list[str]:
        """Of two files, which is better; more would be a table of its own."""
        files = self._scored()
        if len(files) != 2:
            return []
        said = list[str]()
        with contextlib.suppress(InputError):  # other tokens are said above, and files may be old
            found = paired.difference(*files)
            said.append(
                f"By perplexity, token by token (log-probabilities): {found}"
                if found.better or found.mixed  # whose engines may be all the difference
                else (
                    "Perplexity does not tell the two apart: their log-probabilities differ by"
                    f" {abs(found.mean):.4f} ± {found.error:.4f} nats per token, which may be"
                    " chance."
                )
            )
        first, second = (one.row for one in files)
        # of one model: to be near it is what is wanted
        if first and second and len({one.source.id for one in self.results.values()}) == 1:
            apart = abs(first.kl_mean - second.kl_mean)
            errors = [math.inf if one.kl_error is None else one.kl_error for one in (first, second)]
            if apart > paired.CERTAIN * math.hypot(*errors) and not engines.mixed([first, second]):
                near = files[0] if first.kl_mean < second.kl_mean else files[1]
                said.append(f"By KL divergence {near.name} is nearer to the original.")
        return said

    def _titles(self) -> list[str]:
        return list(dict.fromkeys(METHODS[one.method].title for one in self.results.values()))


@preload.kept()
def compare(
    method: AnyMethod,
    model: str | Path,
    calibrations: Mapping[str, Any],
    *,
    out: str | Path,
    values: Mapping[str, Any],
) -> Comparison:
    """Run a method once for each calibration set, each into its own folder ``out/<name>``; see
    :func:`autoquant.compare`.
    """
    if not calibrations:
        raise InputError(
            "calibrations: none given; give names and Calibrations, e.g. {'novels': Calibration(),"
            " 'code': Calibration('owner/dataset')}"
        )
    if values.get("upload"):
        raise InputError(
            "upload: several results would go into one repository; compare first, then upload the"
            " one you choose: comparison[name].upload(…)"
        )
    for name, one in calibrations.items():
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise InputError(
                f"calibrations: {name!r} is not a valid folder name; take letters, digits, - and _"
            )
        if not isinstance(one, Calibration):
            raise InputError(
                f"calibrations: {name} is not a Calibration but {type(one).__name__}; write"
                f" autoquant.Calibration({str(one)!r})"
            )
        # all are looked at before the first is run
        options = build(method.Options, {**values, method.Options.calibrated_by: one})
        source = resolve(model, allow_pickle=options.pickled)
        method.check(source, method.resolve_defaults(source, options))
    return Comparison(
        {
            name: quantize(
                method,
                model,
                out=Path(out) / name,
                values={**values, method.Options.calibrated_by: one},
            )
            for name, one in calibrations.items()
        },
        label="calibration",
    )
