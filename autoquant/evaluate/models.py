"""Models to be run block by block, opened by what they are: a folder, a GGUF file by its weights, a
source whose files are on the Hub. Runs in workers.

A model is told by a dictionary, for it goes through JSON: ``folder`` has config and headers,
``made`` says what is made of its tensors (see forward.weights.of_source). Of one whose weights
are on the Hub ``files`` has their headers, and ``coming`` is the folder where they come when asked
for (see hub.ranges). A GGUF file has ``gguf`` (its paths) beside those of the model
that it was made of, and ``converter``, ``taking`` and ``name`` (see backends.llamacpp.graphs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoquant.formats.architecture import config_of
from autoquant.formats.checkpoint import weight_files
from autoquant.formats.tensors import Read, Tensors
from autoquant.forward import weights
from autoquant.forward.blockwise import Blockwise
from autoquant.forward.places import Place
from autoquant.runtime.worker import Emit
from autoquant.source.headers import headers_of

_GRAPHS: dict[str, Any] = {}  # of the model that this worker's GGUF files were made of


def weights_of(what: Mapping[str, Any], threads: int, emit: Emit | None = None) -> weights.Weights:
    """The weights of a model; ``emit`` asks for those that are on the Hub."""
    folder = str(what["folder"])
    made = what.get("made")
    source: weights.Weights
    if what.get("coming"):
        from autoquant.hub.ranges import Asked, spans_of

        assert emit is not None
        files = Path(what["files"])
        names = [path.name for path in weight_files(files)]
        asked = Asked(spans_of(files, names), what["coming"], emit)
        read = Read(headers_of(files, names), asked.read, asked.expect, asked.part)
        source = weights.of_source(folder, made, read)
    elif made:
        source = weights.of_source(folder, made, Tensors(made["files"]))
    else:
        source = weights.of_folder(folder)
    if not what.get("gguf"):
        return source
    from autoquant.backends.llamacpp import graphs
    from autoquant.backends.llamacpp.weights import File, GgufWeights

    if folder not in _GRAPHS:
        _GRAPHS[folder] = graphs.of_model(folder, what["converter"], what["taking"], what["name"])
    return GgufWeights(File(what["gguf"], threads), _GRAPHS[folder], source)


def opened(
    what: Mapping[str, Any],
    where: Place,
    *,
    threads: int,
    emit: Emit | None = None,
    done: Callable[[], None] | None = None,
    **more: Any,
) -> Blockwise:
    """A model, ready to be run; ``done`` is called after each block, ``emit`` asks for weights that
    are on the Hub.
    """
    import torch

    torch.set_num_threads(threads)
    config = config_of(str(what["folder"]))
    found = weights_of(what, threads, emit)
    return Blockwise(config, found, device=where.device, done=done, **{**where.how, **more})
