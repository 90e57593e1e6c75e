"""What is looked at on an EXL3 folder before it counts as done, and the samples that the converter
is given. Runs in worker processes.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from autoquant import calibration
from autoquant.backends.checks import generates, predicts
from autoquant.backends.exllamav2.check import HEAD, Original
from autoquant.core.errors import CheckFailed
from autoquant.core.machine import memory_available
from autoquant.core.texts import Document
from autoquant.formats import dequantized
from autoquant.formats import exl3 as format
from autoquant.formats.checks import WORST, layer_errors, stored
from autoquant.formats.exl2 import parts_of
from autoquant.formats.tensors import Part, Tensors
from autoquant.runtime.worker import Report

# bits per weight, between target and what the codes have, where the model has blocks enough to
# choose so finely
NEAR = 0.1


def calibrate(
    folder: str, texts: list[Document], samples: int, length: int, seed: int, target: str
) -> dict[str, Any]:
    """Write the very samples that every other method gets as a safetensors file of token ids, int64
    [samples, length], which is what exllamav3 takes. Returns how many and their sha256.
    """
    from safetensors.numpy import save_file

    ids = calibration.pack(folder, texts, samples=samples, length=length, seed=seed)
    save_file({"input_ids": np.array(ids, dtype=np.int64)}, target)
    return {"samples": len(ids), "sha256": calibration.digest(ids)}


def verify(
    folder: str,
    source: str,
    layers: dict[str, list[int]],
    *,
    target: float,
    near: float | None = None,
    head_bits: int,
    codebook: str,
    parameters: int,
    report: Report,
) -> dict[str, Any]:
    """Check an EXL3 folder against its source: config, every layer's error, finite values, bits per
    weight, a generation.

    ``layers`` are the blocks' matrices, name -> [outputs, inputs]; ``near`` is how far below the
    target their bits may be (left out: as far as the converter comes). Returns ``checks``,
    ``files`` ([name, bytes, sha256], config.json first), ``bits_per_weight`` (all tensors over
    ``parameters``), ``codes`` (bits of the codes of the blocks' matrices, what the target is
    about), ``achieved`` (with scales and padding) and ``layers`` (how many matrices have how many
    bits). Raises CheckFailed naming the layer.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    block = config.get("quantization_config") or {}
    asked = {"quant_method": "exl3", "head_bits": head_bits, "codebook": codebook}
    wrong = {name: block.get(name) for name, value in asked.items() if block.get(name) != value}
    if wrong:
        raise CheckFailed(
            f"config.json: quantization_config has {wrong}, asked for"
            f" { ({name: asked[name] for name in wrong}) }"
        )
    try:
        original, quantized = Original(source), Tensors(folder)
    except SafetensorError as error:
        raise CheckFailed(f"a file of weights is damaged or cut short: {error}") from None
    shapes = {name: (shape[0], shape[1]) for name, shape in layers.items()}
    if head_bits < 16:  # 16 is the unquantized head
        outputs, inputs = original.get(f"{HEAD}.weight").shape
        shapes[HEAD] = (outputs, inputs)
    lost = [
        name
        for name in shapes
        if f"{name}.trellis" not in quantized
        and not all(f"{part}.trellis" in quantized for part in parts_of(name))
    ]
    if lost:
        raise CheckFailed(
            f"{len(lost)} of {len(shapes)} layers are not there: {', '.join(lost[:WORST])}"
        )
    tensors = {name: Part(name, f"{name}.weight", (0, 0)) for name in shapes}
    errors = layer_errors(
        tensors,
        original,
        lambda name: format.layer(quantized, name, *shapes[name]),
        report,
    )
    worst = sorted(errors, key=lambda name: -errors[name])[:WORST]
    broken = [name for name in quantized.plain() if not np.isfinite(quantized.get(name)).all()]
    if broken:
        raise CheckFailed(f"{broken[0]} has NaN or Inf values")
    sizes = {name: shapes[name][0] * shapes[name][1] for name in layers}
    whole = sum(sizes.values())
    codes = {name: layer_codes(quantized, name) for name in shapes}
    padded = {name: codes[name][1] for name in layers}
    mean = sum(codes[name][0] for name in layers) / sum(padded.values())
    # it spends its budget on whole groups of layers, and leaves what is too little for the next
    if near is None:
        near = max(NEAR, 2 * max(padded.values()) / sum(padded.values()))
    if not target - near <= mean <= target + NEAR / 10:
        raise CheckFailed(f"the blocks have {mean:.2f} bits per weight, asked for {target:.2f}")
    bits = {name: codes[name][0] / codes[name][1] for name in layers}
    most, fewest = max(bits, key=lambda name: bits[name]), min(bits, key=lambda name: bits[name])
    held = sum(8 * quantized.size(one) for name in layers for one in format.stored(quantized, name))
    needed = 4 * parameters + (2 << 30)
    if needed > memory_available():
        said = predicts(folder, source, dequantized.READ_BACK, needed)
    else:
        said = generates(dequantized.load(folder), folder, source, dequantized.READ_BACK)
    report(1, 1)
    head = f"{codes[HEAD][0] / codes[HEAD][1]:.2f}" if HEAD in codes else "16, unquantized"
    return {
        "bits_per_weight": 8 * quantized.bytes() / parameters,
        "codes": mean,
        "achieved": held / whole,
        "layers": dict(sorted(Counter(f"{one:.2f}" for one in bits.values()).items())),
        "files": stored(Path(folder)),
        "checks": [
            [
                "layers",
                f"{len(layers)}{' and the head' if HEAD in shapes else ''} read back, all values"
                f" finite; relative error {np.mean(list(errors.values())):.3f} on average, worst "
                + ", ".join(f"{name} {errors[name]:.3f}" for name in worst),
            ],
            [
                "bits per weight",
                (
                    f"target {target:.2f}, achieved {mean:.3f}, with scales and padding"
                    f" {held / whole:.3f} (head {head}); from {bits[fewest]:.2f} in {fewest} to"
                    f" {bits[most]:.2f} in {most}"
                ),
            ],
            ["config", ", ".join(f"{name} {value}" for name, value in asked.items())],
            ["generates", said],
        ],
    }


def layer_codes(tensors: Tensors, name: str) -> tuple[int, int]:
    """Bits of a layer's codes, and how many weights they are for, padding included."""
    trellises = [one for one in format.stored(tensors, name) if one.endswith(".trellis")]
    shapes = [tensors.raw(one).shape for one in trellises]
    return (
        sum(16 * int(np.prod(shape)) for shape in shapes),
        sum(format.TILE**2 * shape[0] * shape[1] for shape in shapes),
    )
