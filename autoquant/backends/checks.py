"""What is looked at on a quantized folder before it counts as done. Runs in a worker process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autoquant.backends.prompt import GENERATED, PROMPT, in_words
from autoquant.core.errors import CheckFailed
from autoquant.core.machine import memory_available
from autoquant.formats import dequantized, seeing
from autoquant.formats.architecture import class_of, config_of
from autoquant.formats.checks import LOW_BITS, WORST, layer_errors, stored, warnings
from autoquant.formats.loaders import takes_gpu
from autoquant.formats.tensors import Part, Tensors
from autoquant.forward.blockwise import Blockwise, block_sizes
from autoquant.forward.head import Head, final
from autoquant.forward.places import BESIDE, Place, anywhere, attempt
from autoquant.forward.weights import of_folder
from autoquant.runtime.worker import Report


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
    failed: str = "",
) -> dict[str, Any]:
    """Check a quantized folder against its source: config, every layer's error, finite values, bits
    a weight, a generation by the library that loads such folders.

    ``layers`` gives each layer's Part of the source; ``wanted`` is what config.json's quantization
    block must say; ``read_back``: the library that loads such folders cannot load this one, so the
    model is made from what our reader reads; ``failed`` says how an
    earlier check ran out of memory: the model is run block by block then, as it is where there is
    no room for all of it, or memory runs out here. For the others see
    :class:`autoquant.methods.folder.Recipe`. Returns ``checks``, ``notes``, ``files`` ([name,
    bytes, sha256], config.json first) and ``bits_per_weight``. Raises CheckFailed naming the layer.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    block = config.get("quantization_config") or {}
    wrong = {name: block.get(name) for name in wanted if not _says(block, name, wanted[name])}
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
    loader, engine = dequantized.loading(block)
    if read_back:
        loader, engine = dequantized.load, dequantized.READ_BACK
    # our reader makes float32 of it, compressed-tensors 16 bits
    width = 4 if read_back else 2 if block["quant_method"] == "compressed-tensors" else 0
    needed, answers = max(width * parameters, size) + BESIDE, None
    if not failed and needed <= _room(loader):
        read = 4 * parameters + BESIDE
        answers, failed = attempt(lambda: _answers(folder, source, loader, engine, read))
    if answers is None:
        answers = predicts(folder, source, engine, needed, _room(loader), failed), "", []
    generated_by, seen, more = answers
    notes += more
    report(1, 1)
    return {
        "bits_per_weight": 8 * size / parameters,
        "notes": notes,
        "files": stored(Path(folder)),
        "checks": [
            [
                "layers",
                f"{len(layers)} read back, all values finite; relative error"
                f" {np.mean(list(errors.values())):.3f} on average, worst "
                + ", ".join(f"{name} {errors[name]:.3f}" for name in worst)
                + (" (AWQ's scales fitted)" if scaled else ""),
            ],
            ["config", ", ".join(_settings(wanted))],
            ["generates", generated_by],
            *([["sees", seen]] if seen else []),
        ],
    }


def _settings(block: Mapping[str, Any]) -> Iterator[str]:
    """What a block of config.json says, one by one, without what it leaves out."""
    for name, value in block.items():
        if name == "dynamic":
            yield f"{name}: {len(value)} patterns, which every layer's codes agree with"
        elif isinstance(value, Mapping):
            yield from _settings(value)
        elif value is not None:
            yield f"{name} {value}"


def _says(block: dict[str, Any], name: str, value: Any) -> bool:
    """Whether a block has a value; of one with names of its own these may stand among others."""
    found = block.get(name)
    if isinstance(value, dict) and isinstance(found, dict):
        return value.items() <= found.items()
    return bool(found == value)


def _room(loader: Any) -> int:
    """Bytes that are free where a loader puts a model: on the GPU, or in memory."""
    import torch

    if takes_gpu(loader) and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return memory_available()


def _answers(
    folder: str, source: str, loader: Any, engine: str, read: int
) -> tuple[str, str, list[str]]:
    """What a whole model generates, what it sees, and notes. One that the library does not load is
    loaded by our reader, which needs as many bytes as ``read``.
    """
    notes = []
    try:
        model = loader(folder)
    except CheckFailed as failure:
        if loader is dequantized.load:
            raise
        notes.append(f"{failure}. It was read back, run and measured by AutoQuant's reader")
    if notes:
        engine, free = dequantized.READ_BACK, memory_available()
        if read > free:
            return predicts(folder, source, engine, read, free), "", notes
        model = dequantized.load(folder)
    return generates(model, folder, source, engine), seeing.shown(model, folder), notes


def generates(model: Any, folder: str, source: str, engine: str) -> str:
    """What a quantized model generates, in words. Raises CheckFailed if it is one token repeated,
    unless the ``source`` repeats that one too.
    """
    tokens = continuation(model, folder)
    if len(set(tokens)) > 1:
        count = f"{len(tokens)} tokens with {engine}, {len(set(tokens))} different"
        return f"{count}: {in_words(_tokenizer(folder).decode(tokens))}"
    if Tensors(source).bytes() + (1 << 30) > memory_available():
        repeats = len(set(_predictions(source, folder))) == 1
    else:
        config = config_of(source)
        whole = class_of(config).from_pretrained(source, config=config, dtype="auto")
        repeats = continuation(whole, folder) == tokens
    if not repeats:
        raise CheckFailed(
            f"the model generates nothing but token {tokens[0] if tokens else 'none'} after"
            f" {PROMPT!r}, which the unquantized model does not"
        )
    return f"{len(tokens)} times the same token with {engine}, as the unquantized model does"


def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def continuation(model: Any, folder: str) -> list[int]:
    """Token ids that a model generates greedily after PROMPT."""
    import torch

    model.eval()
    tokenizer = _tokenizer(folder)
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


def predicts(
    folder: str,
    source: str,
    engine: str,
    needed: int,
    free: int | None = None,
    failed: str = "",
) -> str:
    """What a quantized model that is too large to be loaded with the ``engine`` answers to PROMPT
    when our reader's weights are run block by block, in words. As many bytes as ``needed`` are not
    ``free`` (default: in memory), or it has ``failed`` for want of memory. Raises CheckFailed if it
    is one token everywhere, unless the ``source`` answers the same.
    """
    free = memory_available() if free is None else free
    tokens = _predictions(folder, folder)
    why = f"loading it with {engine} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    if failed:
        why = f"whole, with {engine}, it did not run: {failed}"
    said = (
        f"{len(tokens)} predictions, {len(set(tokens))} different, {dequantized.READ_BACK}, block"
        f" by block; {why}"
    )
    if len(set(tokens)) > 1 or _predictions(source, folder) == tokens:
        return said
    raise CheckFailed(
        f"the model predicts nothing but token {tokens[0]} after each token of {PROMPT!r}, which"
        " the unquantized model does not"
    )


def _predictions(folder: str, tokenizer: str) -> list[int]:
    """The likeliest token after each of PROMPT, block by block: on a GPU if a block has room there;
    expert by expert where memory has none for all of a block's.
    """
    ids = _tokenizer(tokenizer)(PROMPT, return_tensors="pt").input_ids
    config = config_of(folder)
    block, expert = block_sizes(config)

    def run(where: Place) -> list[int]:
        on_cpu = where.device == "cpu"
        single = on_cpu and expert < block and 4 * block + BESIDE > memory_available()
        how: dict[str, Any] = {"device": where.device, "ahead": False, "single": single}
        model = Blockwise(config_of(folder), of_folder(folder), **how)
        hidden = final(model, ids, ids.shape[1])
        model.close()
        return [int(token) for token in Head(model).logits(hidden)[0].argmax(1)]

    return anywhere(run, 4 * block + BESIDE)
