"""What a GGUF run would make and need, exactly, before anything is downloaded or written."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp.types import refuse
from autoquant.core import gguf_head
from autoquant.core.errors import InputError
from autoquant.core.files import free_bytes
from autoquant.core.machine import memory_available
from autoquant.core.plans import Plan, PlanItem
from autoquant.core.records import Source
from autoquant.methods import gradients as backward
from autoquant.methods.gguf import (
    adapter_only,
    choosing,
    mmproj,
    requantize,
    sizes,
    streaming,
    timing,
)
from autoquant.methods.gguf.convert import convert, fallback_note, precision
from autoquant.methods.gguf.options import GgufOptions
from autoquant.methods.size import Size
from autoquant.source import adapter_bytes, bytes_to_fetch, remote, structure

# bytes: torch and transformers imported, the tokenizer; the largest tensor comes on top
CONVERTER_MEMORY = 1200 << 20
# bytes: Python with NumPy and llama.cpp, and the rows that wait for a thread and for the disk
QUANTIZER_MEMORY = 700 << 20
CHOSEN = "each tensor in the type that loses the least"


def plan(method: str, source: Source, options: GgufOptions, out: Path) -> Plan:
    """The exact size of every asked type, from a header-only file; no weight is read. Takes as long
    as importing transformers, of a source that is a GGUF file a second.
    """
    if options.adapter_only:
        return _of_adapter(method, source, options, out)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        header = folder / "header.gguf"
        if source.gguf:
            plans = requantize.plans(
                source,
                options,
                list(options.types),
                folder=source.folder,
                header=header,
                logs=folder / "log",
            )
            notes = [requantize.note(source), mmproj.note(source, options, {})]
            carried = source.folder / source.mmproj if source.mmproj and options.mmproj else None
            kept = 0
            beside, whole, memory = carried.stat().st_size if carried else 0, "", QUANTIZER_MEMORY
        else:
            converted = convert(
                source,
                options,
                header=header,
                logs=folder / "log",
                types=list(choosing.STOCK if options.size else options.types),
                outtype=precision(source, options),
                room=None,
                need={},
                streamed=not remote.why_not(source),
            )
            plans, kept = converted["plans"], converted.get("kept", 0)
            towers = mmproj.plan(source, options)
            notes = [converted["tokens"], converted["ends"], mmproj.note(source, options, towers)]
            beside, memory = towers.get("bytes", 0), CONVERTER_MEMORY + 8 * _largest_whole(source)
            whole = precision(source, options).upper()
            if options.gradients:
                memory = max(memory, backward.memory(source, options.sensitivity_samples))
        head, intermediate = gguf_head.read(header), 0 if source.gguf else header.stat().st_size
    gradients, refused = dict[str, float](), ""
    if options.gradients:
        model = choosing.Model.of(head, plans, whole)
        kinds = choosing.measured(options, head, next(iter(model.stock.values())))
        gradients = timing.gradients(source, options, head, kinds)
    if options.size:
        items, plans, refused = _of_sizes(options, head, plans, whole)
    else:
        items = tuple(_item(planned, whole) for planned in plans)
    made = sum(item.bytes for item in items)
    known = sizes.plan(
        source,
        options,
        streaming.sizes_of(source, options),
        made=made,
        beside=beside,
        whole=intermediate,
        kept=kept,
        largest=max(one.bytes for one in head.tensors.values()),
    )
    way = streaming.choose(source, options, out, known)
    download, free = bytes_to_fetch(source), free_bytes(out)
    download *= streaming.downloads(source, options, way)
    needed = way.disk(known) - sizes.written(source, options, out)
    if not way.stream:
        needed += streaming.beside(out, download, known)
    notes += [streaming.note(source, options, way), streaming.unmeasured(source, options, way)]
    return Plan(
        method,
        source,
        items,
        intermediate,
        disk_needed=max(0, needed),
        disk_free=free,
        memory_needed=memory,
        memory_available=memory_available(),
        notes=tuple(filter(None, notes)),
        download=download,
        refused=refused or _refused(plans, needed - made, free, options),
        seconds=timing.seconds(download, options, plans, head, way) | gradients,
    )


def _of_sizes(
    options: GgufOptions, head: gguf_head.Head, stock: list[dict[str, Any]], whole: str
) -> tuple[tuple[PlanItem, ...], list[dict[str, Any]], str]:
    """The files of the asked sizes, at most as large as they will be, and those that they are
    compared with; the plans of the latter, and why a size cannot be reached.
    """
    model, refused = choosing.Model.of(head, stock, whole), ""
    weights = sum(one.elements for one in head.tensors.values())
    items, made, plans = [], [], list[dict[str, Any]]()
    for size in map(Size.parse, options.size):
        made.append(model.bytes(size))
        bits = 8 * (made[-1] - head.data_offset) / weights
        # about as long to make as the type that is nearest, and as large as asked
        near = model.stock[model.nearest(made[-1])]
        plans.append({**near, "type": f"size {size}", "bytes": made[-1], "needs_imatrix": False})
        items.append(PlanItem(f"size {size}", made[-1], bits, False, CHOSEN))
        try:
            model.refuse(size, made[-1], model.smallest(options))
        except InputError as error:
            refused = refused or str(error)
    compared = [model.stock[name] for name in model.compared(options, made) if name in model.stock]
    compared = [{**one, "needs_imatrix": False} for one in compared]  # there will be one
    return (*items, *(_item(one, whole) for one in compared)), [*plans, *compared], refused


def _refused(plans: list[dict[str, Any]], other: int, room: int, options: GgufOptions) -> str:
    """Why a run with these options would be refused, if it would."""
    try:
        refuse(plans, intermediate=0, other=other, room=room, imatrix=options.imatrix != "none")
    except InputError as error:
        return str(error)
    return ""


def _of_adapter(method: str, source: Source, options: GgufOptions, out: Path) -> Plan:
    """The adapter's own file."""
    item = adapter_only.plan(source, options)
    return Plan(
        method,
        source,
        (item,),
        0,
        disk_needed=item.bytes,
        disk_free=free_bytes(out),
        memory_needed=CONVERTER_MEMORY,
        memory_available=memory_available(),
        download=adapter_bytes(source),
    )


def _largest_whole(source: Source) -> int:
    """Weights of the largest tensor that is in memory whole: embeddings and output head are not,
    and of experts that the files hold one by one, one is.
    """
    layers = structure.structure(source).layers
    if not layers:
        return source.largest_tensor
    return max(math.prod(layer.shape) // len(layer.tensors) for layer in layers)


def _item(planned: dict[str, Any], whole: str) -> PlanItem:
    """One type of a plan; ``whole`` is the one that the converter writes."""
    if "impossible" in planned:
        return PlanItem(planned["type"], 0, 0.0, False, "", planned["impossible"])
    note, needs = fallback_note(planned), planned["needs_imatrix"]
    size = planned["converted_bytes" if planned["type"] == whole else "bytes"]
    return PlanItem(planned["type"], size, planned["bits_per_weight"], needs, note)
