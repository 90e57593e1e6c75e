"""A whole model whose weights are mapped from its files: they are read when they are used, and the
system takes the memory back when it needs it. Runs in workers.
"""

from __future__ import annotations

from typing import Any

from autoquant.formats.architecture import config_of
from autoquant.forward.blockwise import built
from autoquant.forward.parameters import Parameters
from autoquant.forward.weights import of_folder


def mapped(folder: str, dtype: Any) -> Any:
    """The model of a folder of safetensors in a ``dtype``: what is stored so and needs no transform
    is not copied; the rest takes memory.
    """
    import torch

    config = config_of(folder)
    model = built(config, dtype)
    parameters = Parameters(config, of_folder(folder))
    for name, tensor in list(model.state_dict(keep_vars=True).items()):
        if parameters.origin(name) != name or name not in parameters:
            continue
        path, _, leaf = name.rpartition(".")
        owner, value = model.get_submodule(path), parameters.value(name)
        value = value.to(dtype if value.is_floating_point() else value.dtype)
        if leaf in owner._buffers:
            owner._buffers[leaf] = value.to(tensor.dtype)
        else:
            owner._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)
    model.tie_weights()
    return model
