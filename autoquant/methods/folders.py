"""What the methods have in common that write a folder of safetensors: looking at layers, planning,
quantizing, checking. Some calibrate on samples, some need no data.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shutil
import signal
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import field_validator

from autoquant import calibration, environments, process
from autoquant.calibration import CalibrationOptions
from autoquant.core.errors import InputError, OutOfMemory, ProcessFailed
from autoquant.core.files import free_bytes, key_of
from autoquant.core.journal import RunFolder
from autoquant.core.memory import memory_available
from autoquant.core.options import MethodOptions, option
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
from autoquant.hub.fetch import same_disk
from autoquant.methods import Made
from autoquant.source import bytes_to_fetch, shapes

log = logging.getLogger(__name__)
AUTO, GROUP_SIZES = 0, (-1, 32, 64, 128)
LINEAR = re.compile(r"(^|\.)layers\.\d+\..*\.weight$")
EXPERTS = re.compile(r"\.experts\.")
MUCH = 100 << 20  # bytes to download, above which a process is started to look first
BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.")
FOREIGN = (
    "GPTQModel's own loader refuses files with zero points that it has not made; transformers loads"
    " them"
)
FUSED = (
    "transformers 5 keeps the experts of a block in one tensor, which is no linear layer and would"
    " stay as it is, and with it most of the model"
)
ITERATIONS = 200  # AutoRound's own default


F = TypeVar("F", bound="FolderOptions")
ADVICE = "zero points (--no-sym), smaller groups or algorithm autoround do better"


def choice(value: int, allowed: Sequence[int], more: str = "") -> int:
    """A whole number that must be one of a few; a ValueError for pydantic if it is not."""
    if value not in allowed:
        raise ValueError(f"{value} is not allowed; allowed: {', '.join(map(str, allowed))}{more}")
    return value


class FolderOptions(CalibrationOptions):
    """The options of GPTQ and AWQ, which quantize the blocks' matrices in groups and calibrate."""

    applies: ClassVar[Mapping[str, str]] = {
        **CalibrationOptions.applies,
        "iterations": "algorithm=autoround",
    }
    group_size: int = option(
        AUTO,
        "weights that share a scale: 32, 64, 128, or -1 (a whole row); must divide every layer's"
        " input width. 0 takes 128, or the largest that does",
        metavar="0|-1|32|64|128",
    )
    batch_size: int = option(
        4, "samples at once through a layer; fewer take less memory", unit="samples", ge=1, le=256
    )
    iterations: int = option(
        ITERATIONS,
        "steps of algorithm autoround for each block; fewer are quicker, more a little better",
        unit="steps",
        ge=1,
        le=10_000,
    )

    @field_validator("group_size")
    @classmethod
    def _group(cls, value: int) -> int:
        return choice(
            value, (AUTO, *GROUP_SIZES), " (0: chosen by the model; -1: one scale for a whole row)"
        )


def group(size: int) -> str:
    """A group size in a type's name."""
    return {-1: "row", AUTO: "auto"}.get(size, f"{size}g")


# --- looking --------------------------------------------------------------------------------------


def linears(source: Source) -> dict[str, tuple[int, int]]:
    """The layers that are quantized: the blocks' matrices, name -> (outputs, inputs). Embeddings
    and output head stay as they are.
    """
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in shapes(source).items()
        if len(shape) == 2 and LINEAR.search(name)
    }


def check(source: Source, options: FolderOptions, title: str) -> dict[str, tuple[int, int]]:
    """Refuse what cannot work, and return the layers: a source that is quantized, a group size that
    does not fit, a text that is not there.
    """
    layers = check_source(
        source,
        title,
        f"transformers 5 does not load experts from {title} files (it fills them with random"
        " numbers and says so only in a log), so none are made",
    )
    if options.group_size > 0:
        refuse_group_size(layers, options.group_size, GROUP_SIZES)
    calibration.check(options)
    return layers


def check_source(source: Source, title: str, experts: str = FUSED) -> dict[str, tuple[int, int]]:
    """Refuse a source that is quantized, a mixture of experts (why: ``experts``) or more than a
    language model, and return the layers that can be quantized.
    """
    if source.quantized:
        raise InputError(
            f"{source.id} is quantized already ({source.quantized}); {title} needs the unquantized"
            " model"
        )
    config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    towers = [name for name in ("vision_config", "audio_config") if config.get(name)]
    if towers:
        raise InputError(
            f"{source.id} ({source.architecture}) has more than a language model in it"
            f" ({', '.join(towers)}); {title} is offered for language models only. GGUF takes many"
            " such models"
        )
    if any(EXPERTS.search(name) for name in shapes(source)):
        raise InputError(
            f"{source.id} ({source.architecture}) is a mixture of experts: {experts}. GGUF takes"
            " such models"
        )
    layers = linears(source)
    if not layers:
        raise InputError(
            f"{source.id} ({source.architecture}) has no layers that {title} could quantize: none"
            " of its tensors is named …layers.N.….weight"
        )
    if bytes_to_fetch(source) > MUCH:
        _refuse_unknown(str(config.get("model_type")), title)
    return layers


@functools.cache
def _refuse_unknown(model_type: str, title: str) -> None:
    """Refuse an architecture that transformers does not load, before much is downloaded for it (the
    worker that quantizes would say so only then).
    """
    with tempfile.TemporaryDirectory() as scratch:
        process.call(
            "autoquant.quantizers:known",
            log=Path(scratch) / "log",
            model_type=model_type,
            who=title,
        )


def refuse_group_size(
    layers: Mapping[str, tuple[int, int]], size: int, sizes: Sequence[int]
) -> None:
    """Refuse a group size that does not divide the inputs of every layer; ``sizes`` are those
    offered (-1: a whole row).
    """
    odd = [(name, inputs) for name, (_, inputs) in layers.items() if inputs % size]
    if odd:
        fit = [
            str(one)
            for one in sizes
            if one == -1 or all(inputs % one == 0 for _, inputs in layers.values())
        ]
        named = ", ".join(f"{name} ({inputs} inputs)" for name, inputs in odd[:3])
        raise InputError(
            f"group_size: {size} does not divide the inputs of {len(odd)} of {len(layers)} layers:"
            f" {named}{' …' if len(odd) > 3 else ''}. Sizes that fit this model: {', '.join(fit)}"
        )


def refuse_uneven(layers: Mapping[str, tuple[int, int]], multiple: int, why: str) -> None:
    """Refuse layers whose number of outputs is no multiple of what an algorithm works on at a time;
    ``why`` leads up to that number.
    """
    odd = [(name, outputs) for name, (outputs, _) in layers.items() if outputs % multiple]
    if odd:
        raise InputError(
            f"algorithm: {why} {multiple}; {len(odd)} of {len(layers)} layers do not divide so,"
            f" e.g. {odd[0][0]} ({odd[0][1]} outputs). Take method gptq with algorithm gptq, or the"
            " other algorithm of this one"
        )


def settle(source: Source, options: F) -> F:
    """The options with a group size: 128, or the largest that divides every layer's input width."""
    if options.group_size != AUTO:
        return options
    inputs = [inputs for _, inputs in linears(source).values()]
    # 128 that does not fit is refused by check
    size = next(
        (
            size
            for size in sorted(GROUP_SIZES, reverse=True)
            if size > 0 and all(n % size == 0 for n in inputs)
        ),
        128,
    )
    if size != 128:
        log.info("group_size: %d, the largest that divides the inputs of every layer", size)
    return options.model_copy(update={"group_size": size})


def refuse_iterations(options: FolderOptions, algorithm: str) -> None:
    """``iterations`` belongs to one algorithm: given for another it would do nothing."""
    if algorithm != "autoround" and options.iterations != ITERATIONS:
        raise InputError(
            f"iterations: {options.iterations} has a meaning for algorithm autoround only; take"
            " algorithm='autoround' (--algorithm autoround), or leave it out"
        )


# --- planning -------------------------------------------------------------------------------------


def memory_whole(source: Source) -> int:
    """Bytes that a process needs which quantizes layer by layer without data, roughly: the whole
    model at 16 bits, and the largest matrix some times over in float32.
    """
    return (
        700_000_000
        + 2 * source.parameters
        + 4 * 5 * max(outputs * inputs for outputs, inputs in linears(source).values())
    )


def memory_needed(source: Source, options: FolderOptions, algorithm: str) -> int:
    """Bytes the quantizing process needs, roughly; GPTQ and AutoRound were measured on a checkpoint
    of 1.9 GB, AWQ on one of 1.1 GB (bench/RESULTS.md).

    The whole model at 16 bits once (a process of the run had about that much; which one was not
    looked at), the block at work in float32, its samples' activations; for GPTQ a float32 matrix
    [inputs, inputs] for each matrix of the block, for AWQ every matrix's inputs, for AutoRound the
    block's gradients.
    """
    layers = linears(source)
    blocks: dict[str, int] = defaultdict(int)
    for name, (outputs, inputs) in layers.items():
        found = BLOCK.search(name)
        blocks[found[1] if found else ""] += outputs * inputs
    block, model = max(blocks.values()), 2 * source.parameters
    wide, hidden = (
        max(inputs for _, inputs in layers.values()),
        min(inputs for _, inputs in layers.values()),
    )
    # what enters and leaves a block, 16 bits
    states = (
        2
        * 2
        * options.calibration_samples
        * min(options.calibration_length, source.context)
        * hidden
    )
    batch = 4 * 6 * options.batch_size * min(options.calibration_length, source.context) * wide
    # torch, transformers and the library (measured on the embedded model: 0.63 GB)
    base = 700_000_000
    if algorithm == "autoround":
        # 300 MB: without them the plan was 3.81 GB where 3.90 and 4.01 were measured
        return base + 300_000_000 + model + 4 * 5 * block + states + 3 * batch
    if algorithm == "awq":
        return base + model + 4 * 3 * block + 4 * states + batch
    return base + model + 4 * 3 * block + 3 * 4 * wide * wide + states + batch


def plan(method: str, source: Source, out: Path, *, type: str, size: int, memory: int) -> Plan:
    """A plan from headers alone, of a folder of ``size`` bytes that is made in ``memory`` bytes."""
    download = bytes_to_fetch(source)
    free = free_bytes(out)
    # GPTQModel keeps finished layers in a folder of its own (ours, under the run's scratch) until
    # it saves
    needed = (download if download and same_disk(out) else 0) + 2 * source.parameters + size
    refused = (
        f"not enough room on the disk: {needed / 1e9:.3f} GB are needed, {free / 1e9:.3f} GB are"
        " free"
        if needed > free
        else ""
    )
    return Plan(
        method,
        source,
        (PlanItem(type, size, 8 * size / source.parameters, False, ""),),
        2 * source.parameters,
        disk_needed=needed,
        disk_free=free,
        memory_needed=memory,
        memory_available=memory_available(),
        download=download,
        refused=refused,
    )


def environment(_: Any) -> dict[str, str]:
    """Variables for the worker. GPTQModel 7.6 fails on two processors unless told how many workers
    there are.
    """
    return {
        "GPTQMODEL_CPU_WORKERS": str(os.cpu_count() or 2),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


# --- quantizing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How a folder is made: by which function (``target``, in a worker), with which settings, and
    how it is read back.

    ``algorithm`` and ``file_format`` are kept apart: several algorithms write the same format.
    ``settings`` go to the function and into the journal's key; ``wanted`` is what the config's
    quantization block must say; ``bits`` a weight decide how far a layer may move, and ``advice``
    is what to do if one moves far;
    ``scaled``: the algorithm scales weights (see folder_checks.relative_error). ``calibrates``: it
        is given samples. ``estimate`` names the memory formula of GPTQ and AWQ (see memory_needed).
    ``environment``: the extra whose packages the function needs (an overlay is made if they are not
        here), or a separate one; ``imports`` is what checking imports of it.
    """

    type: str
    target: str
    settings: Mapping[str, Any]
    algorithm: str
    file_format: str
    wanted: Mapping[str, Any]
    bits: int
    calibrates: bool = True
    estimate: str = ""
    environment: str = "gptq"
    imports: tuple[str, ...] = ("gptqmodel",)
    scaled: bool = False
    advice: str = ADVICE
    notes: tuple[str, ...] = ()


def _interpreter(name: str, logs: Path) -> str:
    """The interpreter that has the packages of an extra: this one (""), or that of an overlay,
    which is made on first use.
    """
    return "" if environments.here(name) else environments.python(name, logs)


def prepare(name: str, logs: Path) -> None:
    """Make the overlay of an extra, if its libraries are not here."""
    _interpreter(name, logs)


def quantize(snapshot: Snapshot, options: MethodOptions, run: RunFolder, recipe: Recipe) -> Made:
    """Quantize and verify, unless the journal knows it as done. The run's folder becomes the
    model's folder.
    """
    source, env, type = (
        snapshot.source,
        {**environment(options), **process.finding(recipe.imports)},
        recipe.type,
    )
    made_of: list[Any] = [snapshot.sha256, recipe.algorithm, dict(recipe.settings)]
    sampled = options if recipe.calibrates and isinstance(options, CalibrationOptions) else None
    calling: dict[str, Any] = {}
    used: dict[str, Any]
    if sampled is not None:
        text, length = (
            calibration.documents(sampled),
            min(sampled.calibration_length, source.context),
        )
        batch = {"batch_size": sampled.batch_size} if isinstance(sampled, FolderOptions) else {}
        made_of += [
            text.texts,
            sampled.calibration_samples,
            length,
            sampled.calibration_seed,
            *batch.values(),
        ]
        calling = {
            "packing": {
                "texts": text.texts,
                "samples": sampled.calibration_samples,
                "length": length,
                "seed": sampled.calibration_seed,
            },
            **batch,
        }
    key = key_of(*made_of)
    step = f"quantize {type}"
    others = sorted(name for name in run.steps if name.startswith("quantize ") and name != step)
    if others:
        raise InputError(
            f"out: {run.folder} holds a {others[0].removeprefix('quantize ')} model; name another"
            f" folder for {type}"
        )
    facts = run.done(step, key)
    if facts is None:
        layers = linears(source)
        separate = recipe.environment in environments.PINS
        # GPTQModel's also reads the folders that the other backend writes
        ours = _interpreter("gptq" if separate else recipe.environment, run.logs)
        log.info(
            "%s of %s: %s%d layers",
            recipe.algorithm,
            source.id,
            (
                f"at most {sampled.calibration_samples} samples of {length} tokens, "
                if sampled
                else ""
            ),
            len(layers),
        )
        target = run.work / "model"
        shutil.rmtree(target, ignore_errors=True)
        work: dict[str, Any] = {
            "log": run.logs,
            "env": env,
            "model": str(snapshot.folder),
            "target": str(target),
            "scratch": str(run.work / "scratch"),
            **calling,
            **recipe.settings,
        }
        # compiling GPTQModel's kernels takes up to half a minute and a C++ compiler, a dozen tokens
        # do without
        checking = {**env, "TORCHDYNAMO_DISABLE": "1"}
        with process.Ahead(
            ("transformers", *recipe.imports, "autoquant.folder_checks"),
            log=run.logs,
            env=checking,
            python=ours,
        ) as checker:
            with Bar(f"quantize {type}") as progress:

                def report(done: int, total: int) -> None:
                    progress(done, total)
                    # what is left is writing the files: time for the next process to import its
                    # libraries
                    if done >= total and memory_available() > 2 << 30:
                        checker.start()

                try:
                    if separate:  # it may read the tokenizer otherwise: the samples are packed here
                        ids = process.call(
                            "autoquant.calibration:pack",
                            log=run.logs,
                            env=env,
                            folder=str(snapshot.folder),
                            **work.pop("packing"),
                        )
                        process.call(
                            recipe.target,
                            progress=report,
                            python=environments.python(recipe.environment, run.logs),
                            ids=ids,
                            **work,
                        )
                        used = {"samples": len(ids), "calibration sha256": calibration.digest(ids)}
                    else:
                        used = process.call(recipe.target, progress=report, python=ours, **work)
                except (OutOfMemory, ProcessFailed) as failure:
                    if isinstance(failure, ProcessFailed) and failure.signal != signal.SIGKILL:
                        raise
                    raise InputError(
                        _what_would_fit(source, options, recipe.estimate, failure)
                    ) from None
            with Bar("check") as progress:
                seen = process.call(
                    "autoquant.folder_checks:verify",
                    log=run.logs,
                    env=checking,
                    progress=progress,
                    python=ours,
                    ahead=checker,
                    folder=str(target),
                    source=str(snapshot.folder),
                    layers=sorted(layers),
                    wanted=dict(recipe.wanted),
                    scaled=recipe.scaled,
                    bits=recipe.bits,
                    advice=recipe.advice,
                    parameters=source.parameters,
                )
        few: tuple[str, ...] = ()
        if sampled is not None and used["samples"] < sampled.calibration_samples:
            few = (calibration.fewer(used["samples"], sampled.calibration_samples, length),)
        artifact = Artifact(
            type=type,
            files=tuple(Stored(*stored) for stored in seen["files"]),
            bits_per_weight=seen["bits_per_weight"],
            checks=tuple(Check(*one) for one in seen["checks"]),
            notes=(*recipe.notes, *few, *seen["notes"]),
            facts={**used, "algorithm": recipe.algorithm, "scaled": recipe.scaled},
        )
        names = {stored.name for stored in artifact.files}
        # of an earlier run with other settings: no shard of it may stay beside the new files
        for output in run.steps.get(step, {}).get("outputs", ()):
            if output["name"] not in names:
                (run.folder / output["name"]).unlink(missing_ok=True)
        outputs = [run.finish(target / stored.name) for stored in artifact.files]
        run.record(
            step,
            key,
            outputs,
            artifact.to_json(),
            {stored.name: stored.sha256 for stored in artifact.files},
        )
    else:
        artifact = Artifact.from_json(facts)
    run.passed(artifact)
    for note in artifact.notes:
        log.warning("%s: %s", type, note)
    calibrated = (
        {}
        if sampled is None
        else {
            "calibration": f"{text.name}, {artifact.facts['samples']} samples of {length} tokens",
            "calibration sha256": artifact.facts["calibration sha256"],
        }
    )
    layers_seen = next(one.seen for one in artifact.checks if one.name == "layers")
    return Made(
        (artifact,),
        None,
        {
            "algorithm": artifact.facts["algorithm"],
            "file format": recipe.file_format,
            **calibrated,
            "weights": layers_seen,
        },
    )


def _what_would_fit(
    source: Source, options: MethodOptions, estimate: str, failure: Exception
) -> str:
    """An error that names what to change so that it fits, by the plan's own estimate."""
    available = (failure.available if isinstance(failure, OutOfMemory) else 0) or memory_available()
    where = (
        failure.where
        if isinstance(failure, OutOfMemory)
        else "the process was killed (SIGKILL), which is what the system does when memory runs out"
    )
    if not isinstance(options, FolderOptions):
        return (
            f"{where}. Quantizing {source.id} needs about {memory_whole(source) / 1e9:.1f} GB;"
            f" {available / 1e9:.1f} GB are there: take a machine with more memory, or a smaller"
            " model"
        )
    needed = memory_needed(source, options, estimate)
    now = (
        f"{where}. Quantizing {source.id} with {options.calibration_samples} samples of"
        f" {options.calibration_length} tokens, {options.batch_size} at a time, needs about"
        f" {needed / 1e9:.1f} GB; {available / 1e9:.1f} GB are there"
    )
    # it did not fit into what the estimate says: ask for clearly less
    budget = min(available, int(0.7 * needed))
    for batch, samples, length in (
        (1, options.calibration_samples, options.calibration_length),
        (1, 64, options.calibration_length),
        (1, 32, 512),
        (1, 16, 256),
        (1, 8, 128),
    ):
        less = options.model_copy(
            update={
                "batch_size": batch,
                "calibration_samples": min(samples, options.calibration_samples),
                "calibration_length": min(length, options.calibration_length),
            }
        )
        if less != options and memory_needed(source, less, estimate) <= budget:
            names = ("batch_size", "calibration_samples", "calibration_length")
            changed = [
                f"{name}={getattr(less, name)}"
                for name in names
                if getattr(less, name) != getattr(options, name)
            ]
            return (
                f"{now}. What would fit: {', '.join(changed)} (about"
                f" {memory_needed(source, less, estimate) / 1e9:.1f} GB)"
            )
    return (
        f"{now}. Fewer or shorter samples would not be enough: take a machine with more memory, or"
        " a smaller model"
    )


INTRODUCED = "Give the name of the repository that holds these files, or this folder, for `MODEL`."


def with_transformers(install: str, more: str = "") -> str:
    """How to run a folder with transformers, for a card; ``install`` is what that needs from PyPI,
    ``more`` what else is to be said.
    """
    return f"""```python
# transformers (pip install {install}){more}
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("MODEL", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("MODEL")
inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))
```"""


def with_vllm(result: RunRecord, more: str = "", options: str = "") -> str:
    """How to serve a folder with vLLM, for a card; ``options`` are further ones of its command."""
    return f"""```bash
# vLLM, on a GPU{more}
vllm serve MODEL --max-model-len {min(result.source.context, 4096)}{options}
```"""


def how_to_run(result: RunRecord, more: str = "", options: str = "") -> str:
    """The card's section on running a model of GPTQ or AWQ; ``more`` and ``options`` are those of
    :func:`with_vllm`.
    """
    parts = [INTRODUCED, with_transformers("gptqmodel optimum"), with_vllm(result, more, options)]
    if not any(FOREIGN in artifact.notes for artifact in result.artifacts):
        parts.append("""```python
# GPTQModel
from gptqmodel import GPTQModel

model = GPTQModel.load("MODEL")
print(model.tokenizer.decode(model.generate("Once upon a time")[0]))
```""")
    return "\n\n".join(parts)
