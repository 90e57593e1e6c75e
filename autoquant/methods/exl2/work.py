"""One EXL2 run: measured once, then each bitrate converted by exllamav2, checked, moved."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from autoquant import calibration
from autoquant.backends.exllama import Environment
from autoquant.backends.exllamav2 import check as exl2_check
from autoquant.backends.exllamav2 import converter, measurement
from autoquant.backends.exllamav2.environment import EXLLAMAV2
from autoquant.core.errors import CheckFailed, InputError
from autoquant.core.files import key_of, sha256_of
from autoquant.core.journal import RunFolder
from autoquant.core.progress import Bar
from autoquant.core.records import Artifact, Check, Snapshot, Stored
from autoquant.methods.base import Output
from autoquant.methods.bitrates.work import BitrateWork
from autoquant.methods.exl2.options import OWN, OWN_MEASURED, OWN_ROWS, Exl2Options
from autoquant.runtime import process

log = logging.getLogger(__name__)


def quantize(snapshot: Snapshot, options: Exl2Options, run: RunFolder) -> Output:
    """Measure once, then make and verify each bitrate, unless the journal knows it as done. Each
    becomes a folder of the run's folder, beside measurement.json.
    """
    work = Work(snapshot, options, run)
    # what the measurement depends on stands in the key, not the measurement: a finished run starts
    # nothing
    asked = [
        snapshot.sha256,
        work.version,
        work.calibrated,
        options.measurement_samples,
        measurement.given_sha256(options.measurement, snapshot.source),
        options.head_bits,
    ]
    keys = {type: key_of(asked, type) for type in options.types}
    path = run.folder / measurement.NAME
    done = all(work.known(type, keys[type]) is not None for type in options.types)
    if not done or not path.is_file():
        run.jobs.mkdir(exist_ok=True)
        measured = work.measure()
    else:
        measured = measurement.read(path, measurement.NAME)
    near = max(exl2_check.NEAR, measurement.step(measured, len(work.blocks), work.weights))
    artifacts = [
        work.once(type, keys[type], functools.partial(work.quantize, type, bpw, path, near))
        for type, bpw in zip(options.types, options.bpw, strict=True)
    ]
    shutil.rmtree(run.jobs, ignore_errors=True)
    record = measured[measurement.RECORD]
    first = artifacts[0].facts
    measured_on = (
        f", {record['samples']} samples of {record['length']} tokens" if "samples" in record else ""
    )
    return Output(
        tuple(artifacts),
        None,
        {
            "algorithm": (
                f"EXL2: GPTQ with mixed bit widths, chosen by measured error ({first['algorithm']})"
            ),
            "file format": "EXL2",
            "bits per weight of the blocks": ", ".join(
                f"{a.type}: target {float(bpw):.2f}, achieved {a.facts['achieved']:.3f}"
                for a, bpw in zip(artifacts, options.bpw, strict=True)
            ),
            "head bits": str(options.head_bits),
            "calibration": (
                f"{work.text_name()}, {first['samples']} samples of {work.length} tokens"
            ),
            "calibration sha256": first["calibration sha256"],
            "measurement": f"{record.get('measured by') or record['calibration']}{measured_on}",
            "measurement sha256": record["measurement sha256"],
        },
        extras=(measurement.NAME,),
    )


# --- quantizing -----------------------------------------------------------------------------------


class Work(BitrateWork[Exl2Options]):
    """One run's converter: its staged model, its calibration and the measurement."""

    machine: ClassVar[Environment] = EXLLAMAV2

    def __init__(self, snapshot: Snapshot, options: Exl2Options, run: RunFolder) -> None:
        super().__init__(snapshot, options, run)
        self.weights = sum(self.blocks.values())
        # all that the samples depend on; the number of them is the measurement's or the
        # quantization's own
        self.calibrated = (
            [OWN, self.length]
            if self.text is None
            else [
                self.text.texts,
                options.calibration_seed,
                options.calibration_samples,
                self.length,
            ]
        )
        self._model: Path | None = None
        self._samples = 0

    @property
    def model(self) -> Path:
        """The folder the converter is given."""
        if self._model is None:
            self._model = converter.stage(self.snapshot.folder, self.run.jobs / "model")
        return self._model

    def calibration(self, rows: int) -> tuple[list[str], int]:
        """The converter's options for the calibration text, and how many samples that gives:
        ``rows``, or fewer if the text is short. (Of its own text, the number is its.)
        """
        lengths = ["-l", str(self.length), "-ml", str(self.length)]
        if self.text is None:
            return lengths, rows
        table = self.run.jobs / "calibration.parquet"
        if not self._samples:
            made = process.call(
                "autoquant.backends.exllamav2.check:calibrate",
                log=self.run.logs,
                env=dict(EXLLAMAV2.variables),
                python=self.python,
                folder=str(self.snapshot.folder),
                texts=self.text.texts,
                samples=self.options.calibration_samples,
                length=self.length,
                seed=self.options.calibration_seed,
                target=str(table),
            )
            self._samples = int(made["samples"])
        rows = min(rows, self._samples)
        return ["-c", str(table), "-r", str(rows), "-mr", str(rows), *lengths], rows

    def measure(self) -> dict[str, Any]:
        """The measurement: the one that is given, one that was made before, or a new one; checked,
        noted in the journal, and in the run's folder.
        """
        place = self.run.folder / measurement.NAME
        if self.options.measurement:
            path, said = measurement.given(self.options.measurement, self.source)
            data = measurement.read(path, said)
            measurement.refuse_foreign(data, self.snapshot, said, self.blocks, self.weights)
            self.refuse_unattainable(data)
            record = data.get(measurement.RECORD) or {"measured by": f"somebody else ({said})"}
            measurement.write(
                place,
                data,
                {name: value for name, value in record.items() if name != "measurement sha256"},
            )
            return self._measured(place)
        rows = (
            OWN_MEASURED
            if self.text is None
            else min(self.options.measurement_samples, self.options.calibration_samples)
        )
        kept = measurement.kept(self.snapshot, self.version, self.calibrated, rows)
        if not kept.is_file():
            words, rows = self.calibration(rows)
            job = self.run.jobs / f"measure-{kept.stem}"
            result = job.with_suffix(".json")
            if not (converter.finished(job) and result.is_file()):
                log.info("measuring %s: once for all bitrates, and kept", self.source.id)
                self.refuse_damaged()
                with Bar("measure layers") as progress:
                    converter.convert(
                        words,
                        model=self.model,
                        job=job,
                        result=result,
                        python=self.python,
                        logs=self.run.logs,
                        stages=("Measuring",),
                        progress=progress,
                    )
            record = {
                "model": self.source.id,
                "commit": self.source.revision,
                "weights sha256": measurement.weights_sha256(self.snapshot),
                "calibration": self.text_name(),
                "calibration sha256": exl2_check.used(job),
                "samples": rows,
                "length": self.length,
                "made with": self.version,
            }
            try:
                made = measurement.read(result, str(result))
            except InputError as damaged:
                self.discard(job, result)
                raise CheckFailed(
                    f"{damaged}. It was discarded: run again to measure anew"
                ) from None
            measurement.write(kept, made, record)
        shutil.copyfile(kept, self.run.work / measurement.NAME)
        (self.run.work / measurement.NAME).replace(place)
        data = self._measured(place)
        self.refuse_unattainable(data)
        return data

    def discard(self, *paths: Path) -> None:
        """Take away what the converter made, and the job it would resume."""
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _measured(self, place: Path) -> dict[str, Any]:
        sha256 = sha256_of(place)
        self.run.record("measure", sha256, [place], {}, {measurement.NAME: sha256})
        return measurement.read(place, measurement.NAME)

    def refuse_unattainable(self, measured: Mapping[str, Any]) -> None:
        """Refuse bitrates beyond what the measured ways to quantize can give."""
        least, most = measurement.bounds(measured, len(self.blocks), self.weights)
        for one in self.options.bpw:
            if not least - exl2_check.NEAR / 2 <= float(one) <= most + exl2_check.NEAR / 2:
                raise InputError(
                    f"bpw: {one} is not possible: with scales and permutations counted, exllamav2"
                    f" can give the layers of {self.source.id} {least:.2f} to {most:.2f} bits per"
                    " weight"
                )

    def quantize(self, type: str, bpw: str, path: Path, near: float) -> Artifact:
        """One bitrate: converted, put in order, verified, and moved to its place in the run's
        folder.
        """
        words, rows = self.calibration(
            OWN_ROWS if self.text is None else self.options.calibration_samples
        )
        key = key_of(self.snapshot.sha256, self.version, self.calibrated, sha256_of(path), type)
        job = self.run.jobs / f"{type}-{key}"
        target = job.with_name(f"{job.name}.model")
        if not (converter.finished(job) and (target / "config.json").is_file()):
            with Bar(f"quantize {type}") as progress:
                converter.convert(
                    [
                        "-b",
                        bpw,
                        "-hb",
                        str(self.options.head_bits),
                        "-m",
                        str(path),
                        "-ss",
                        str(converter.SHARD),
                        *words,
                    ],
                    model=self.model,
                    job=job,
                    result=target,
                    python=self.python,
                    logs=self.run.logs,
                    stages=("Quantizing", "Compiling"),
                    progress=progress,
                )
        converter.tidy(target, self.snapshot.folder, self.text_name(), rows)
        try:
            with Bar(f"check {type}") as progress:
                seen = process.call(
                    "autoquant.backends.exllamav2.check:verify",
                    log=self.run.logs,
                    env=dict(EXLLAMAV2.variables),
                    progress=progress,
                    folder=str(target),
                    source=str(self.snapshot.folder),
                    layers=self.layers,
                    target=float(bpw),
                    near=near,
                    head_bits=self.options.head_bits,
                    parameters=self.source.parameters,
                )
        except CheckFailed as failure:
            self.discard(job, target)  # or the next run would find it finished, and damaged again
            raise CheckFailed(
                f"{failure}. It was discarded: run again to make {type} anew"
            ) from None
        artifact = Artifact(
            type=type,
            files=tuple(
                Stored(f"{type}/{name}", size, sha256) for name, size, sha256 in seen["files"]
            ),
            bits_per_weight=seen["bits_per_weight"],
            checks=tuple(Check(*one) for one in seen["checks"]),
            notes=(
                ()
                if self.text is None or rows == self.options.calibration_samples
                else (calibration.fewer(rows, self.options.calibration_samples, self.length),)
            ),
            facts={
                "achieved": seen["achieved"],
                "samples": rows,
                "calibration sha256": exl2_check.used(job),
                "algorithm": self.version,
                "bpw": float(bpw),
            },
        )
        place = self.run.folder / type
        shutil.rmtree(place, ignore_errors=True)
        target.replace(place)
        return artifact
