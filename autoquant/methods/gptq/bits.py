"""GPTQ with bits by module (``bpw``): which modules have 8 bits, which 4, and in groups of what
size, as the Fisher information of their weights says.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from autoquant import calibration
from autoquant.core import journal, texts
from autoquant.core.bundled import BUILTIN, KINDS, SENSITIVITY, suited
from autoquant.core.errors import InputError
from autoquant.core.files import key_of
from autoquant.core.journal import RunFolder
from autoquant.core.machine import cores
from autoquant.core.progress import Bar
from autoquant.core.records import RunRecord, Snapshot, Source
from autoquant.evaluate import sources
from autoquant.fisher.choice import Cost, choose
from autoquant.formats.gptq import Kind
from autoquant.formats.tensors import Part
from autoquant.methods import gradients, how_to_run
from autoquant.methods.cutting import tokens
from autoquant.methods.grouped import taken
from autoquant.source.parts import place
from autoquant.source.structure import structure

log = logging.getLogger(__name__)
STEP = "bits"  # in the journal
FINE = 32  # the other group size that modules may have
INSTEAD = "Take bits (--bits) instead of bpw"
# What vLLM and SGLang run as one matrix must have one kind: the modules' names, and that of the
# joined one, which rules are matched with there (vLLM's packed_modules_mapping; newer releases
# match the modules' own names too)
JOINED = (
    (("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    (("gate_proj", "up_proj"), "gate_up_proj"),
    (("w1", "w3"), "gate_up_proj"),
    (("q_a_proj", "kv_a_proj_with_mqa"), "fused_qkv_a_proj"),
    (("in_proj_qkv", "in_proj_z"), "in_proj_qkvz"),
    (("in_proj_a", "in_proj_b"), "in_proj_ba"),
)

Shapes = Mapping[str, tuple[int, int]]
"""Matrices' [outputs, inputs], by the names they are written under."""


class Chosen(NamedTuple):
    """Of each module its kind; and the ``bits`` per weight that this makes of all of them."""

    kinds: dict[str, Kind]
    bits: float


class Text(NamedTuple):
    """What sensitivities are measured on: documents by kind."""

    name: str
    by_kind: Mapping[str, Any]


def kinds(group_size: int) -> tuple[Kind, ...]:
    """What modules may be, the smallest first."""
    sizes = (group_size,) if group_size == FINE else (group_size, FINE)
    return tuple(Kind(bits, size) for bits in (4, 8) for size in sizes)


def rate(shapes: Shapes, kind: Kind) -> float:
    """Bits per weight of all matrices, if they are alike."""
    return 8 * sum(taken(shape, *kind) for shape in shapes.values()) / _weights(shapes)


def budget(shapes: Shapes, bpw: float) -> int:
    """Bytes that the matrices may take."""
    return math.floor(bpw * _weights(shapes) / 8)


def refuse(source: Source, options: Any, shapes: Shapes) -> None:
    """Refuse bits per weight that cannot be reached, what does not go with them, and a model
    without gradients. Raises InputError.
    """
    if options.backend == "auto-gptq":
        raise InputError(
            "bpw: AutoGPTQ gives all modules the same bits; leave out backend (GPTQModel does it),"
            " or bpw"
        )
    if structure(source).experts:
        raise InputError(
            f"bpw: {source.id} ({source.architecture}) is a mixture of experts, which runtimes want"
            " alike in a block, and of which gradients tell only what those lose that were asked."
            f" {INSTEAD}"
        )
    bpw, size = options.bpw, options.group_size
    least, most = (rate(shapes, Kind(bits, size)) for bits in (4, 8))
    low, high = math.ceil(100 * least) / 100, math.floor(100 * most) / 100
    if not budget(shapes, least) <= budget(shapes, bpw) <= budget(shapes, most):
        raise InputError(
            f"bpw: {bpw:g} is not allowed; allowed with this model and groups of"
            f" {'a whole row' if size == -1 else size}: {low:.2f} (all modules at 4 bits, with"
            f" scales and zero points) to {high:.2f} (all at 8 bits). For fewer take bits"
            " (--bits 3) or larger groups"
        )
    gradients.check(source, "bpw", INSTEAD)


def memory(shapes: Shapes) -> int:
    """Bytes of a block's products of inputs, in float32: of each kind of input once, and the widest
    some times over while it is factored.
    """
    widths = {joined(place(name)[1]): inputs for name, (_, inputs) in shapes.items()}
    return 4 * (sum(one * one for one in widths.values()) + 3 * max(widths.values()) ** 2)


def refuse_without_memory(source: Source, shapes: Shapes, options: Any, folder: Path) -> None:
    """Refuse gradients that there is no memory for, unless the run in a folder has done with those
    that the options ask for. Raises InputError.
    """
    done = journal.read(folder)[1].get(STEP)
    if done is None or done["facts"].get("asked") != key_of(*_asked(source, shapes, options)):
        gradients.how(source, options.sensitivity_samples, INSTEAD, memory(shapes))


def _asked(source: Source, shapes: Shapes, options: Any) -> list[Any]:
    """What the choice depends on beside the model's weights."""
    settings = [options.bpw, kinds(options.group_size), options.sym, options.damp_percent]
    settings += [options.sensitivity_samples]
    text = _text(source, options)
    return [text.by_kind, settings, options.calibration_seed, sorted(shapes.items())]


def chosen(
    snapshot: Snapshot,
    run: RunFolder,
    options: Any,
    modules: Mapping[str, Part],
    env: Mapping[str, str],
) -> tuple[Chosen, str]:
    """The best kinds of the ``modules`` for ``options.bpw``, and how they were found in words;
    noted in the journal, so that a run that is resumed has the same. Raises InputError without
    memory for gradients.
    """
    shapes = {name: part.shape for name, part in modules.items()}
    offered, text = kinds(options.group_size), _text(snapshot.source, options)
    asked = _asked(snapshot.source, shapes, options)
    key = key_of(snapshot.sha256, *asked)
    facts = run.done(STEP, key)
    if facts is None:
        nats, said = _measured(snapshot, run, options, modules, offered, text, env)
        found = best(shapes, nats, offered, options.bpw)
        log.info(
            "bits by module: %d of %d modules have 8 bits, %.3f bits per weight",
            sum(kind.bits == 8 for kind in found.kinds.values()), len(shapes), found.bits,
        )  # fmt: skip
        facts = {"kinds": found.kinds, "bits": found.bits, "measured": said}
        facts["asked"] = key_of(*asked)
        run.record(STEP, key, [], facts)
    said = (
        f"{facts['bits']:.3f} bits per weight of the quantized matrices, with scales and zero"
        f" points; chosen by {facts['measured']}"
    )
    return Chosen({name: Kind(*kind) for name, kind in facts["kinds"].items()}, facts["bits"]), said


def best(
    shapes: Shapes, nats: Mapping[str, list[float]], offered: tuple[Kind, ...], bpw: float
) -> Chosen:
    """The kinds that lose the least in ``bpw`` bits per weight; ``nats`` are what each module loses
    by each of those ``offered``. Modules that nothing is known of lose nothing, and have the
    smallest.
    """
    costs: dict[str, dict[str, Cost]] = {}
    for name, shape in shapes.items():
        here = costs.setdefault(joined(name), {})
        for kind, lost in zip(offered, nats.get(name, [0.0] * len(offered)), strict=True):
            if kind.group_size > 0 and shape[1] % kind.group_size:
                continue
            before = here.get(str(kind), Cost(0, 0.0))
            here[str(kind)] = Cost(before.bytes + taken(shape, *kind), before.nats + lost)
    found, by_name = choose(costs, budget(shapes, bpw)), {str(kind): kind for kind in offered}
    return Chosen(
        {name: by_name[found.types[joined(name)]] for name in shapes},
        8 * found.bytes / _weights(shapes),
    )


def joined(module: str) -> str:
    """What names the modules that have one kind: the module's own name, or its block's joined
    matrix.
    """
    before, _, last = module.rpartition(".")
    return f"{before}.{next((one for names, one in JOINED if last in names), last)}"


def dynamic(kinds: Mapping[str, Kind], base: Kind) -> dict[str, dict[str, int]]:
    """What GPTQModel's and vLLM's ``dynamic`` says of modules that are not of the ``base`` kind:
    patterns of names, each for the same module of several blocks, and what is other there.

    They are matched from a name's beginning, by vLLM and SGLang with the names of joined matrices,
    and of models that see with another beginning than the files have.
    """
    blocks: dict[tuple[Kind, str, str], set[int]] = {}
    modules: dict[tuple[Kind, str, str], list[str]] = {}
    for name, kind in kinds.items():
        number, inside = place(name)
        outside = name.removesuffix(f".{number}.{inside}").rpartition(".")[2]
        if kind != base:
            where = (kind, outside, joined(inside))
            blocks.setdefault(where, set()).add(number)
            # a joined matrix's own name, and those of its parts
            modules.setdefault(where, [where[2]]).append(inside)
    found: dict[str, dict[str, int]] = {}
    for (kind, outside, inside), numbers in blocks.items():
        before, dot, _ = inside.rpartition(".")
        names = dict.fromkeys(modules[kind, outside, inside])
        pattern = (
            rf"+:^(?:.*\.)?{outside}\.{_either(map(str, sorted(numbers)))}\."
            + re.escape(f"{before}{dot}")
            + _either(name.rpartition(".")[2] for name in names)
            + "$"
        )
        found[pattern] = {
            key: value for key, value in kind._asdict().items() if value != getattr(base, key)
        }
    return found


def recipe(kinds: Mapping[str, Kind]) -> dict[str, dict[str, int]]:
    """How many modules of each name (q_proj, down_proj …) are of which kind, for tables."""
    found: dict[str, Counter[str]] = {}
    for name, kind in kinds.items():
        found.setdefault(name.rpartition(".")[2], Counter())[str(kind)] += 1
    return {part: dict(every.most_common()) for part, every in found.items()}


def how_to_run_mixed(record: RunRecord) -> str:
    """The card's section on running files whose modules differ."""
    sym = all(artifact.facts["settings"]["sym"] for artifact in record.artifacts)
    plain = "" if sym else "; such codes run in its plain GPTQ kernels, which take float16 only"
    return "\n\n".join(
        (
            f"{how_to_run.INTRODUCED} Modules have bits and group sizes of their own (`dynamic` in"
            " `config.json`), at which transformers does not look: there GPTQModel loads them, not"
            " `from_pretrained`.",
            how_to_run.with_vllm(record, plain, "" if sym else " --dtype float16"),
            how_to_run.WITH_GPTQMODEL,
        )
    )


def _either(names: Iterable[str]) -> str:
    """A pattern of one of a few names."""
    every = list(names)
    return every[0] if len(every) == 1 else f"(?:{'|'.join(every)})"


def _weights(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _text(source: Source, options: Any) -> Text:
    """Of the built-in text the part that is neither calibrated on nor measured on; else the user's
    own.
    """
    if options.calibration not in (BUILTIN, *KINDS):
        found = calibration.documents(options, source.folder)
        return Text(found.name, {"": found.texts})
    name = suited(options.calibration, source.folder)
    said = calibration.builtin_in_words(name)
    return Text(said, texts.parts(name, "calibration", SENSITIVITY))


def _measured(
    snapshot: Snapshot,
    run: RunFolder,
    options: Any,
    modules: Mapping[str, Part],
    offered: tuple[Kind, ...],
    text: Text,
    env: Mapping[str, str],
) -> tuple[dict[str, list[float]], str]:
    """What each module loses by each kind, in nats per token, as a worker finds it; and how, in
    words.
    """
    source, count = snapshot.source, options.sensitivity_samples
    length = gradients.length(source)
    shapes = {name: part.shape for name, part in modules.items()}
    chunks = tokens(text.by_kind, snapshot, count, length, run, env)
    if len(chunks) < count:
        log.warning(
            "sensitivities: %s has %d chunks of %d tokens, fewer than %d (sensitivity_samples)",
            text.name, len(chunks), length, count,
        )  # fmt: skip
    with Bar("sensitivities") as progress:
        found = sources.in_worker(
            snapshot,
            run,
            "autoquant.fisher.rounding:collect",
            log=run.logs,
            env=env,
            progress=progress,
            source=sources.told(snapshot),
            chunks=chunks,
            tensors=[part.tensor for part in modules.values()],
            kinds=offered,
            sym=options.sym,
            damp=options.damp_percent,
            threads=cores(),
            seed=options.calibration_seed,
            plan=gradients.how(source, count, INSTEAD, memory(shapes)),
        )["nats"]
    if lacking := [name for name, part in modules.items() if part.tensor not in found]:
        log.warning(
            "sensitivities: nothing is known of %d modules (%s …), which have 4 bits",
            len(lacking), lacking[0],
        )  # fmt: skip
    said = (
        f"squared gradients on {len(chunks)} chunks of {length} tokens ({text.name}), with labels"
        " drawn from the model"
    )
    nats = {name: found[part.tensor] for name, part in modules.items() if part.tensor in found}
    return nats, said
