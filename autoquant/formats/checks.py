"""What is looked at on a quantized folder before it counts as done. Runs in a worker process."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from autoquant.core.errors import CheckFailed
from autoquant.core.files import sha256_of
from autoquant.core.machine import memory_available, nvidia_gpu
from autoquant.formats import dequantized, seeing
from autoquant.formats.architecture import class_of, config_of
from autoquant.formats.checkpoint import listed
from autoquant.formats.tensors import Floats, Part, Tensors
from autoquant.runtime.worker import Report

PROMPT = "Once upon a time, there was a"
GENERATED = 12  # tokens
WORST = 3  # layers named
# at 2 bits GPTQ moves weights by more than their own size to keep a layer's outputs (1.09 in one
# layer of SmolLM2-135M)
LOW_BITS = 2.0
# alternations; the error changes by less than 1e-4 after the third (measured on the bundled model)
FITS = 4


def relative_error(before: Floats, after: Floats, *, scaled: bool) -> float:
    """‖W − W'‖ / ‖W‖ (Frobenius) of a layer's weight [out, in] before and after quantization.

    AWQ multiplies a layer's inputs by scales which it divides its neighbours' outputs by, so its
    weights are near diag(r) W diag(c): with ``scaled`` these r [out] and c [in] are fitted first
    (alternating least squares) and the error is ‖W' − diag(r) W diag(c)‖ / ‖W'‖.
    """
    if not scaled:
        return float(np.linalg.norm(before - after) / max(float(np.linalg.norm(before)), 1e-12))
    product, square = before * after, before * before
    rows = np.ones(len(before), dtype=np.float32)
    for _ in range(FITS):
        columns = (rows @ product) / np.maximum((rows * rows) @ square, 1e-20)
        rows = (product @ columns) / np.maximum(square @ (columns * columns), 1e-20)
    return float(
        np.linalg.norm(after - rows[:, None] * before * columns)
        / max(float(np.linalg.norm(after)), 1e-12)
    )


def layer_errors(
    layers: dict[str, Part],
    original: Tensors,
    read: Callable[[str], Floats],
    report: Report,
    *,
    scaled: bool = False,
    limit: float = 1.0,
) -> dict[str, float]:
    """The :func:`relative_error` of each layer; ``layers`` gives each one's part of the source.
    Raises CheckFailed for another shape, values that
    are not finite, and an error of ``limit`` or more.
    """

    def error_of(name: str) -> float:
        before, after = original.part(layers[name]), read(name)
        if after.shape != before.shape:
            raise CheckFailed(
                f"{name} has shape {after.shape} after dequantizing, the source {before.shape}"
            )
        if not np.isfinite(after).all():
            raise CheckFailed(f"{name} has NaN or Inf values after dequantizing")
        error = relative_error(before, after, scaled=scaled)
        if not error < limit:  # NaN too: of weights that were not finite before
            raise CheckFailed(f"{name} is off by {error:.0%} of its own size after dequantizing")
        return error

    errors: dict[str, float] = {}
    # NumPy works outside the interpreter's lock; more at once would only take more memory
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name, error in zip(layers, pool.map(error_of, layers), strict=True):
            errors[name] = error
            report(len(errors), len(layers) + 1)
    return errors


def warnings(errors: dict[str, float], advice: str) -> list[str]:
    """What the user should know of layers whose weights moved by more than their own size: a line
    for the card that ends with the ``advice``, or nothing.
    """
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] < 1:
        return []
    return [
        f"{worst} is off by {errors[worst]:.0%} of its own size: at so few bits the model may be"
        f" useless; check the measured quality; {advice}"
    ]


def verify(
    folder: str,
    source: str,
    layers: dict[str, dict[str, Any]],
    *,
    wanted: dict[str, Any],
    scaled: bool,
    bits: int,
    advice: str,
    parameters: int,
    report: Report,
    read_back: bool = False,
) -> dict[str, Any]:
    """Check a quantized folder against its source: config, every layer's error, finite values, bits
    a weight, a generation by the library that loads such folders.

    ``layers`` gives each layer's Part of the source; ``wanted`` is what config.json's quantization
    block must say; ``read_back``: the library that loads such folders cannot load this one, so the
    model is made from what our reader reads; for the others see
    :class:`autoquant.methods.folder.Recipe`. Returns ``checks``, ``notes``, ``files`` ([name,
    bytes, sha256], config.json first) and ``bits_per_weight``. Raises CheckFailed naming the layer.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    block = config.get("quantization_config") or {}
    wrong = {name: block.get(name) for name, value in wanted.items() if block.get(name) != value}
    if wrong:
        raise CheckFailed(
            f"config.json: quantization_config has {wrong}, asked for"
            f" { ({name: wanted[name] for name in wrong}) }"
        )
    original, quantized = Tensors(source), Tensors(folder)
    format = dequantized.format_of(block)
    if not format.known(block):
        raise CheckFailed(
            "config.json: quantization_config is of a kind that was not asked for:"
            f" {json.dumps(block)[:300]}"
        )
    present = format.layers(quantized)
    lost = [name for name in layers if name not in present]
    if lost:
        raise CheckFailed(
            f"{len(lost)} of {len(layers)} layers are not quantized: {', '.join(lost[:WORST])}"
        )
    errors = layer_errors(
        {name: Part.from_json(part) for name, part in layers.items()},
        original,
        lambda name: format.weight(quantized, name, block),
        report,
        scaled=scaled,
        limit=1.0 if bits > 3 else LOW_BITS,
    )
    worst = sorted(errors, key=lambda name: -errors[name])[:WORST]
    broken = [name for name in quantized.plain() if not np.isfinite(quantized.get(name)).all()]
    if broken:
        raise CheckFailed(f"{broken[0]} has NaN or Inf values")
    size, notes = quantized.bytes(), warnings(errors, advice)
    loader = dequantized.load if read_back else format.loader
    engine = dequantized.READ_BACK if read_back else format.engine
    # our reader makes float32 of it, compressed-tensors 16 bits
    width = 4 if read_back else 2 if block["quant_method"] == "compressed-tensors" else 0
    needed, seen = max(width * parameters, size) + (2 << 30), ""
    if (read_back or not nvidia_gpu()) and needed > memory_available():
        generated_by = (
            f"not tried: loading it with {engine} needs {needed / 1e9:.1f} GB,"
            f" {memory_available() / 1e9:.1f} GB are free"
        )
    else:
        try:
            loaded = loader(folder)
        except CheckFailed as failure:
            if loader is dequantized.load:
                raise
            loaded, engine = dequantized.load(folder), dequantized.READ_BACK
            notes.append(f"{failure}. It was read back, run and measured by AutoQuant's reader")
        generated_by = generates(loaded, folder, source, engine)
        seen = seeing.shown(loaded, folder)
    report(1, 1)
    return {
        "bits_per_weight": 8 * size / parameters,
        "notes": notes,
        "files": stored(Path(folder)),
        "checks": [
            [
                "layers",
                f"{len(layers)} dequantized and finite; relative error"
                f" {np.mean(list(errors.values())):.3f} on average, worst "
                + ", ".join(f"{name} {errors[name]:.3f}" for name in worst)
                + (" (AWQ's scales fitted)" if scaled else ""),
            ],
            ["config", ", ".join(f"{name} {value}" for name, value in wanted.items())],
            ["generates", generated_by],
            *([["sees", seen]] if seen else []),
        ],
    }


def stored(folder: Path) -> list[list[Any]]:
    """[name, bytes, sha256] of each file of a finished folder, config.json first."""
    paths = {name: folder / name for name in listed(folder)}
    return [[name, path.stat().st_size, sha256_of(path)] for name, path in paths.items()]


def generates(model: Any, folder: str, source: str, engine: str) -> str:
    """What a quantized model generates, in words. Raises CheckFailed if it is one token repeated,
    unless the ``source`` repeats that one too.
    """
    tokens = continuation(model, folder)
    if len(set(tokens)) > 1:
        return f"{len(tokens)} tokens with {engine}, {len(set(tokens))} different"
    config = config_of(source)
    whole = class_of(config).from_pretrained(source, config=config, dtype="auto")
    if continuation(whole, folder) != tokens:
        raise CheckFailed(
            f"the model generates nothing but token {tokens[0] if tokens else 'none'} after"
            f" {PROMPT!r}, which the unquantized model does not"
        )
    return f"{len(tokens)} times the same token with {engine}, as the unquantized model does"


def continuation(model: Any, folder: str) -> list[int]:
    """Token ids that a model generates greedily after PROMPT."""
    import torch
    from transformers import AutoTokenizer

    model.eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    # compiling GPTQModel's kernels takes up to half a minute and a C++ compiler; a dozen tokens do
    # without
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        out = model.generate(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            max_new_tokens=GENERATED,
            do_sample=False,
        )
    return [int(token) for token in out[0, tokens.input_ids.shape[1] :]]
