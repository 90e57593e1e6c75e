"""What llama.cpp's converter does to a checkpoint's tensors, kept as the graph of its lazy tensors:
to be run on other values, and backwards. Runs in workers.

Most of it moves values and changes none: it permutes rows, cuts and joins matrices, stacks experts.
Of such a function the transposed one is the inverse, which torch's autograd gives.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import hooks
from autoquant.backends.llamacpp.arriving import leaves_of
from autoquant.backends.llamacpp.pieces import staged
from autoquant.core.errors import ProcessFailed
from autoquant.formats.checkpoint import weight_files
from autoquant.runtime import trace


class Stop(Exception):
    """Raised inside the converter when its tensors are known."""


@dataclass
class Graph:
    """How one tensor of a GGUF file is made of the checkpoint's ``sources`` (names, in order)."""

    made: Any
    sources: dict[int, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The checkpoint's tensors."""
        return list(self.sources.values())

    def run(self, value: Callable[[str], Any]) -> Any:
        """The tensor, with ``value`` for those of the checkpoint."""
        done: dict[int, Any] = {}

        def of(one: Any) -> Any:
            if id(one) in done:
                return done[id(one)]
            found = None
            if one._data is not None:
                found = one._data
            elif len(one._args) == 1 and id(one._args[0]) in self.sources:
                found = value(self.sources[id(one._args[0])])
            else:
                arguments = type(one)._recurse_apply(one._args, of)
                found = one._func(*arguments, **one._kwargs)
            done[id(one)] = found
            return found

        return of(self.made)

    def backward(self, given: Any, shapes: Mapping[str, Any]) -> dict[str, Any]:
        """The transposed function of ``given``, shaped like the tensor: of each source a tensor."""
        import torch

        leaves = {
            name: torch.zeros(()).expand(tuple(shapes[name])).requires_grad_() for name in shapes
        }
        with torch.enable_grad():
            out = self.run(leaves.__getitem__)
            found = torch.autograd.grad(out, list(leaves.values()), given.reshape(out.shape))
        return dict(zip(leaves, found, strict=True))


def of_model(
    model: str, converter: str, taking: Mapping[str, Any], name: str
) -> tuple[dict[str, Graph], dict[str, tuple[int, ...]]]:
    """The graph of each tensor that the converter makes of the checkpoint in a folder, of which
    headers suffice (without sources where it is made of none), and the shapes of the checkpoint's
    tensors. Raises ProcessFailed for what the converter does not take.
    """
    sys.path.insert(0, converter)
    with trace.library("import the converter and torch"):
        import convert_hf_to_gguf as script
        from conversion import base
        from gguf.metadata import Metadata
        from gguf.utility import SafetensorsLocal

    hooks.read_everything(base, Metadata, hooks.Taking(**taking), name)
    made: dict[str, Any] = {}

    def write(self: Any) -> None:
        own = self.modify_tensors

        def modify_tensors(tensor: Any, name: str, block: Any) -> Any:
            for new_name, one in own(tensor, name, block):
                made[new_name] = one
                yield new_name, one

        self.modify_tensors = modify_tensors
        with trace.library("convert: prepare"):
            self.prepare_tensors()
        raise Stop

    before, base.ModelBase.write = base.ModelBase.write, write
    arguments, sys.argv = sys.argv, sys.argv
    with tempfile.TemporaryDirectory() as scratch:
        folder, _ = staged(model, Path(scratch))
        nowhere = ["--outfile", f"{scratch}/none", "--outtype", "f32", "--model-name", name]
        sys.argv = ["convert_hf_to_gguf.py", str(folder), *nowhere]
        try:
            script.main()
        except Stop:
            pass
        except (Exception, SystemExit) as error:
            logging.getLogger(__name__).exception("converter failed")
            raise ProcessFailed(f"llama.cpp's converter failed on {name}: {error}") from None
        finally:
            base.ModelBase.write, sys.argv = before, arguments
    names, shapes = {}, {}
    for path in weight_files(Path(model)):
        for source, leaf in SafetensorsLocal(path).tensors.items():
            shapes[source] = tuple(leaf.shape)
            if leaf.data_range.size:
                names[path.name, leaf.data_range.offset] = source
    graphs = {}
    for new_name, one in made.items():
        leaves = leaves_of(one)[::-1]  # found last first; experts are stacked in this order
        places = [(leaf.data_range.filename.name, leaf.data_range.offset) for leaf in leaves]
        known = all(place in names for place in places)
        pairs = zip(leaves, places, strict=True) if known else ()
        graphs[new_name] = Graph(one, {id(leaf): names[place] for leaf, place in pairs})
    return graphs, shapes
