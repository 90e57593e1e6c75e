"""A model that sees is shown a picture, made on the spot. Runs in workers."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

from autoquant.core.errors import CheckFailed

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
SIDE = 96  # pixels
QUESTION = "What is this?"
GENERATED = 4  # tokens

log = logging.getLogger(__name__)


def shown(model: Any, folder: str) -> str:
    """What a model makes of two pictures, in words; empty for one that has no eyes, or no files of
    an image processor. What the processor stumbles over is told, and fails nothing: no weight of
    ours is in it. Raises CheckFailed for logits that are not finite.
    """
    has_files = any((Path(folder) / name).is_file() for name in PROCESSORS)
    if not has_files or getattr(model.config, "vision_config", None) is None:
        return ""
    try:
        upright = _inputs(model, folder, upside_down=False)
        first = _logits(model, upright)
        second = _logits(model, _inputs(model, folder, upside_down=True))
        tokens = _generated(model, upright)
    except Exception as error:
        log.exception("no picture could be shown")
        said = str(error).strip().splitlines()
        return f"not tried: {type(error).__name__}: {said[0] if said else 'no reason given'}"[:200]
    if not (first.isfinite().all() and second.isfinite().all()):
        raise CheckFailed("with a picture the model's logits are not finite")
    differ = "the logits differ" if not first.equal(second) else "the logits are the same"
    return f"{tokens} tokens after a picture of {SIDE} × {SIDE} pixels; upside down {differ}"


def picture(*, upside_down: bool) -> Any:
    """Something to look at: red from the left to the right, green from top to bottom, a blue
    square.
    """
    import numpy as np
    from PIL import Image

    ramp = np.linspace(0, 255, SIDE, dtype=np.uint8)
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:, :, 0], pixels[:, :, 1] = ramp[None, :], ramp[:, None]
    pixels[SIDE // 8 : SIDE // 3, SIDE // 8 : SIDE // 3, 2] = 255
    return Image.fromarray(pixels[::-1].copy() if upside_down else pixels)


def _inputs(model: Any, folder: str, *, upside_down: bool) -> dict[str, Any]:
    """A picture, by the model's image processor, and tokens: as many image tokens as the tower
    makes of it, and some of text. Processors' own templates are left alone: what they write around
    a picture is no part of the weights.
    """
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer

    processor: Any = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    made = dict(processor(images=[picture(upside_down=upside_down)], return_tensors="pt"))
    taken = inspect.signature(model.get_image_features).parameters
    given = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in made.items()
        if name in taken and torch.is_tensor(value)
    }
    with torch.inference_mode():
        features = model.get_image_features(**given)
    features = getattr(features, "pooler_output", features)
    parts = features if isinstance(features, (list, tuple)) else [features]
    count = sum(one.numel() // one.shape[-1] for one in parts)
    config = model.config
    mark = getattr(config, "image_token_id", None) or config.image_token_index
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    question = tokenizer(QUESTION, add_special_tokens=False).input_ids
    ids = torch.tensor([[*question[:1], *[mark] * count, *question]], device=model.device)
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        given["mm_token_type_ids"] = (ids == mark).long()  # which of them are a picture's
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **given}


def _logits(model: Any, inputs: dict[str, Any]) -> Any:
    import torch

    with torch.inference_mode():
        return model(**inputs).logits[0, -1].float()


def _generated(model: Any, inputs: dict[str, Any]) -> int:
    import torch

    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        out = model.generate(**inputs, max_new_tokens=GENERATED, do_sample=False)
    return int(out.shape[1] - inputs["input_ids"].shape[1])
