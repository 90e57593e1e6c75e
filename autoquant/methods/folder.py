"""Methods that write a folder of safetensors: planning, quantizing, checking."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import signal
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from autoquant.core import journal
from autoquant.core.errors import InputError, OutOfMemory, ProcessFailed
from autoquant.core.files import free_bytes, key_of
from autoquant.core.journal import RunFolder
from autoquant.core.machine import memory_available, nvidia_gpu
from autoquant.core.options import MethodOptions
from autoquant.core.plans import Plan, PlanItem
from autoquant.core.progress import Bar
from autoquant.core.records import (
    EXPERTS,
    TOWERS,
    Artifact,
    Check,
    Snapshot,
    Source,
    Stored,
)
from autoquant.formats.tensors import Part
from autoquant.hub.fetch import same_disk
from autoquant.methods.base import Method, Output
from autoquant.methods.recipe import Recipe, call_backend
from autoquant.methods.samples import Samples
from autoquant.runtime import environments, process
from autoquant.source import bytes_to_fetch
from autoquant.source.layers import linears
from autoquant.source.structure import counted, listed, structure

log = logging.getLogger(__name__)
F = TypeVar("F", bound=MethodOptions)
LIBRARIES = 700_000_000  # bytes of torch, transformers and a library (measured: 0.63 GB)
LIBRARIES_WITH_CUDA = 2_400_000_000  # with CUDA's own, on a GPU (measured: 2.47 GB, bench/GPU.md)


def libraries() -> int:
    """Bytes that the libraries themselves take in a quantizing process on this machine."""
    return LIBRARIES_WITH_CUDA if nvidia_gpu() else LIBRARIES


class FolderMethod(Method[F]):
    """A method whose run folder becomes a model folder, made from a few facts: see the abstract
    methods.
    """

    library_name: ClassVar[str] = "transformers"
    default_environment: ClassVar[Mapping[str, str]] = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }

    @abstractmethod
    def type_of(self, options: F) -> str:
        """The artifact's name."""

    @abstractmethod
    def size(self, source: Source, options: F) -> int:
        """Bytes of the folder's tensors to be, from the headers alone."""

    @abstractmethod
    def recipe(self, options: F) -> Recipe:
        """How it is made."""

    def memory(self, source: Source, options: F) -> int:
        """Bytes that quantizing layer by layer without data needs, roughly: the whole model at 16
        bits, and the largest matrix some times over in float32.
        """
        largest = max(outputs * inputs for outputs, inputs in linears(source).values())
        return libraries() + 2 * source.parameters + 4 * 5 * largest

    def what_would_fit(self, source: Source, options: F, available: int) -> str:
        """What to say to somebody whose memory did not suffice; ``available`` bytes were there."""
        return (
            f"Quantizing {source.id} needs about {self.memory(source, options) / 1e9:.1f} GB;"
            f" {available / 1e9:.1f} GB are free: take a machine with more memory, or a smaller"
            " model"
        )

    def what_instead(self, options: F) -> str:
        """What to do where the library itself fails on a model; empty if there is nothing."""
        return ""

    def prepared(self, snapshot: Snapshot, options: F, run: RunFolder) -> Recipe:
        """How it is made, with what has to be found out of the model before; steps that the
        journal knows are not done again.
        """
        return self.recipe(options)

    # --- what follows is the same for most

    writes_intermediate: ClassVar[bool] = True
    """Whether its library keeps a copy of the model on the disk while it works."""

    def quantized(self, source: Source, options: F) -> dict[str, Part]:
        """The matrices that its library quantizes, by the names they are written under."""
        return self.parts(source)

    def parameters(self, source: Source) -> int:
        """How many values the model to be stands for."""
        return source.parameters

    def read_back(self, source: Source) -> bool:
        """Whether the library that loads such folders cannot load this one."""
        return False

    def notes(self, source: Source, options: F) -> tuple[str, ...]:
        """What somebody should know of the model to be, from the source alone: what stays in 16
        bits beside embeddings, head and norms.
        """
        found, said = structure(source), []
        if found.towers:
            said.append(f"stays in 16 bits: {', '.join(found.towers)}")
        if found.unread:
            said.append(
                f"stay in 16 bits: {counted(len(found.unread), 'matrix', 'matrices')} of"
                f" state-space mixers, which read them past the layers (such as {found.unread[0]})"
            )
        if found.narrow:
            said.append(
                f"stay in 16 bits: {counted(len(found.narrow), 'matrix', 'matrices')} of a few"
                f" inputs (such as {found.narrow[0]})"
            )
        taken = self.quantized(source, options)
        if left := [name for name in self.parts(source) if name not in taken]:
            said.append(
                f"stay in 16 bits: {counted(len(left), 'matrix', 'matrices')} that the library"
                f" does not quantize by design ({listed(left)})"
            )
        if found.experts:
            said.append(
                f"{EXPERTS}: transformers 5 does not load quantized experts (it has them"
                " in one tensor a block); it was read back, run and measured by AutoQuant's reader"
            )
        return tuple(said)

    def variants(self, options: F) -> tuple[str, ...]:
        """One."""
        return (self.type_of(options),)

    def environment(self, options: F) -> dict[str, str]:
        """Variables for the workers: those that quantize, check and measure are forked from one
        preloaded process.
        """
        return {**self.default_environment, **process.finding(self.heavy_imports)}

    def prepare(self, logs: Path) -> str:
        """Make the overlay of its extra, if its libraries are not here."""
        self._interpreter(logs)
        return ""

    def _interpreter(self, logs: Path) -> str:
        """The interpreter that has the packages of its extra: this one (""), or that of an overlay,
        which is made on first use.
        """
        return "" if environments.here(self.extra) else environments.python(self.extra, logs)

    def check_hardware(self, options: F, folder: Path) -> None:
        """Refuse a folder that is another model of its source already."""
        type, made = self.type_of(options), journal.read(folder)[1]
        others = sorted(n for n in made if n.startswith("quantize ") and n != f"quantize {type}")
        if others:
            raise InputError(
                f"out: {folder} holds a {others[0].removeprefix('quantize ')} model; name another"
                f" folder for {type}"
            )

    def plan(self, source: Source, options: F, out: Path) -> Plan:
        """The size to be, from the headers alone."""
        self.check(source, options)
        self.check_hardware(options, out)
        size, download, free = self.size(source, options), bytes_to_fetch(source), free_bytes(out)
        # GPTQModel keeps finished layers in a folder of its own (ours, under the run's scratch)
        # until it saves
        intermediate = 2 * source.parameters if self.writes_intermediate else 0
        needed = (download if download and same_disk(out) else 0) + intermediate + size
        refused = ""
        if needed > free:
            refused = (
                f"not enough room on the disk: {needed / 1e9:.3f} GB are needed,"
                f" {free / 1e9:.3f} GB are free"
            )
        bits = 8 * size / self.parameters(source)
        item = PlanItem(self.type_of(options), size, bits, False, "")
        return Plan(
            self.name,
            source,
            (item,),
            intermediate,
            disk_needed=needed,
            disk_free=free,
            memory_needed=self.memory(source, options),
            memory_available=memory_available(),
            download=download,
            refused=refused,
            notes=self.notes(source, options),
        )

    def quantize(self, snapshot: Snapshot, options: F, run: RunFolder) -> Output:
        """Quantize and verify, unless the journal knows it as done. The run's folder becomes the
        model's folder.
        """
        type = self.type_of(options)
        step = f"quantize {type}"
        recipe = self.prepared(snapshot, options, run)
        samples = Samples.of(snapshot.source, options) if recipe.samples else None
        depends = [snapshot.sha256, recipe.algorithm, dict(recipe.settings)]
        key = key_of(*depends, *(samples.depends(recipe.arguments) if samples else ()))
        facts = run.done(step, key)
        if facts is None:
            artifact = self._make(snapshot, options, run, recipe, samples)
            names = {stored.name for stored in artifact.files}
            # of an earlier run with other settings: no shard of it may stay beside the new files
            for output in run.steps.get(step, {}).get("outputs", ()):
                if output["name"] not in names:
                    (run.folder / output["name"]).unlink(missing_ok=True)
            model = run.work / "model"
            outputs = [run.finish(model / stored.name, stored.name) for stored in artifact.files]
            hashes = {stored.name: stored.sha256 for stored in artifact.files}
            run.record(step, key, outputs, artifact.to_json(), hashes)
        else:
            artifact = Artifact.from_json(facts)
        run.passed(artifact)
        for note in artifact.notes:
            log.warning("%s: %s", type, note)
        provenance = {"algorithm": artifact.facts["algorithm"], "file format": recipe.file_format}
        if samples:
            taken = artifact.facts["samples"]
            provenance["calibration"] = (
                f"{samples.name}, {taken} samples of {samples.length} tokens"
            )
            provenance["calibration sha256"] = artifact.facts["calibration sha256"]
        if towers := structure(snapshot.source).towers:
            provenance[TOWERS] = f"in 16 bits: {', '.join(towers)}"
        provenance["weights"] = next(c.seen for c in artifact.checks if c.name == "layers")
        return Output((artifact,), None, provenance)

    def _make(
        self,
        snapshot: Snapshot,
        options: F,
        run: RunFolder,
        recipe: Recipe,
        samples: Samples | None,
    ) -> Artifact:
        """Quantize into the scratch folder, and check what lies there."""
        source, type, target = snapshot.source, self.type_of(options), run.work / "model"
        parts, env = self.quantized(source, options), self.environment(options)
        log.info(
            "%s of %s: %s%d layers",
            recipe.algorithm,
            source.id,
            f"at most {samples.asked} samples of {samples.length} tokens, " if samples else "",
            len(parts),
        )
        shutil.rmtree(target, ignore_errors=True)
        python = self._interpreter(run.logs)
        try:
            with Bar(f"quantize {type}") as progress:
                used = call_backend(
                    recipe,
                    samples,
                    log=run.logs,
                    env=env,
                    python=python,
                    progress=progress,
                    model=str(snapshot.folder),
                    target=str(target),
                    scratch=str(run.work / "scratch"),
                )
        except (OutOfMemory, ProcessFailed) as failure:
            raise InputError(self._out_of_memory(source, options, failure)) from None

        def verify(failed: str = "") -> dict[str, Any]:
            with Bar("check") as progress:
                found: dict[str, Any] = process.call(
                    "autoquant.backends.checks:verify",
                    log=run.logs,
                    env=env,
                    progress=progress,
                    python=python,
                    folder=str(target),
                    source=str(snapshot.folder),
                    layers={name: dataclasses.asdict(part) for name, part in parts.items()},
                    wanted=dict(recipe.wanted),
                    scaled=recipe.scaled,
                    bits=recipe.bits,
                    advice=recipe.advice,
                    parameters=self.parameters(source),
                    read_back=self.read_back(source),
                    failed=failed,
                )
            return found

        try:
            verified = verify()
        except (OutOfMemory, ProcessFailed) as failure:
            if not (where := _without_memory(failure)):
                raise
            log.warning("the check of %s: %s; once more, block by block", type, where)
            verified = verify(where)
        fewer = samples.fewer(used["samples"]) if samples else ()
        if rounded := used.get("rounded"):
            fewer += (
                f"{rounded} of {len(parts)} matrices (experts) were rounded to the nearest: too few"
                " calibration samples reached them",
            )
        return Artifact(
            type=type,
            files=tuple(Stored(*stored) for stored in verified["files"]),
            bits_per_weight=verified["bits_per_weight"],
            checks=tuple(Check(*one) for one in verified["checks"]),
            notes=(*recipe.notes, *self.notes(source, options), *fewer, *verified["notes"]),
            facts={
                **used,
                **recipe.facts,
                "algorithm": recipe.algorithm,
                "scaled": recipe.scaled,
                "settings": dict(recipe.settings),
            },
        )

    def _out_of_memory(self, source: Source, options: F, failure: Exception) -> str:
        """A failure for want of memory in words, with what would fit; any other is raised again."""
        if where := _without_memory(failure):
            available = getattr(failure, "available", 0) or memory_available()
        elif isinstance(failure, ProcessFailed) and (instead := self.what_instead(options)):
            raise ProcessFailed(f"{failure}. Another way: {instead}") from failure
        else:
            raise failure
        return f"{where}. {self.what_would_fit(source, options, available)}"


def _without_memory(failure: Exception) -> str:
    """Where memory ran out, in words; empty if something else has failed."""
    if isinstance(failure, OutOfMemory):
        return failure.where
    if isinstance(failure, ProcessFailed) and failure.signal == signal.SIGKILL:
        return (
            "the process was killed (SIGKILL), which is what the system does when memory runs out"
        )
    return ""
