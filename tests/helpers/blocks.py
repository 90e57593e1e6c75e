"""Blocks of a model that are called by themselves."""

from __future__ import annotations

from typing import Any


def called_like_the_first(folder: str) -> dict[str, list[float]]:
    """How far each block's outputs are from those within the model if it is called with the
    arguments of the first one: ``as given``, and after block_arguments.keep, ``own``.
    """
    import torch

    from autoquant.backends import block_arguments
    from autoquant.formats.architecture import class_of, config_of

    model: Any = class_of(config_of(folder)).from_pretrained(folder, dtype=torch.float32)
    text = model.model
    blocks = list(getattr(text, "language_model", text).layers)
    tokens = torch.randint(3, 1500, (3, 64), generator=torch.Generator().manual_seed(0))
    seen: list[tuple[Any, dict[str, Any], Any]] = []
    hooks = [
        block.register_forward_hook(
            lambda _, args, named, out: seen.append((args[0], named, out)), with_kwargs=True
        )
        for block in blocks
    ]
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    first = dict(seen[0][1])

    def far() -> list[float]:
        return [
            float((block(hidden, **first) - out).abs().max())
            for block, (hidden, _, out) in zip(blocks, seen, strict=True)
        ]

    with torch.no_grad():
        given = far()
        first["attention_mask"] = torch.ones(3, 64, dtype=torch.long)  # of another kind
        block_arguments.keep(model, blocks, tokens[:1])
        return {"as given": given, "own": far()}
