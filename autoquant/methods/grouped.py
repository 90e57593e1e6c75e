"""What GPTQ and AWQ share: weights in groups that share a scale, calibrated on text, by GPTQModel
or AutoRound.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import field_validator

from autoquant import calibration
from autoquant.backends import auto_round, block_arguments
from autoquant.calibration import CalibrationOptions
from autoquant.core.errors import InputError
from autoquant.core.files import key_of, sha256_of
from autoquant.core.options import option
from autoquant.core.records import RunRecord, Source
from autoquant.core.version import __version__
from autoquant.formats.tensors import Part
from autoquant.methods import how_to_run
from autoquant.methods.base import choice
from autoquant.methods.folder import FolderMethod, libraries
from autoquant.methods.recipe import cores_for_gptqmodel
from autoquant.runtime import answers, environments, process
from autoquant.source import layers as layers_of
from autoquant.source.headers import read_json
from autoquant.source.layers import weights_of_blocks
from autoquant.source.parts import division, modules, place
from autoquant.source.structure import structure

log = logging.getLogger(__name__)
AUTO, GROUP_SIZES = 0, (-1, 32, 64, 128)
FOREIGN = (
    "GPTQModel's own loader rejects files with zero points unless it wrote them; transformers loads"
    " them"
)
ADVICE = "zero points (--no-sym), smaller groups or algorithm autoround do better"
ITERATIONS = 200  # AutoRound's own default
G = TypeVar("G", bound="GroupedOptions")


def group(size: int) -> str:
    """A group size in a type's name."""
    return {-1: "row", AUTO: "auto"}.get(size, f"{size}g")


class GroupedOptions(CalibrationOptions):
    """The options of methods that quantize the blocks' matrices in groups, and calibrate."""

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
        4,
        "samples per batch through a layer; fewer take less memory",
        unit="samples",
        ge=1,
        le=256,
    )
    iterations: int = option(
        ITERATIONS,
        "steps of algorithm autoround for each block; fewer are faster, more a little better; with"
        " a handful it can be worse than without",
        unit="steps",
        ge=1,
        le=10_000,
    )

    @field_validator("group_size")
    @classmethod
    def _group(cls, value: int) -> int:
        more = " (0: chosen by the model; -1: one scale for a whole row)"
        return choice(value, (AUTO, *GROUP_SIZES), more)


def taken_by_gptqmodel(method: GroupedMethod[Any], source: Source) -> frozenset[str] | None:
    """The names, within a block, of the modules that GPTQModel quantizes. A worker asks it, in
    seconds, once for each config.json. None where it is not installed, so that nothing is installed
    for a plan, and for what no Auto class of transformers loads.
    """
    if not environments.here(method.extra) or not structure(source).auto:
        return None
    version = environments.version("gptqmodel")
    key = key_of(sha256_of(source.folder / "config.json"), method.name, version, __version__)
    env = {**cores_for_gptqmodel(), **process.finding(method.heavy_imports)}
    said = answers.kept(
        "gptqmodel",
        key,
        "autoquant.backends.gptqmodel:modules",
        env=env,
        model=str(source.folder),
        algorithm=method.name,
    )
    return frozenset(json.loads(said))


class GroupedMethod(FolderMethod[G]):
    """GPTQ or AWQ."""

    requires_calibration: ClassVar[str] = "yes"
    gpu_to_run: ClassVar[str] = "yes, for speed"
    runtimes: ClassVar[str] = "vLLM, SGLang, transformers"
    extra: ClassVar[str] = "gptq"
    heavy_imports: ClassVar[tuple[str, ...]] = ("gptqmodel",)
    packages: ClassVar[tuple[str, ...]] = (
        "gptqmodel",
        "optimum",
        "auto-round",
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
    )

    def algorithm(self, options: G) -> str:
        """Which algorithm chooses the codes, as the option says it."""
        return str(options.algorithm)  # type: ignore[attr-defined]

    def environment(self, options: G) -> dict[str, str]:
        """Variables for the worker."""
        return {**super().environment(options), **cores_for_gptqmodel()}

    def resolve_defaults(self, source: Source, options: G) -> G:
        """The options with a group size: 128, or the largest that divides every layer's input
        width.
        """
        if options.group_size != AUTO:
            return options
        inputs = [inputs for _, inputs in self.shapes(source, options).values()]
        sizes = sorted((size for size in GROUP_SIZES if size > 0), reverse=True)
        # 128 that does not fit is refused by check
        size = next((size for size in sizes if all(n % size == 0 for n in inputs)), 128)
        if size != 128:
            log.info("group_size: %d, the largest that divides the inputs of every layer", size)
        return options.model_copy(update={"group_size": size})

    def check_layers(self, source: Source, options: G) -> dict[str, tuple[int, int]]:
        """Refuse what cannot work, and return the layers: a source that is quantized, a group size
        that does not fit, a text that is not there.
        """
        found = layers_of.check_known(source, self.title)
        if self.by_gptqmodel(options) and any(layer.transposed for layer in found.layers):
            raise InputError(
                f"{source.id} ({source.architecture}) has its experts in one transposed tensor,"
                " which Defuser, GPTQModel's library for that, takes apart in another order than"
                " the model has. Algorithm autoround (--algorithm autoround) takes such models, and"
                " so do GGUF, HQQ, bitsandbytes and W8A8"
            )
        config = read_json(source.folder / "config.json")
        text = config.get("text_config") or config
        if self.algorithm(options) == "autoround" and text.get("hidden_size_per_layer_input"):
            raise InputError(
                f"{source.id} ({source.architecture}) gives each block inputs of its own for each"
                f" token: {block_arguments.REST}"
            )
        layers = layers_of.some(self.shapes(source, options), source, self.title)
        if options.group_size > 0:
            refuse_group_size(layers, options.group_size, GROUP_SIZES)
        calibration.check(options)
        return layers

    def by_gptqmodel(self, options: G) -> bool:
        """Whether GPTQModel chooses the codes."""
        return self.algorithm(options) == self.name

    def quantized(self, source: Source, options: G) -> dict[str, Part]:
        """What the library quantizes, which leaves some matrices of some models as they are."""
        parts = modules(source)
        if self.algorithm(options) == "autoround":
            return {part.name: part for part in auto_round.taken(parts).values()}
        taken = taken_by_gptqmodel(self, source) if self.by_gptqmodel(options) else None
        return {
            part.name: part
            for module, part in parts.items()
            if taken is None or place(module)[1] in taken
        }

    def parts(self, source: Source) -> dict[str, Part]:
        """Each matrix by itself, experts too."""
        return {part.name: part for part in modules(source).values()}

    def shapes(self, source: Source, options: G) -> dict[str, tuple[int, int]]:
        """The shapes [outputs, inputs] of what is quantized."""
        return {name: part.shape for name, part in self.quantized(source, options).items()}

    def parameters(self, source: Source) -> int:
        """What is written of the source."""
        return division(source).parameters

    def read_back(self, source: Source) -> bool:
        """transformers 5 has the experts of a block in one tensor, which it does not load from
        quantized files.
        """
        return structure(source).experts

    def memory(self, source: Source, options: G) -> int:
        """Bytes the quantizing process needs, roughly; GPTQ and AutoRound were measured on
        checkpoints of 1.9 and 2.1 GB, AWQ on one of 1.1 GB (bench/RESULTS.md).

        For GPTQ half of the model at 16 bits (it is read layer by layer, and finished layers are
        parked on the disk), the block at work, and a float32 matrix [inputs, inputs] some times
        over; for AWQ the model once, the block in float32 and every matrix's inputs; for AutoRound
        the codes of finished blocks, and the block at work in float32 with its gradients; for all
        the samples' activations.
        """
        layers = self.shapes(source, options)
        block, model = max(weights_of_blocks(layers).values()), 2 * source.parameters
        wide = max(inputs for _, inputs in layers.values())
        hidden = min(inputs for _, inputs in layers.values())
        length = min(options.calibration_length, source.context)
        # what enters and leaves a block, 16 bits
        states = 2 * 2 * options.calibration_samples * length * hidden
        batch = 4 * 6 * options.batch_size * length * wide
        if self.algorithm(options) == "autoround":
            # its weights are mapped from the files; finished blocks' codes are held. Without 300 MB
            # more plans were too small (bench/RESULTS.md)
            return libraries() + 300_000_000 + model // 3 + 4 * 5 * block + states + 3 * batch
        if self.algorithm(options) == "awq":
            return libraries() + model + 4 * 3 * block + 4 * states + batch
        return libraries() + model // 2 + 4 * block + 3 * 4 * wide * wide + states + batch

    def what_would_fit(self, source: Source, options: G, available: int) -> str:
        """What to change so that it fits, by the plan's own estimate."""
        needed = self.memory(source, options)
        now = (
            f"Quantizing {source.id} with {options.calibration_samples} samples of"
            f" {options.calibration_length} tokens, {options.batch_size} at a time, needs about"
            f" {needed / 1e9:.1f} GB; {available / 1e9:.1f} GB are free"
        )
        # it did not fit into what the estimate says: ask for clearly less
        budget = min(available, int(0.7 * needed))
        many, long = options.calibration_samples, options.calibration_length
        for samples, length in ((many, long), (64, long), (32, 512), (16, 256), (8, 128)):
            less = {
                "batch_size": 1,
                "calibration_samples": min(samples, many),
                "calibration_length": min(length, long),
            }
            smaller = options.model_copy(update=less)
            fits = self.memory(source, smaller)
            if smaller != options and fits <= budget:
                changed = ", ".join(
                    f"{name}={value}"
                    for name, value in less.items()
                    if value != getattr(options, name)
                )
                return f"{now}. What would fit: {changed} (about {fits / 1e9:.1f} GB)"
        return (
            f"{now}. Fewer or shorter samples would not be enough: take a machine with more"
            " memory, or a smaller model"
        )

    def what_instead(self, options: G) -> str:
        """AutoRound takes nearly all architectures (docs/models.md)."""
        by_gptqmodel = self.by_gptqmodel(options)
        return "algorithm autoround (--algorithm autoround)" if by_gptqmodel else ""

    def how_to_run(self, record: RunRecord) -> str:
        """The card's section on running the model."""
        return card(record)


def card(record: RunRecord, more: str = "", options: str = "") -> str:
    """How to run the files; ``more`` and ``options`` are those of how_to_run.with_vllm."""
    parts = [
        how_to_run.INTRODUCED,
        how_to_run.with_transformers(record, "gptqmodel optimum"),
        how_to_run.with_vllm(record, more, options),
    ]
    if not any(
        FOREIGN in artifact.notes or artifact.facts.get("published names")
        for artifact in record.artifacts
    ):
        parts.append(how_to_run.WITH_GPTQMODEL)
    return "\n\n".join(parts)


def refuse_group_size(
    layers: Mapping[str, tuple[int, int]], size: int, sizes: Sequence[int]
) -> None:
    """Refuse a group size that does not divide the inputs of every layer; ``sizes`` are those
    offered (-1: a whole row).
    """
    odd = [(name, inputs) for name, (_, inputs) in layers.items() if inputs % size]
    if odd:
        widths = {inputs for _, inputs in layers.values()}
        fit = [str(s) for s in sizes if s == -1 or all(width % s == 0 for width in widths)]
        named = ", ".join(f"{name} ({inputs} inputs)" for name, inputs in odd[:3])
        raise InputError(
            f"group_size: {size} does not divide the inputs of {len(odd)} of {len(layers)} layers:"
            f" {named}{' …' if len(odd) > 3 else ''}. Sizes that fit this model: {', '.join(fit)}"
        )


def size_of(layers: Mapping[str, tuple[int, int]], source: Source, options: Any, bits: int) -> int:
    """Bytes of codes, zero points and 16-bit scales of each layer, and 16 bits for all else."""
    divided = division(source)
    left = set(divided.shapes) - set(layers)
    total = divided.kept + 2 * sum(math.prod(divided.shapes[name]) for name in left)
    return total + sum(taken(shape, bits, options.group_size) for shape in layers.values())


def taken(shape: tuple[int, int], bits: int, group_size: int) -> int:
    """Bytes of the codes, zero points and scales (16 bits) of a matrix [outputs, inputs]."""
    outputs, inputs = shape
    groups = 1 if group_size == -1 else inputs // group_size
    return (outputs * inputs + groups * outputs) * bits // 8 + 2 * groups * outputs
