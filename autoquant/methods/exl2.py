"""EXL2 folders for exllamav2, TabbyAPI and text-generation-webui: exllamav2's own converter,
measured once for any number of bitrates, its files read back by our own reader.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from autoquant import calibration, environments, process
from autoquant.auto_gptq import BESIDE
from autoquant.calibration import CalibrationOptions
from autoquant.core import journal
from autoquant.core.errors import CheckFailed, InputError
from autoquant.core.files import free_bytes, key_of, sha256_of
from autoquant.core.journal import RunFolder
from autoquant.core.memory import memory_available
from autoquant.core.options import option
from autoquant.core.progress import Bar
from autoquant.core.records import (
    Artifact,
    Check,
    Plan,
    PlanItem,
    RunRecord,
    Snapshot,
    Source,
    Stored,
)
from autoquant.exllama import check as exl2_check
from autoquant.exllama import converter, environment, measurement
from autoquant.hub.fetch import same_disk
from autoquant.methods import Beside, Facts, Made, Method, folders
from autoquant.source import bytes_to_fetch, shapes

log = logging.getLogger(__name__)
OWN = "exllamav2"  # the calibration text that comes with the library
OWN_ROWS, OWN_MEASURED = 115, 19  # its samples: for quantizing, and for measuring
SAMPLES, MEASURED = 100, 16  # the converter's own defaults
HEAD_BITS = (2, 3, 4, 5, 6, 8)
# group size, and of which width which share of the inputs is (exllamav2 0.3.2,
# conversion/qparams.py: qparams_headoptions)
HEAD_MIXES = {
    2: (32, ((4, 0.3), (2, 0.7))),
    3: (32, ((4, 0.15), (3, 0.85))),
    4: (32, ((6, 0.15), (4, 0.85))),
    5: (128, ((6, 0.15), (5, 0.85))),
    6: (128, ((8, 0.15), (6, 0.85))),
    8: (128, ((8, 1.0),)),
}
# Of those that exllamav2 0.3.2 knows (others it converts "as Llama", wrong): dense language models
# that transformers has too, so that the files can be read back, and which it runs as transformers
# does: a test compares them one by one.
ARCHITECTURES = (
    "CohereForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Glm4ForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
)
WRONG = {
    "Qwen3ForCausalLM": (
        "exllamav2 0.3.2 computes its head norms as layer norms, where the model has RMS norms (of"
        " a random model the predictions were off by a quarter)"
    )
}


class Exl2Options(CalibrationOptions):
    """The options of EXL2. Names are exllamav2's, where they are words."""

    applies: ClassVar[Mapping[str, str]] = {
        **CalibrationOptions.applies,
        **dict.fromkeys(
            (
                "calibration_samples",
                "calibration_seed",
                "measurement_samples",
                "calibration_column",
                "calibration_split",
                "calibration_subset",
            ),
            f"calibration!={OWN}",
        ),
    }
    main: ClassVar[tuple[str, ...]] = ("bpw", "head_bits", "calibration", "evaluate", "upload")

    bpw: tuple[str, ...] = option(
        ("4.0",),
        "bits a weight of the blocks, scales included, 2 to 8; several with commas between: what is"
        " measured once serves them all",
        metavar="BITS,…",
        min_length=1,
    )
    head_bits: int = option(
        6, "bits a weight of the output head; 8 for the highest bitrates", metavar="2|3|4|5|6|8"
    )
    measurement: str = option(
        "",
        f"a {measurement.NAME} made before, to skip the longest part: a file, or a repository on"
        " the Hub that has one; empty: measured here, and kept",
        metavar="FILE|OWNER/NAME",
    )
    measurement_samples: int = option(
        MEASURED,
        "how many of the samples to measure on; exllamav2's default",
        unit="samples",
        ge=1,
        le=10_000,
    )
    calibration: str = option(
        OWN,
        "text to calibrate on: exllamav2 (the mixture that comes with it: web, encyclopedia, code,"
        " other languages, stories), builtin (English novels), a .txt, .jsonl or .parquet file, or"
        " a dataset on the Hugging Face Hub as owner/name or owner/name@revision",
        metavar=f"{OWN}|builtin|FILE|OWNER/NAME",
    )
    calibration_samples: int = option(
        SAMPLES,
        "how many samples to calibrate on; exllamav2's default",
        unit="samples",
        ge=1,
        le=100_000,
    )
    calibration_length: int = option(
        2048,
        "tokens a sample, at most the model's context; exllamav2's default; longer ones take more"
        " GPU memory",
        unit="tokens",
        ge=16,
        le=131_072,
    )
    layout: Literal["one-repo", "repo-per-type", "branch-per-type"] = option(
        "branch-per-type",
        "each bitrate in its own branch, with card and measurement on main, as EXL2 repositories"
        " usually have it; or each in its own repository, named OWNER/NAME-TYPE; or all in folders"
        " of one repository",
    )

    @field_validator("bpw", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        given = [value] if isinstance(value, (int, float)) else value
        if not isinstance(given, (list, tuple)):
            return value
        return tuple(dict.fromkeys(bitrate(one) for one in given))

    @field_validator("head_bits")
    @classmethod
    def _head(cls, value: int) -> int:
        return folders.choice(value, HEAD_BITS)

    @property
    def types(self) -> tuple[str, ...]:
        """The artifacts' names: 4.0bpw, with the head's bits if they are not 6."""
        return tuple(
            f"{one}bpw{'' if self.head_bits == 6 else f'-h{self.head_bits}'}" for one in self.bpw
        )


def bitrate(value: Any) -> str:
    """A bitrate as it is written in names: 4.0, 4.25. A ValueError for pydantic if it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{value!r} is no number of bits; allowed: 2 to 8, e.g. 4.0 or 4.25"
        ) from None
    if not 2 <= number <= 8:
        raise ValueError(f"{value} is not allowed; allowed: 2 to 8 bits a weight")
    return f"{number:.2f}".removesuffix("0") if round(number, 2) == number else str(number)


def _own(options: Exl2Options) -> bool:
    return options.calibration == OWN


def refuse(source: Source, options: Exl2Options) -> dict[str, tuple[int, int]]:
    """Refuse a source or options that cannot work, but for the machine; return the blocks'
    matrices.
    """
    layers = folders.check_source(source, "EXL2")
    if source.architecture in WRONG:
        raise InputError(
            f"exl2: {source.architecture}: {WRONG[source.architecture]}. Take gguf, gptq or awq"
        )
    if source.architecture not in ARCHITECTURES:
        raise InputError(
            f"exl2: the architecture {source.architecture} is none of those whose EXL2 files are"
            f" known to be right here: {', '.join(ARCHITECTURES)}. (exllamav2 itself would convert"
            " any model as if it were a Llama.) GGUF takes more"
        )
    config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    converter.converter_config(config)
    odd = [f"{name} ({inputs} inputs)" for name, (_, inputs) in layers.items() if inputs % 32]
    if odd:
        raise InputError(
            f"exl2: exllamav2 quantizes layers whose inputs are a multiple of 32; {len(odd)} are"
            f" not: {', '.join(odd[:3])}"
        )
    if _own(options):
        for name, idle in {
            "calibration_samples": SAMPLES,
            "calibration_seed": 0,
            "measurement_samples": MEASURED,
            "calibration_column": "text",
            "calibration_split": calibration.DEFAULT_SPLIT,
            "calibration_subset": "",
        }.items():
            if getattr(options, name) != idle:
                raise InputError(
                    f"{name}: the text that comes with exllamav2 has samples of its own; leave it"
                    " out, or choose another calibration"
                )
        length = min(options.calibration_length, source.context)
        if length % 128:
            raise InputError(
                f"calibration_length: {length} tokens; the text that comes with exllamav2 is cut by"
                " multiples of 128 only. Take one, or choose another calibration"
            )
    else:
        calibration.check(options)
    return layers


def check(source: Source, options: Exl2Options) -> None:
    """What can be refused before anything is downloaded, but for the machine; the measurement too,
    if one is given.
    """
    refuse(source, options)
    if options.measurement:
        path, said = measurement.given(options.measurement, source)
        measurement.read(path, said)


def machine(options: Exl2Options, folder: Path) -> None:
    """Refuse a machine that has no GPU, unless all bitrates are in the folder already: they can be
    measured and uploaded anywhere.
    """
    steps = journal.read(folder)[1]
    if not all(f"quantize {type}" in steps for type in options.types):
        environment.check()


def size(source: Source, layers: Mapping[str, tuple[int, int]], bpw: float, head_bits: int) -> int:
    """The size to be, nearly: the blocks' matrices at ``bpw``, the head as HEAD_MIXES says, 16 bits
    for all else (with the embeddings).
    """
    blocks = sum(outputs * inputs for outputs, inputs in layers.values())
    hidden = min(inputs for _, inputs in layers.values())
    head = source.vocab_size * hidden
    tied = f"{exl2_check.HEAD}.weight" not in shapes(source)
    rest = source.parameters - blocks - (0 if tied else head)
    group, mix = HEAD_MIXES[head_bits]
    rows, stored, groups = hidden, 0, 0
    for bits, share in mix:
        here = min(math.ceil(min(hidden * share, rows) / group), math.ceil(rows / group))
        stored, groups, rows = (
            stored + bits * min(here * group, rows),
            groups + here,
            max(0, rows - here * group),
        )
    outputs = -(-source.vocab_size // 32) * 32
    return int(blocks * bpw / 8 + outputs * (stored + 4 * groups) / 8 + 4 * hidden + 2 * rest)


def plan(source: Source, options: Exl2Options, out: Path) -> Plan:
    """Sizes from the headers alone. ``refused`` if this machine has no GPU that could make them."""
    layers = refuse(source, options)
    items = [
        (name, size(source, layers, float(bpw), options.head_bits))
        for name, bpw in zip(options.types, options.bpw, strict=True)
    ]
    download = bytes_to_fetch(source)
    free = free_bytes(out)
    length = min(options.calibration_length, source.context)
    hidden = min(inputs for _, inputs in layers.values())
    states = 2 * 2 * (OWN_ROWS if _own(options) else options.calibration_samples) * length * hidden
    # the quantized layers once as the converter's own files and once in the folder; the samples'
    # states, and their copy while they are written
    needed = (
        (download if download and same_disk(out) else 0)
        + sum(one for _, one in items)
        + max(one for _, one in items)
        + 2 * states
    )
    refused = (
        f"not enough room on the disk: {needed / 1e9:.3f} GB are needed, {free / 1e9:.3f} GB are"
        " free"
        if needed > free
        else ""
    )
    refused = environment.refusal(environment.look()) or refused
    notes = (
        (
            "measuring is done once for all bitrates, and by exllamav2's own guide (doc/convert.md)"
            " takes about as long as quantizing twelve times; by the same, a model of 7 billion"
            " parameters wants about 8 GB of GPU memory and 16 GB of RAM, one of 70 billion 24 GB"
            " and 64 GB (not measured here)"
        ),
    )
    return Plan(
        "exl2",
        source,
        tuple(PlanItem(name, one, 8 * one / source.parameters, False, "") for name, one in items),
        states,
        disk_needed=needed,
        disk_free=free,
        memory_needed=2_500_000_000 + states + 2 * source.largest_tensor,
        memory_available=memory_available(),
        download=download,
        refused=refused,
        notes=notes,
    )


# --- quantizing -----------------------------------------------------------------------------------


class _Work:
    """One run's converter: its staged model, its calibration and the measurement."""

    def __init__(self, snapshot: Snapshot, options: Exl2Options, run: RunFolder) -> None:
        self.snapshot, self.options, self.run, self.source = snapshot, options, run, snapshot.source
        self.layers = folders.linears(self.source)
        self.blocks: dict[str, int] = defaultdict(int)
        for name, (outputs, inputs) in self.layers.items():
            found = folders.BLOCK.search(name)
            self.blocks[found[1] if found else ""] += outputs * inputs
        self.weights = sum(self.blocks.values())
        self.length = min(options.calibration_length, self.source.context)
        self.version = f"exllamav2 {environments.version('exllamav2')}"
        self.text = None if _own(options) else calibration.documents(options)
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
        self._python: str | None = None
        self._model: Path | None = None
        self._samples = 0

    @property
    def python(self) -> str:
        """The interpreter that has exllamav2, with its extension compiled."""
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
                "autoquant.exllama.check:calibrate",
                log=self.run.logs,
                env=environment.VARIABLES,
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

    def text_name(self) -> str:
        """The calibration text in words."""
        return "the text that comes with exllamav2" if self.text is None else self.text.name

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
                # hours of measuring damaged weights would be in vain
                process.call(
                    "autoquant.quantizers:finite",
                    log=self.run.logs,
                    model=str(self.snapshot.folder),
                )
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
                    f"{damaged}. It was thrown away: run again to measure anew"
                ) from None
            measurement.write(kept, made, record)
        shutil.copyfile(kept, self.run.work / measurement.NAME)
        (self.run.work / measurement.NAME).replace(place)
        data = self._measured(place)
        self.refuse_unattainable(data)
        return data

    def discard(self, *paths: Path) -> None:
        """Take away what the converter made, and the job it would go on with."""
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
                    f"bpw: {one} cannot be had: scales and permutations counted, exllamav2 can give"
                    f" the layers of {self.source.id} {least:.2f} to {most:.2f} bits a weight"
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
        _tidy(target, self.snapshot.folder, self.text_name(), rows)
        try:
            with Bar(f"check {type}") as progress:
                seen = process.call(
                    "autoquant.exllama.check:verify",
                    log=self.run.logs,
                    env=environment.VARIABLES,
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
                f"{failure}. It was thrown away: run again to make {type} anew"
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
            },
        )
        place = self.run.folder / type
        shutil.rmtree(place, ignore_errors=True)
        target.replace(place)
        return artifact


def _tidy(folder: Path, model: Path, text: str, rows: int) -> None:
    """One clean model folder: the tokenizer as it is in the source, and no path of this machine in
    the config.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    config["quantization_config"].setdefault("calibration", {}).update(dataset=text, rows=rows)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in BESIDE:
        if (model / name).is_file():
            (folder / name).write_bytes((model / name).read_bytes())
    mode = path.stat().st_mode & 0o777
    for file in folder.iterdir():  # the safetensors library writes for the owner only
        file.chmod(mode)


def quantize(snapshot: Snapshot, options: Exl2Options, run: RunFolder) -> Made:
    """Measure once, then make and verify each bitrate, unless the journal knows it as done. Each
    becomes a folder of the run's folder, beside measurement.json.
    """
    work = _Work(snapshot, options, run)
    # what the measurement depends on stands in the key, not the measurement: a finished run starts
    # nothing
    asked = [
        snapshot.sha256,
        work.version,
        work.calibrated,
        options.measurement_samples,
        _given_sha256(options, snapshot.source),
        options.head_bits,
    ]
    keys = {type: key_of(asked, type) for type in options.types}
    known = {
        type: facts
        for type in options.types
        if (facts := run.done(f"quantize {type}", keys[type])) is not None
    }
    path = run.folder / measurement.NAME
    if len(known) < len(options.types) or not path.is_file():
        run.jobs.mkdir(exist_ok=True)
        measured = work.measure()
    else:
        measured = measurement.read(path, measurement.NAME)
    near = max(exl2_check.NEAR, measurement.step(measured, len(work.blocks), work.weights))
    artifacts = []
    for type, bpw in zip(options.types, options.bpw, strict=True):
        if type in known:
            artifact = Artifact.from_json(known[type])
        else:
            artifact = work.quantize(type, bpw, path, near)
            run.record(
                f"quantize {type}",
                keys[type],
                [run.folder / stored.name for stored in artifact.files],
                artifact.to_json(),
                {stored.name: stored.sha256 for stored in artifact.files},
            )
        run.passed(artifact)
        for note in artifact.notes:
            log.warning("%s: %s", type, note)
        artifacts.append(artifact)
    shutil.rmtree(run.jobs, ignore_errors=True)
    record = measured[measurement.RECORD]
    first = artifacts[0].facts
    measured_on = (
        f", {record['samples']} samples of {record['length']} tokens" if "samples" in record else ""
    )
    return Made(
        tuple(artifacts),
        None,
        {
            "algorithm": (
                f"EXL2: GPTQ with mixed bit widths, chosen by measured error ({first['algorithm']})"
            ),
            "file format": "EXL2",
            "bits a weight of the blocks": ", ".join(
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


def _given_sha256(options: Exl2Options, source: Source) -> str:
    return (
        measurement.content_sha256(
            json.loads(
                measurement.given(options.measurement, source)[0].read_text(encoding="utf-8")
            )
        )
        if options.measurement
        else ""
    )


# --- about ----------------------------------------------------------------------------------------


def who_for(type: str) -> str:
    """One line: when to take this type."""
    bits = float(type.partition("bpw")[0])
    return (
        "practically lossless"
        if bits >= 6
        else (
            "very close to the original"
            if bits >= 5
            else (
                "the usual choice"
                if bits >= 4
                else (
                    "when 4 bits do not fit; clear loss on small models"
                    if bits >= 3
                    else "large models only, as a last resort"
                )
            )
        )
    )


def how_to_run(result: RunRecord) -> str:
    """The card's section on running the model."""
    types = [artifact.type for artifact in result.artifacts]
    return f"""Fetch one bitrate (a branch of its name, if this repository has branches for them;
otherwise leave out `--revision`, or name its folder with `--include`):

```bash
hf download MODEL --revision {types[0]} --local-dir model
```

```python
# exllamav2, on an NVIDIA GPU (pip install exllamav2 tokenizers)
import os

# with exllamav2 0.3.2: without flash-attn its other attention path looks at later tokens
os.environ["EXLLAMA_NO_SDPA"] = "1"
from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGenerator

config = ExLlamaV2Config("model")
model = ExLlamaV2(config)
cache = ExLlamaV2Cache(model, max_seq_len={min(result.source.context, 8192)}, lazy=True)
model.load_autosplit(cache)
# paged=False: one prompt at a time, which needs no flash-attn (2.5.7 or newer)
generator = ExLlamaV2DynamicGenerator(
    model=model, cache=cache, tokenizer=ExLlamaV2Tokenizer(config), paged=False
)
print(generator.generate(prompt="Once upon a time", max_new_tokens=32))
```

[TabbyAPI](https://github.com/theroyallab/tabbyAPI): put the folder into its `models` folder and
name it as `model_name` in `config.yml`.
[text-generation-webui](https://github.com/oobabooga/text-generation-webui): put it into
`user_data/models` and choose the loader ExLlamav2_HF (releases that still have it)."""


METHOD = Method(
    name="exl2",
    title="EXL2",
    summary=(
        "2 to 8 bits a weight on average, mixed by measured error; for NVIDIA GPUs with exllamav2,"
        " TabbyAPI, text-generation-webui"
    ),
    facts=Facts(
        bits="2 to 8, any average",
        calibration="yes",
        gpu_to_quantize="yes",
        gpu_to_run="yes",
        runtimes="exllamav2, TabbyAPI, text-generation-webui",
    ),
    options=Exl2Options,
    kind="folder",
    library_name="exllamav2",
    beside=Beside(("3.0", "6.0"), bitrate, "bitrates (2 to 8)"),
    demo={
        "calibration": "builtin",
        "calibration_samples": 6,
        "calibration_length": 128,
        "measurement_samples": 3,
        "bpw": ("4.0",),
    },
    survey=lambda given: {"bpw": ("2.5", "3.0", "4.0", "5.0", "6.0", "8.0")},
    variants=lambda options: options.types,
    settle=lambda source, options: options,
    check=check,
    machine=machine,
    plan=plan,
    quantize=quantize,
    environment=lambda options: dict(environment.VARIABLES),
    who_for=who_for,
    how_to_run=how_to_run,
    prepare=environment.prepare,
    folder_suffix=lambda options: "EXL2",
    packages=("exllamav2", "torch", "transformers", "tokenizers", "numpy"),
)
