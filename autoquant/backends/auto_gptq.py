"""AutoGPTQ 0.7.1, the archived library, in an environment of its own: this module is imported
there, beside none of the package's other dependencies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autoquant.core.errors import CheckFailed, InputError
from autoquant.formats.checkpoint import carry, legacy_config, weight_files
from autoquant.runtime.worker import Report

# what transformers 5 and vLLM take for another format, or is a path
FOREIGN = ("is_marlin_format", "model_file_base_name", "model_name_or_path", "awq_gemm_checkpoint")


def quantize(
    model: str,
    target: str,
    ids: list[list[int]],
    *,
    bits: int,
    group_size: int,
    desc_act: bool,
    sym: bool,
    damp_percent: float,
    batch_size: int,
    scratch: str,
    report: Report,
) -> None:
    """Quantize a folder into another with AutoGPTQ, and make of its folder one that transformers 5,
    vLLM and GPTQModel load. Needs CUDA.
    """
    import logging

    import torch
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
    from safetensors import safe_open

    old = Path(scratch) / "model"
    old.mkdir(parents=True, exist_ok=True)
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 1)
    # no code, no pickle
    for path in (*weight_files(Path(model)), *Path(model).glob("*.safetensors.index.json")):
        (old / path.name).unlink(missing_ok=True)
        (old / path.name).symlink_to(path.resolve())
    for path in old.glob("*.safetensors"):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if not torch.isfinite(file.get_tensor(name)).all():
                    raise InputError(
                        f"{path.name}: {name} has NaN or Inf values; the model is damaged"
                    )
    (old / "config.json").write_text(json.dumps(legacy_config(config)), encoding="utf-8")

    class Watch(logging.Handler):
        """Counts the layers that AutoGPTQ says it starts."""

        done = 0

        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("Start quantizing layer"):
                report(self.done, layers)
                self.done += 1

    logging.getLogger("auto_gptq.modeling._base").addHandler(Watch())
    settings: Any = BaseQuantizeConfig(
        bits=bits, group_size=group_size, desc_act=desc_act, sym=sym, damp_percent=damp_percent
    )
    loaded: Any = AutoGPTQForCausalLM.from_pretrained(str(old), settings, torch_dtype=torch.float16)
    samples = [
        {
            "input_ids": torch.tensor([sample]),
            "attention_mask": torch.ones(1, len(sample), dtype=torch.long),
        }
        for sample in ids
    ]
    loaded.quantize(samples, batch_size=batch_size)
    loaded.save_quantized(target, use_safetensors=True)
    normalize(Path(target), config, Path(model))


def _without_biases(written: Path, target: Path, model: Path) -> None:
    """Leave out the zero biases that AutoGPTQ adds to layers which have none: transformers finds
    them left over.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    known: set[str] = set()
    for path in weight_files(model):
        with safe_open(str(path), framework="pt") as file:
            known |= set(file.keys())
    with safe_open(str(written), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if name in known or not name.endswith(".bias") or bool(torch.count_nonzero(tensor))
    }
    save_file(kept, str(target), metadata={"format": "pt"})
    written.unlink()
    # the safetensors library writes for the owner only
    target.chmod((target.parent / "quantize_config.json").stat().st_mode)


def normalize(folder: Path, config: dict[str, Any], model: Path) -> None:
    """One model folder as GPTQModel would write it: model.safetensors, the source's own config with
    AutoGPTQ's settings, the source's tokenizer.
    """
    weights = list(folder.glob("gptq_model-*.safetensors"))
    if len(weights) != 1:
        raise CheckFailed(
            f"AutoGPTQ wrote {', '.join(path.name for path in weights) or 'no weights'}, where one"
            " file was expected"
        )
    _without_biases(weights[0], folder / "model.safetensors", model)
    block = json.loads((folder / "quantize_config.json").read_text(encoding="utf-8"))
    block = {name: value for name, value in block.items() if name not in FOREIGN}
    block.update(
        quant_method="gptq", checkpoint_format="gptq", meta={"quantizer": ["autogptq:0.7.1"]}
    )
    new = {**config, "dtype": "float16", "quantization_config": block}
    for name in ("torch_dtype", "auto_map", "_name_or_path"):
        new.pop(name, None)
    (folder / "config.json").write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")
    (folder / "quantize_config.json").write_text(
        json.dumps(block, indent=2) + "\n", encoding="utf-8"
    )
    carry(model, folder)
