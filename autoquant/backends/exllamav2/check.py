"""What is looked at on an EXL2 folder before it counts as done, and what the converter made of its
calibration. Runs in worker processes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from autoquant import calibration
from autoquant.backends.checks import generates, predicts
from autoquant.core.errors import CheckFailed
from autoquant.core.machine import memory_available
from autoquant.core.texts import Document
from autoquant.formats import dequantized
from autoquant.formats import exl2 as format
from autoquant.formats.checks import WORST, layer_errors, stored
from autoquant.formats.tensors import Part, Tensors
from autoquant.runtime.worker import Report

HEAD = "lm_head"
# bits per weight, between target and achieved, where the model has blocks enough to choose so
# finely
NEAR = 0.1


class Original(Tensors):
    """The unquantized model's tensors; of one that ties its output head to the embeddings, the head
    is those.
    """

    def get(self, name: str) -> Any:
        """One tensor."""
        tied = name == f"{HEAD}.weight" and name not in self
        return super().get("model.embed_tokens.weight" if tied else name)


def calibrate(
    folder: str, texts: list[Document], samples: int, length: int, seed: int, target: str
) -> dict[str, Any]:
    """Write the samples that every other method gets as a parquet file, which is what exllamav2
    takes: one sample a row, as text. Needs fastparquet.

    It tokenizes the rows again and joins them, and text does not always give the same number of
    tokens again: some more rows follow, which it reads if it falls short.
    """
    import fastparquet
    import pandas
    from transformers import AutoTokenizer

    ids = calibration.pack(folder, texts, samples=samples, length=length, seed=seed)
    spare = calibration.pack(
        folder, texts, samples=max(2, samples // 8), length=length, seed=seed + 1
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer.decode(one, skip_special_tokens=True) for one in [*ids, *spare]]
    tokens = sum(len(tokenizer.encode(row, add_special_tokens=False)) for row in rows)
    if tokens < len(ids) * length:
        raise CheckFailed(
            f"the tokenizer makes {tokens} tokens of a text of {(len(ids) + len(spare)) * length}:"
            " it does not round-trip, so exllamav2 cannot be calibrated on such samples; take its"
            " own text (calibration='exllamav2')"
        )
    fastparquet.write(target, pandas.DataFrame({"text": rows}))
    return {"samples": len(ids)}


def used(job: Path) -> str:
    """The sha256 of the samples that the converter really used, from its folder."""
    from safetensors.numpy import load_file

    return calibration.digest(load_file(job / "cal_data.safetensors")["input_ids"].tolist())


def verify(
    folder: str,
    source: str,
    layers: dict[str, list[int]],
    *,
    target: float,
    near: float,
    head_bits: int,
    parameters: int,
    report: Report,
) -> dict[str, Any]:
    """Check an EXL2 folder against its source: config, every layer's error, finite values, bits a
    weight within ``near`` of the target, a generation.

    ``layers`` are the blocks' matrices, name -> [outputs, inputs]. Returns ``checks``, ``files``
    ([name, bytes, sha256], config.json first), ``bits_per_weight`` (all tensors over
    ``parameters``) and ``achieved`` (the blocks' matrices, what the target is about). Raises
    CheckFailed naming the layer.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    block = config.get("quantization_config") or {}
    asked = {"quant_method": "exl2", "bits": target, "head_bits": head_bits}
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
    lost = [
        name
        for name in [*layers, HEAD]
        for part in format.parts_of(name)
        if f"{part}.q_weight" not in quantized and f"{name}.q_weight" not in quantized
    ]
    if lost:
        raise CheckFailed(
            f"{len(lost)} of {len(layers) + 1} layers are not there: {', '.join(lost[:WORST])}"
        )
    outputs = {name: shape[0] for name, shape in layers.items()} | {
        HEAD: len(original.get(f"{HEAD}.weight"))
    }
    tensors = {name: Part(name, f"{name}.weight", (0, 0)) for name in [*layers, HEAD]}
    errors = layer_errors(
        tensors, original, lambda name: format.layer(quantized, name, outputs[name]), report
    )
    worst = sorted(errors, key=lambda name: -errors[name])[:WORST]
    broken = [name for name in quantized.plain() if not np.isfinite(quantized.get(name)).all()]
    if broken:
        raise CheckFailed(f"{broken[0]} has NaN or Inf values")
    bits = {
        name: layer_bits(quantized, name, shape[0] * shape[1]) for name, shape in layers.items()
    }
    weights = {name: shape[0] * shape[1] for name, shape in layers.items()}
    achieved = sum(bits[name] * weights[name] for name in layers) / sum(weights.values())
    if abs(achieved - target) > near:
        raise CheckFailed(f"the blocks have {achieved:.2f} bits per weight, asked for {target:.2f}")
    head = layer_bits(quantized, HEAD, original.get(f"{HEAD}.weight").size)
    most, fewest = max(bits, key=lambda name: bits[name]), min(bits, key=lambda name: bits[name])
    needed = 4 * parameters + (2 << 30)
    if needed > memory_available():
        said = predicts(folder, source, dequantized.READ_BACK, needed)
    else:
        said = generates(dequantized.load(folder), folder, source, dequantized.READ_BACK)
    report(1, 1)
    return {
        "bits_per_weight": 8 * quantized.bytes() / parameters,
        "achieved": achieved,
        "files": stored(Path(folder)),
        "checks": [
            [
                "layers",
                f"{len(layers)} and the head read back, all values finite; relative error"
                f" {np.mean(list(errors.values())):.3f} on average, worst "
                + ", ".join(f"{name} {errors[name]:.3f}" for name in worst),
            ],
            [
                "bits per weight",
                (
                    f"target {target:.2f}, achieved {achieved:.3f} (head {head:.2f}); from"
                    f" {bits[fewest]:.2f} in {fewest} to {bits[most]:.2f} in {most}"
                ),
            ],
            ["config", ", ".join(f"{name} {value}" for name, value in asked.items())],
            ["generates", said],
        ],
    }


def layer_bits(tensors: Tensors, name: str, weights: int) -> float:
    """Bits per weight of one layer, with scales, group table and permutation."""
    return (
        sum(
            8 * tensors.size(f"{one}.{part}")
            for one in format.parts_of(name)
            for part in format.PARTS
        )
        / weights
    )
