"""A look inside one quantized layer, for people who want to see what quantizing does to weights."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from autoquant.core import options
from autoquant.core.cache import new_log
from autoquant.core.errors import InputError
from autoquant.core.language import say
from autoquant.core.records import Artifact, RunRecord
from autoquant.display import html
from autoquant.display.colors import BLUE, ORANGE
from autoquant.display.plot import FONT, SMALL
from autoquant.methods import METHODS
from autoquant.runtime import process

# weights of one row that are drawn one by one: a block of llama.cpp's simple types, or a quarter of
# the usual group
SHOWN = 32
BINS = 160
# llama.cpp stores their rows in another order, for its rotary embeddings
PERMUTED = ("q_proj", "k_proj")


@dataclass(frozen=True, repr=False)
class Look:
    """One layer before and after.

    ``shape`` is [outputs, inputs]; ``relative_error`` is ‖W − W'‖ / ‖W‖ (of AWQ's algorithm with
    its scales fitted, see folder_checks.relative_error); ``edges`` are the bounds of the
    histogram's bins, ``before`` and ``after`` the weights in each, ``errors`` those of W' − W (over
    the same width of bins); ``row_before`` and ``row_after`` are the first weights of one row;
    ``levels`` is how many different values that row has afterwards; ``stored`` is the layer's own
    type, where a file mixes several.
    """

    model: str
    type: str
    layer: str
    shape: tuple[int, int]
    relative_error: float
    largest_error: float
    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    error_edges: tuple[float, ...]
    errors: tuple[int, ...]
    row_before: tuple[float, ...]
    row_after: tuple[float, ...]
    levels: int
    stored: str

    def __str__(self) -> str:
        return say(
            "{model}, {layer} {shape} as {type}: relative error {relative}, largest error of a"
            " weight {largest}; quantized, the {count} weights of its first row take {levels}"
            " different values",
            model=self.model,
            layer=self.layer,
            shape=list(self.shape),
            type=self._type(),
            relative=f"{self.relative_error:.4f}",
            largest=f"{self.largest_error:.4g}",
            count=self.shape[1],
            levels=self.levels,
        )

    def _type(self) -> str:
        if self.stored in ("", self.type):
            return self.type
        return f"{self.type} ({say('stored as {type}', type=self.stored)})"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<div>{html.picture(self.png(), str(self))}<p>{escape(str(self))}</p></div>"

    def png(self) -> bytes:
        """The pictures: histogram before and after, a stretch of a row, histogram of the errors."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 5.4), layout="constrained", dpi=160)
        FigureCanvasAgg(figure)
        parts: Any = figure.subfigures(2, 1)
        upper, lower = parts
        left, right = upper.subplots(1, 2)
        middle = lower.subplots()
        left.stairs(self.after, self.edges, fill=True, color=BLUE, label=say("after"))
        left.stairs(self.before, self.edges, color=ORANGE, linewidth=1.5, label=say("before"))
        left.set_yscale("log")
        many = say("how many")
        left.set(title=say("all weights of the layer"), xlabel=say("weight"), ylabel=many)
        left.legend(fontsize=SMALL)
        middle.plot(self.row_before, "o", color=ORANGE, markersize=4, label=say("before"))
        middle.step(
            range(len(self.row_after)),
            self.row_after,
            where="mid",
            color=BLUE,
            linewidth=1,
            label=say("after"),
        )
        middle.set(
            title=say("the first {count} weights of a row", count=len(self.row_before)),
            xlabel=say("input"),
            ylabel=say("weight"),
        )
        middle.legend(fontsize=SMALL)
        right.stairs(self.errors, self.error_edges, fill=True, color=ORANGE)
        right.set(
            title=say("errors (relative: {error})", error=f"{self.relative_error:.3f}"),
            xlabel=say("after − before"),
            ylabel=many,
        )
        right.locator_params(axis="x", nbins=5)
        for axis in (left, middle, right):
            axis.title.set_fontsize(FONT)
            axis.xaxis.label.set_fontsize(FONT)
            axis.yaxis.label.set_fontsize(FONT)
            axis.tick_params(labelsize=SMALL)
        figure.suptitle(f"{self.layer}, {self._type()}", fontsize=FONT)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
        return drawn.getvalue()


def look(result: RunRecord, artifact: Artifact, layer: str = "") -> Look:
    """See :meth:`autoquant.result.Result.look`."""
    method = METHODS[result.method]
    if result.adapter_alone:
        raise InputError("an adapter alone has no layers of its own to look into")
    if not result.source.at_hand or result.source.remote:
        raise InputError(
            f"the unquantized model is not available ({result.source.folder}); run the method again"
            " to fetch it"
        )
    if result.source.gguf:
        raise InputError(
            "a look inside a layer compares with a checkpoint's own layers, and the source of this"
            " run is a GGUF file"
        )
    parts = method.parts(result.source)
    if not parts:
        raise InputError(f"{result.source.id} has no layers that are known by name")
    names = [name for name in parts if artifact.is_folder or not name.endswith(PERMUTED)]
    wanted = layer.removesuffix(".weight") or next(
        (name for name in names[len(names) // 2 :] if name.endswith("up_proj")),
        names[len(names) // 2],
    )
    if wanted not in names:
        reason = (
            "llama.cpp stores its rows in another order"
            if wanted in parts
            else "there is no such layer"
        )
        raise InputError(f"layer: {layer}: {reason}. Layers: {', '.join(names[:8])} …")
    numbers = process.call(
        "autoquant.look:read",
        log=new_log("look"),
        env=method.environment(options.build(method.Options, {})),
        path=str(artifact.path_in(result.folder)),
        original=str(result.source.folder),
        layer=wanted,
        part=dataclasses.asdict(parts[wanted]),
        scaled=bool(artifact.facts.get("scaled")),
    )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in numbers.items()
    }
    return Look(model=result.source.id, type=artifact.type, layer=wanted, **values)


def read(
    path: str, original: str, layer: str, part: dict[str, Any], scaled: bool
) -> dict[str, Any]:
    """Read a layer before and after, and count. Runs in a worker."""
    import numpy as np

    from autoquant.formats import gptq
    from autoquant.formats.checkpoint import quantization
    from autoquant.formats.checks import relative_error
    from autoquant.formats.dequantized import weight
    from autoquant.formats.tensors import Part, Tensors

    before = Tensors(original).part(Part.from_json(part)).astype(np.float32)
    if Path(path).is_dir():
        block = quantization(path)
        after, stored = weight(Tensors(path), layer, block), ""
        if block.get("quant_method") == "gptq" and gptq.mixed(block):
            stored = str(gptq.kind(block, layer))
    else:
        after, stored = _gguf(path, layer)
    after = after[: before.shape[0], : before.shape[1]]  # EXL2 pads outputs, EXL3 inputs too
    limit = float(max(abs(before).max(), abs(after).max())) or 1.0
    edges = np.linspace(-limit, limit, BINS + 1)
    difference = after - before
    far = float(abs(difference).max()) or 1e-9
    error_edges = np.linspace(-far, far, BINS + 1)
    return {
        "shape": list(before.shape),
        "relative_error": relative_error(before, after, scaled=scaled),
        "largest_error": float(abs(difference).max()),
        "edges": edges.tolist(),
        "before": np.histogram(before, edges)[0].tolist(),
        "after": np.histogram(after, edges)[0].tolist(),
        "error_edges": error_edges.tolist(),
        "errors": np.histogram(difference, error_edges)[0].tolist(),
        "row_before": before[0, :SHOWN].tolist(),
        "row_after": after[0, :SHOWN].tolist(),
        "levels": len(np.unique(after[0])),
        "stored": stored,
    }


def _gguf(path: str, layer: str) -> tuple[Any, str]:
    """A layer of a GGUF file, dequantized, and the type it has there."""
    import gguf
    import numpy as np

    from autoquant.formats.gguf import Header

    files = [Path(path)]
    if "-00001-of-" in path:
        files = sorted(Path(path).parent.glob(Path(path).name.replace("-00001-of-", "-*-of-")))
    headers = [Header(one) for one in files]
    kind = headers[0].get("general.architecture")
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    name = gguf.get_tensor_name_map(
        architecture, int(headers[0].get(f"{kind}.block_count", "u32"))
    ).get_name(f"{layer}.weight", try_suffixes=(".weight",))
    for header in headers:
        tensor = header.tensors.get(str(name))
        if tensor is not None:
            try:
                return (
                    header.values(tensor, np.arange(tensor.elements // tensor.shape[0])),
                    tensor.type,
                )
            except NotImplementedError:
                raise InputError(
                    f"type: {tensor.type}, which {layer} has in {Path(path).name}, cannot be read"
                    " back here; take another type"
                ) from None
    raise InputError(
        f"layer: {layer} is not in {Path(path).name} under a name that llama.cpp's converter knows"
    )
