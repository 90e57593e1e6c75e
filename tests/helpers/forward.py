"""Models run block by block beside transformers' whole ones. Runs in workers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

SAMPLES, LENGTH, KEPT = 5, 40, 21


def _ids(config: Any, samples: int = SAMPLES, length: int = LENGTH) -> Any:
    import torch

    vocabulary = config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, min(vocabulary, 2000), (samples, length), generator=generator)


def _whole(folder: str) -> Any:
    import torch

    from autoquant.formats.architecture import class_of, config_of

    config = config_of(folder)
    config._experts_implementation = "eager"
    kind = class_of(config)
    return kind.from_pretrained(folder, config=config, dtype=torch.float32).eval()


def _far(one: Any, other: Any) -> float:
    return float((one - other).norm() / other.norm().clamp(min=1e-20))


def logits(folder: str, name: str = "", samples: int = SAMPLES, **how: Any) -> dict[str, Any]:
    """How far the logits are from the whole model's, relative, with the head in pieces; and which
    parameters have weights when it is done. ``name``: first make this architecture there.
    """
    import torch

    from autoquant.formats.architecture import config_of
    from autoquant.forward import head
    from autoquant.forward.blockwise import Blockwise
    from autoquant.forward.weights import of_folder

    if name:
        from bench.cases.architectures import make

        make(name, folder)
    config = config_of(folder)
    model = Blockwise(config, of_folder(folder), **how)
    ids = _ids(config, samples)
    hidden = head.final(model, ids, KEPT)
    model.close()
    head.KEPT, head.PIECE = 0, 40_000  # in pieces
    found = head.Head(model).logits(hidden)
    with torch.no_grad():
        wanted = _whole(folder)(input_ids=ids, use_cache=False).logits[:, -KEPT:]
    inside = tuple(f"{unit}." for unit in model.units)
    held = [n for n, one in model.model.named_parameters() if not one.is_meta]
    return {
        "far": _far(found, wanted),
        "blocks": len(model.units),
        "held": [name for name in held if name.startswith(inside)],
    }


def gradients(folder: str, name: str) -> float:
    """How far squared gradients, sample by sample, are from the whole model's, at most."""
    import torch

    from autoquant.formats.architecture import config_of
    from autoquant.forward.blockwise import Blockwise
    from autoquant.forward.gradients import backward
    from autoquant.forward.weights import of_folder
    from bench.cases.architectures import make

    make(name, folder)
    config = config_of(folder)
    ids = _ids(config, 3, 24)
    labels = ids.flip(1)

    def loss(logits: Any, sample: int) -> Any:
        entropy = torch.nn.functional.cross_entropy
        return entropy(logits[0], labels[sample], reduction="sum")

    found: dict[str, Any] = {}

    def sink(block: str, _: int, gradients: Any) -> None:
        for own, value in gradients.items():
            key = f"{block}.{own}"
            found[key] = found.get(key, 0) + value.square()

    model = Blockwise(config, of_folder(folder))
    backward(model, ids, loss, sink)
    model.close()
    whole, wanted = _whole(folder), dict[str, Any]()
    for sample in range(len(ids)):
        whole.zero_grad()
        out = whole(input_ids=ids[sample : sample + 1], use_cache=False).logits
        loss(out, sample).backward()
        for key, one in whole.named_parameters():
            if key in found and one.grad is not None:
                wanted[key] = wanted.get(key, 0) + one.grad.square()
    assert wanted.keys() == found.keys()
    return max(_far(found[key], wanted[key]) for key in wanted)


def unread(source: str) -> None:
    """Run a model of which one tensor is not read, by mistake."""
    from autoquant.formats.architecture import config_of
    from autoquant.forward import head
    from autoquant.forward.blockwise import Blockwise
    from autoquant.forward.weights import of_folder

    config, left = config_of(source), "model.layers.1.mlp.up_proj.weight"
    model = Blockwise(config, of_folder(source))
    own = model.names_of
    model.names_of = lambda *of: [one for one in own(*of) if one != left]  # type: ignore[method-assign]
    head.final(model, _ids(config), KEPT)


def spoiled(folder: str, names: list[str], source: str = "", **how: Any) -> dict[str, str]:
    """What is said of a model of which one tensor is missing, misshapen, or has one value that is
    not finite: by "way name". ``source`` is the model, or an architecture to be made.
    """
    from safetensors.torch import load_file, save_file

    from autoquant.core.errors import CheckFailed, InputError
    from autoquant.formats.architecture import config_of
    from autoquant.forward import blockwise, head
    from autoquant.forward.weights import of_folder
    from bench.cases.architectures import make

    if Path(source).is_dir():
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".autoquant"))
    else:
        make(source, folder)
    path = Path(folder) / "model.safetensors"
    whole = load_file(path)
    blockwise.EMBEDDING = how.pop("embedding", blockwise.EMBEDDING)
    head.KEPT, head.PIECE = 0, 40_000  # in pieces
    said = {}
    for name in names:
        for way in ("missing", "misshapen", "not finite"):
            tensors = dict(whole)
            if way == "missing":
                del tensors[name]
            elif way == "misshapen":
                tensors[name] = tensors[name][:-1].contiguous()
            elif whole[name].is_floating_point() and whole[name].element_size() > 1:
                tensors[name] = tensors[name].clone()
                tensors[name].view(-1)[-1] = float("nan")
            else:  # codes: all are numbers
                continue
            save_file(tensors, path, metadata={"format": "pt"})
            try:
                config = config_of(folder)
                model = blockwise.Blockwise(config, of_folder(folder), **how)
                ids = _ids(config)
                ids[0, -1] = config.get_text_config().vocab_size - 1
                head.Head(model).logits(head.final(model, ids, KEPT))
                said[f"{way} {name}"] = ""
            except (CheckFailed, InputError) as refused:
                said[f"{way} {name}"] = str(refused)
    return said


def with_one(folder: str, name: str, to: str) -> None:
    """Give a tensor one value that is NaN, or all of them values that are as large as can be."""
    import torch
    from safetensors.torch import load_file, save_file

    path = Path(folder) / "model.safetensors"
    tensors = load_file(path)
    if to == "large":
        tensors[name] = torch.full_like(tensors[name].float(), 1e38)
    else:
        tensors[name].view(-1)[-1] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def muted(source: str, folder: str) -> None:
    """A copy of a model whose hidden states end as zeros."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    path = Path(folder) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"].zero_()
    save_file(tensors, path, metadata={"format": "pt"})


def verified(free: int, report: Any, **arguments: Any) -> Any:
    """The checks of a finished folder (backends.checks.verify) with so much memory free."""
    import sys

    from autoquant.backends import checks

    for module in list(sys.modules.values()):  # whoever asks
        if hasattr(module, "memory_available"):
            module.memory_available = lambda: free
    return checks.verify(**arguments, report=report)


def mapped(folder: str, name: str) -> dict[str, Any]:
    """A mapped model beside the one that transformers loads: logits, and names of parameters."""
    import torch

    from autoquant.forward.mapped import mapped
    from bench.cases.architectures import make

    shutil.rmtree(folder, ignore_errors=True)
    make(name, folder)
    model, whole = mapped(folder, torch.float32), _whole(folder)
    ids = _ids(model.config)
    with torch.no_grad():
        logits = [one(input_ids=ids, use_cache=False).logits for one in (model, whole)]
    return {
        "far": _far(*logits),
        "parameters": sorted(n for n, one in model.named_parameters() if not one.is_meta),
        "wanted": sorted(n for n, _ in whole.named_parameters()),
    }
