"""The work of an EXL3 run: bitrates converted by exllamav3, checked, moved."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoquant import calibration
from autoquant.backends.exllamav3 import converter, environment
from autoquant.core.errors import CheckFailed, InputError
from autoquant.core.journal import RunFolder
from autoquant.core.progress import Bar
from autoquant.core.records import Artifact, Check, Snapshot, Stored
from autoquant.methods.exl3.options import OWN, Exl3Options
from autoquant.runtime import environments, process
from autoquant.source.layers import linears, weights_of_blocks

log = logging.getLogger(__name__)


class Work:
    """One run's converter: its staged model and its calibration."""

    def __init__(self, snapshot: Snapshot, options: Exl3Options, run: RunFolder) -> None:
        self.snapshot, self.options, self.run, self.source = snapshot, options, run, snapshot.source
        self.layers = linears(self.source)
        # the embeddings, each block, the last norm, the head
        self.modules = len(weights_of_blocks(self.layers)) + 3
        self.length = min(options.calibration_length, self.source.context)
        self.version = f"exllamav3 {environments.version('exllamav3')}"
        self.text = None if options.own_text else calibration.documents(options, self.source.folder)
        # all that a result depends on, but for its type
        self.asked: list[Any] = [
            snapshot.sha256,
            self.version,
            [OWN] if self.text is None else [self.text.texts, options.calibration_seed],
            options.calibration_samples,
            self.length,
        ]
        self._python: str | None = None
        self._model: Path | None = None
        self._samples: dict[str, Any] = {}

    @property
    def python(self) -> str:
        """The interpreter that has exllamav3, with its extension compiled."""
        if self._python is None:
            # again: other options than those of a finished run come here unasked
            seen = environment.look()
            said = environment.refusal(seen)
            if said:
                raise InputError(said)
            self._python = environment.interpreter(self.run.logs)
            if not (seen["extension"] or seen["compiled"]):
                environment.build(self._python, self.run.logs)
        return self._python

    @property
    def model(self) -> Path:
        """The folder the converter is given; made once, of weights that are finite."""
        if self._model is None:
            # hours with damaged weights would be in vain
            process.call(
                "autoquant.backends.folder:finite",
                log=self.run.logs,
                model=str(self.snapshot.folder),
            )
            self._model = converter.stage(self.snapshot.folder, self.run.jobs / "model")
        return self._model

    def calibration(self) -> tuple[list[str], dict[str, Any]]:
        """The converter's options for the calibration text, and ``samples``, how many that gives,
        with their ``sha256`` (empty for its own text).
        """
        columns = ["-cc", str(self.length)]
        if self.text is None:
            rows = self.options.calibration_samples
            return ["-cr", str(rows), *columns], {"samples": rows, "sha256": ""}
        file = self.run.jobs / "calibration.safetensors"
        if not self._samples:
            self._samples = process.call(
                "autoquant.backends.exllamav3.check:calibrate",
                log=self.run.logs,
                env=environment.VARIABLES,
                folder=str(self.snapshot.folder),
                texts=self.text.texts,
                samples=self.options.calibration_samples,
                length=self.length,
                seed=self.options.calibration_seed,
                target=str(file),
            )
        rows = int(self._samples["samples"])
        return ["-cd", str(file), "-cr", str(rows), *columns], self._samples

    def text_name(self) -> str:
        """The calibration text in words."""
        return "the text that comes with exllamav3" if self.text is None else self.text.name

    def quantize(self, type: str, bpw: str, key: str) -> Artifact:
        """One bitrate: converted, put in order, verified, and moved to its place in the run's
        folder.
        """
        python, (words, samples) = self.python, self.calibration()
        job = self.run.jobs / f"{type}-{key}"
        target = job.with_name(f"{job.name}.model")
        if not converter.finished(target):
            with Bar(f"quantize {type}") as progress:
                converter.convert(
                    [
                        "-b",
                        bpw,
                        "-hb",
                        str(self.options.head_bits),
                        "-cb",
                        self.options.codebook,
                        "-ss",
                        str(converter.SHARD),
                        *words,
                    ],
                    model=self.model,
                    job=job,
                    target=target,
                    modules=self.modules,
                    python=python,
                    logs=self.run.logs,
                    progress=progress,
                )
        facts = {"samples": samples["samples"], "calibration sha256": samples["sha256"]}
        return self.finished(type, bpw, target, facts, job)

    def once(self, type: str, key: str, make: Callable[[], Artifact]) -> Artifact:
        """An artifact: the one that the journal knows, or a new one, which is noted there."""
        facts = self.run.done(f"quantize {type}", key)
        if facts is not None:
            artifact = Artifact.from_json(facts)
        else:
            self.run.jobs.mkdir(exist_ok=True)
            artifact = make()
            self.run.record(
                f"quantize {type}",
                key,
                [self.run.folder / stored.name for stored in artifact.files],
                artifact.to_json(),
                {stored.name: stored.sha256 for stored in artifact.files},
            )
        self.run.passed(artifact)
        for note in artifact.notes:
            log.warning("%s: %s", type, note)
        return artifact

    def finished(
        self,
        type: str,
        bits: str,
        target: Path,
        facts: dict[str, Any],
        job: Path | None = None,
        near: float | None = None,
    ) -> Artifact:
        """A folder that exllamav3 has left, put in order, verified, and moved to its place in the
        run's folder; ``near`` is how far below the target its bits may be.
        """
        converter.tidy(target, self.snapshot.folder, self.text_name())
        try:
            with Bar(f"check {type}") as progress:
                seen = process.call(
                    "autoquant.backends.exllamav3.check:verify",
                    log=self.run.logs,
                    env=environment.VARIABLES,
                    progress=progress,
                    folder=str(target),
                    source=str(self.snapshot.folder),
                    layers=self.layers,
                    target=float(bits),
                    near=near,
                    head_bits=self.options.head_bits,
                    codebook=self.options.codebook,
                    parameters=self.source.parameters,
                )
        except CheckFailed as failure:
            # or the next run would find it finished, and damaged again
            for path in (job, target):
                if path is not None:
                    shutil.rmtree(path, ignore_errors=True)
            raise CheckFailed(
                f"{failure}. It was discarded: run again to make {type} anew"
            ) from None
        rows, asked = facts["samples"], self.options.calibration_samples
        artifact = Artifact(
            type=type,
            files=tuple(
                Stored(f"{type}/{name}", size, sha256) for name, size, sha256 in seen["files"]
            ),
            bits_per_weight=seen["bits_per_weight"],
            checks=tuple(Check(*one) for one in seen["checks"]),
            notes=() if rows == asked else (calibration.fewer(rows, asked, self.length),),
            facts={
                "codes": seen["codes"],
                "achieved": seen["achieved"],
                "layers": seen["layers"],
                "algorithm": self.version,
                "bpw": float(bits),
                **facts,
            },
        )
        place = self.run.folder / type
        shutil.rmtree(place, ignore_errors=True)
        target.replace(place)
        if job is not None:
            shutil.rmtree(job, ignore_errors=True)
        return artifact
