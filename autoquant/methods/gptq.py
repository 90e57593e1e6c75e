"""GPTQ with GPTQModel: calibrated on samples of text, layer by layer, in a process of its own."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from pydantic import field_validator

from autoquant import calibration, process
from autoquant.calibration import CalibrationOptions
from autoquant.errors import InputError
from autoquant.evaluate import memory_available
from autoquant.hub.fetch import same_disk
from autoquant.journal import RunFolder, key_of
from autoquant.methods import Made, Method
from autoquant.options import option
from autoquant.plans import Plan, PlanItem
from autoquant.progress import Bar
from autoquant.results import Artifact, Check, Result, Stored
from autoquant.source import Snapshot, Source, bytes_to_fetch, shapes
from autoquant.worker import Report

log = logging.getLogger(__name__)
PACKAGE = "gptqmodel"
BITS, GROUP_SIZES = (2, 3, 4, 8), (-1, 32, 64, 128)
BASE_MEMORY = 700_000_000  # bytes: a process with torch, transformers and GPTQModel (measured on the embedded model: 0.63 GB)
LINEAR = re.compile(r"(^|\.)layers\.\d+\..*\.weight$")


class GptqOptions(CalibrationOptions):
    """The options of GPTQ. Names are GPTQModel's and AutoGPTQ's."""

    bits: int = option(4, "bits a weight: 2, 3, 4 or 8; 4 is the usual choice, and the only one most fast kernels know", metavar="2|3|4|8")
    group_size: int = option(128, "weights that share a scale: -1 (a whole row), 32, 64 or 128; must divide every layer's input width", metavar="-1|32|64|128")
    desc_act: bool = option(False, "quantize inputs in the order of their activations (act-order): a little better, slower to run in some runtimes")
    sym: bool = option(True, "symmetric: no zero points; off stores them, which is better at 2 and 3 bits but known to fewer runtimes")
    damp_percent: float = option(0.05, "how much the Hessian's diagonal is raised, as a share of its mean; more is steadier, less is closer", ge=0.001, le=0.5)
    batch_size: int = option(4, "samples at once through a layer; fewer take less memory", unit="samples", ge=1, le=256)

    @field_validator("bits")
    @classmethod
    def _bits(cls, value: int) -> int:
        if value not in BITS:
            raise ValueError(f"{value} is not allowed; allowed: {', '.join(map(str, BITS))}")
        return value

    @field_validator("group_size")
    @classmethod
    def _group(cls, value: int) -> int:
        if value not in GROUP_SIZES:
            raise ValueError(f"{value} is not allowed; allowed: {', '.join(map(str, GROUP_SIZES))} (-1: one scale for a whole row)")
        return value

    @property
    def type(self) -> str:
        """The artifact's name: 4bit-128g, with -act and -asym where they are chosen."""
        group = "row" if self.group_size == -1 else f"{self.group_size}g"
        return f"{self.bits}bit-{group}{'-act' if self.desc_act else ''}{'' if self.sym else '-asym'}"


def linears(source: Source) -> dict[str, tuple[int, int]]:
    """The layers GPTQ quantizes: the blocks' matrices, name -> (outputs, inputs). Embeddings and output head stay as they are."""
    return {name.removesuffix(".weight"): (shape[0], shape[1]) for name, shape in shapes(source).items() if len(shape) == 2 and LINEAR.search(name)}


def check(source: Source, options: GptqOptions) -> None:
    """What can be refused within a second."""
    try:
        importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise InputError("GPTQ needs GPTQModel: pip install 'autoquant-notebooks[gptq]'") from None
    if source.quantized:
        raise InputError(f"{source.id} is quantized already ({source.quantized}); GPTQ needs the unquantized model")
    if source.pickle:
        raise InputError(f"{source.id} has pickle weights, which GPTQModel is not given; convert it to safetensors first")
    layers = linears(source)
    if not layers:
        raise InputError(f"{source.id} ({source.architecture}) has no layers that GPTQ could quantize: none of its tensors is named …layers.N.….weight")
    if options.group_size > 0:
        odd = [(name, inputs) for name, (_, inputs) in layers.items() if inputs % options.group_size]
        if odd:
            fit = [str(size) for size in GROUP_SIZES if size == -1 or all(inputs % size == 0 for _, inputs in layers.values())]
            named = ", ".join(f"{name} ({inputs} inputs)" for name, inputs in odd[:3])
            raise InputError(f"group_size: {options.group_size} does not divide the inputs of {len(odd)} of {len(layers)} layers: {named}{' …' if len(odd) > 3 else ''}. "
                             f"Sizes that fit this model: {', '.join(fit)}")
    odd = [(name, outputs) for name, (outputs, inputs) in layers.items() if outputs * options.bits % 32 or inputs * options.bits % 32]
    if odd:
        raise InputError(f"bits: the widths of {len(odd)} layers cannot be packed at {options.bits} bits, e.g. {odd[0][0]} ({odd[0][1]} outputs): take 4 or 8")
    calibration.documents(options)


def _bytes(source: Source, options: GptqOptions) -> int:
    """The size to be: codes, zero points, scales (float16) and group numbers (int32) of each layer, and 16 bits for all else."""
    layers = linears(source)
    total = 2 * (source.parameters - sum(outputs * inputs for outputs, inputs in layers.values()))
    for outputs, inputs in layers.values():
        groups = 1 if options.group_size == -1 else inputs // options.group_size
        total += (outputs * inputs + groups * outputs) * options.bits // 8 + 2 * groups * outputs + 4 * inputs
    return total


def plan(source: Source, options: GptqOptions, out: Path) -> Plan:
    """The size to be, from the headers alone."""
    check(source, options)
    size, download = _bytes(source, options), bytes_to_fetch(source)
    standing = next(parent for parent in (out, *out.parents) if parent.exists())
    free = shutil.disk_usage(standing).free
    # GPTQModel keeps finished layers in a folder of its own (ours, under the run's scratch) until it saves
    needed = (download if download and same_disk(out) else 0) + 2 * source.parameters + size
    refused = f"not enough room on the disk: {needed / 1e9:.3f} GB are needed, {free / 1e9:.3f} GB are free" if needed > free else ""
    return Plan("gptq", source, (PlanItem(options.type, size, 8 * size / source.parameters, False, ""),), 2 * source.parameters, disk_needed=needed, disk_free=free,
                memory_needed=BASE_MEMORY + 2 * source.parameters,  # at worst the whole checkpoint at 16 bits: GPTQModel reads it layer by layer
                memory_available=memory_available(), download=download, refused=refused)


def environment(_: Any) -> dict[str, str]:
    """Variables for the worker. GPTQModel 7.6 fails on two processors unless told how many workers there are."""
    return {"GPTQMODEL_CPU_WORKERS": str(os.cpu_count() or 2), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def quantize(snapshot: Snapshot, options: GptqOptions, run: RunFolder) -> Made:
    """Calibrate, quantize and verify, unless the journal knows it as done. The run's folder becomes the model's folder."""
    source, env = snapshot.source, environment(options)
    texts = calibration.documents(options)
    version = importlib.metadata.version(PACKAGE)
    length = min(options.calibration_length, source.context)
    settings: dict[str, Any] = {"bits": options.bits, "group_size": options.group_size, "desc_act": options.desc_act, "sym": options.sym, "damp_percent": options.damp_percent}
    key = key_of(snapshot.sha256, version, settings, texts, options.calibration_samples, length, options.calibration_seed)
    step = f"quantize {options.type}"
    others = sorted(name for name in run.steps if name.startswith("quantize ") and name != step)
    if others:
        raise InputError(f"out: {run.folder} holds a {others[0].removeprefix('quantize ')} model; name another folder for {options.type}")
    facts = run.done(step, key)
    if facts is None:
        ids = process.call("autoquant.calibration:pack", log=run.logs, env=env, folder=str(snapshot.folder), texts=texts, samples=options.calibration_samples,
                           length=length, seed=options.calibration_seed)
        log.info("GPTQ of %s: %d samples of %d tokens, %d layers", source.id, len(ids), length, len(linears(source)))
        target = run.work / "model"
        shutil.rmtree(target, ignore_errors=True)
        with Bar(f"quantize {options.type}") as progress:
            process.call("autoquant.methods.gptq:work", log=run.logs, env=env, progress=progress, model=str(snapshot.folder), target=str(target), ids=ids,
                         offload=str(run.work / "offload"), batch_size=options.batch_size, **settings)
        with Bar("check") as progress:
            seen = process.call("autoquant.folder_checks:verify_gptq", log=run.logs, env=env, progress=progress, folder=str(target), source=str(snapshot.folder),
                                layers=sorted(linears(source)), bits=options.bits, group_size=options.group_size, parameters=source.parameters)
        artifact = Artifact(type=options.type, files=tuple(Stored(*stored) for stored in seen["files"]), bits_per_weight=seen["bits_per_weight"],
                            checks=tuple(Check(*one) for one in seen["checks"]),
                            facts={"samples": len(ids), "calibration sha256": calibration.digest(ids), "algorithm": f"GPTQ (GPTQModel {version})"})
        outputs = [run.finish(target / stored.name) for stored in artifact.files]
        run.record(step, key, outputs, artifact.to_json(), {stored.name: stored.sha256 for stored in artifact.files})
    else:
        artifact = Artifact.from_json(facts)
    run.passed(artifact)
    name = "the built-in text (English novels)" if options.calibration == "builtin" else Path(options.calibration).name
    layers = next(one.seen for one in artifact.checks if one.name == "layers")
    return Made((artifact,), None, {"algorithm": artifact.facts["algorithm"], "file format": "GPTQ (gptq, version 1)",
                                    "calibration": f"{name}, {artifact.facts['samples']} samples of {length} tokens", "calibration sha256": artifact.facts["calibration sha256"],
                                    "weights": layers})


def work(model: str, target: str, ids: list[list[int]], *, bits: int, group_size: int, desc_act: bool, sym: bool, damp_percent: float, batch_size: int, offload: str,
         report: Report) -> None:
    """Quantize a folder into another. Runs in a worker: GPTQModel patches other libraries on import.

    Raises InputError for an architecture that GPTQModel does not know and for weights that are not finite.
    """
    os.makedirs(offload, exist_ok=True)
    os.chdir(offload)  # GPTQModel writes a logs folder wherever it is started

    import torch
    from gptqmodel import GPTQModel
    from gptqmodel.models.auto import SUPPORTED_MODELS
    from gptqmodel.quantization.config import GPTQConfig
    from safetensors import safe_open

    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") not in SUPPORTED_MODELS:
        raise InputError(f"GPTQModel does not know the architecture {config.get('model_type')!r}; it knows: {', '.join(sorted(SUPPORTED_MODELS))}")
    for path in sorted(Path(model).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if not torch.isfinite(file.get_tensor(name)).all():
                    raise InputError(f"{path.name}: {name} has NaN or Inf values; the model is damaged")
    text_config = config.get("text_config") or config
    layers = int(text_config.get("num_hidden_layers") or 1)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    settings = GPTQConfig(bits=bits, group_size=group_size, desc_act=desc_act, sym=sym, damp_percent=damp_percent, offload_to_disk_path=offload,
                          act_group_aware=not desc_act and group_size > 0)  # the library's default, which it refuses for whole rows
    loaded: Any = GPTQModel.load(model, settings, device=device)
    loaded.layer_callback = lambda *, layer_idx, submodule_finalized: report(layer_idx + 1, layers)
    loaded.quantize([{"input_ids": sample, "attention_mask": [1] * len(sample)} for sample in ids], batch_size=batch_size)
    loaded.save(target)
    _tidy(Path(target))


def _tidy(folder: Path) -> None:
    """Take this machine's paths and GPTQModel's log out of the folder."""
    (folder / "quant_log.csv").unlink(missing_ok=True)
    for path in (folder / "config.json", folder / "quantize_config.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        for block in (data.get("quantization_config", {}), data):
            meta = block.get("meta")
            if isinstance(meta, dict):
                meta.pop("offload_to_disk_path", None)
        data.pop("_name_or_path", None)
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def who_for(type: str) -> str:
    """One line: when to take this type."""
    return {"8": "practically lossless, at half the size", "4": "the usual choice for GPUs: vLLM, SGLang, transformers",
            "3": "when 4 bits do not fit; clear loss on small models", "2": "experiments; large models only"}[type[0]]


def how_to_run(result: Result) -> str:
    """The card's section on running the model."""
    return f"""Give the name of the repository that holds these files, or this folder, for `MODEL`.

```python
# transformers (pip install gptqmodel optimum)
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("MODEL", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("MODEL")
print(tokenizer.decode(model.generate(**tokenizer("Once upon a time", return_tensors="pt").to(model.device), max_new_tokens=32)[0]))
```

```bash
# vLLM, on a GPU
vllm serve MODEL --max-model-len {min(result.source.context, 4096)}
```

```python
# GPTQModel
from gptqmodel import GPTQModel

model = GPTQModel.load("MODEL")
print(model.tokenizer.decode(model.generate("Once upon a time")[0]))
```"""


METHOD = Method(
    name="gptq", title="GPTQ (GPTQModel)", summary="weights of 2, 3, 4 or 8 bits, calibrated on text; for GPUs with vLLM, SGLang, transformers",
    options=GptqOptions, kind="folder", library_name="transformers", demo={"calibration_samples": 16, "calibration_length": 256}, survey={},
    variants=lambda options: (options.type,), check=check, plan=plan, quantize=quantize, environment=environment, who_for=who_for, how_to_run=how_to_run,
    folder_suffix=lambda options: f"GPTQ-{options.type}", packages=("gptqmodel", "optimum", "torch", "transformers", "tokenizers", "numpy"))
