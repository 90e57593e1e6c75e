"""The work of an EXL3 run: bitrates converted by exllamav3, checked, moved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

from autoquant import calibration
from autoquant.backends.exllama import Environment
from autoquant.backends.exllamav3 import converter
from autoquant.backends.exllamav3.environment import EXLLAMAV3
from autoquant.core.errors import CheckFailed
from autoquant.core.journal import RunFolder
from autoquant.core.progress import Bar
from autoquant.core.records import Artifact, Check, Snapshot, Stored
from autoquant.methods.bitrates.work import BitrateWork
from autoquant.methods.exl3.options import OWN, Exl3Options
from autoquant.runtime import process


class Work(BitrateWork[Exl3Options]):
    """One run's converter: its staged model and its calibration."""

    machine: ClassVar[Environment] = EXLLAMAV3

    def __init__(self, snapshot: Snapshot, options: Exl3Options, run: RunFolder) -> None:
        super().__init__(snapshot, options, run)
        self.modules = len(self.blocks) + 3  # the embeddings, each block, the last norm, the head
        # all that a result depends on, but for its type
        self.asked: list[Any] = [
            snapshot.sha256,
            self.version,
            [OWN] if self.text is None else [self.text.texts, options.calibration_seed],
            options.calibration_samples,
            self.length,
        ]
        self._model: Path | None = None
        self._samples: dict[str, Any] = {}

    @property
    def model(self) -> Path:
        """The folder the converter is given; made once, of weights that are finite."""
        if self._model is None:
            self.refuse_damaged()
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
                env=dict(EXLLAMAV3.variables),
                folder=str(self.snapshot.folder),
                texts=self.text.texts,
                samples=self.options.calibration_samples,
                length=self.length,
                seed=self.options.calibration_seed,
                target=str(file),
            )
        rows = int(self._samples["samples"])
        return ["-cd", str(file), "-cr", str(rows), *columns], self._samples

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
                    env=dict(EXLLAMAV3.variables),
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
