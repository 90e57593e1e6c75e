"""AutoRound, written in the GPTQ or AWQ format."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoquant import calibration
from autoquant.backends import block_arguments, renamed
from autoquant.backends.folder import begin, blocks_of, freeze, keep_config, tidy, used
from autoquant.backends.tensorwise import Division
from autoquant.formats.tensors import Part
from autoquant.forward.mapped import mapped
from autoquant.runtime.worker import Report
from autoquant.source.parts import by_module

# a block's number, after what holds the blocks
BLOCKS = re.compile(r".*?(?:^|\.)(?:layers|h|blocks)(?=\.\d+\.)")


def quantize(
    model: str,
    target: str,
    packing: dict[str, Any],
    *,
    format: str,
    bits: int,
    group_size: int,
    sym: bool,
    iterations: int,
    batch_size: int,
    scratch: str,
    report: Report,
) -> dict[str, Any]:
    """AutoRound (Cheng et al. 2023: rounding and clipping learned by signed gradients, block by
    block), written in the GPTQ or AWQ format (``format``).
    """
    config, dtype = begin(model, scratch)

    import auto_round.context.model
    import auto_round.utils.model
    import torch
    from auto_round import AutoRound
    from auto_round.compressors import base, orchestrator, shard_writer
    from auto_round.utils.device_manager import CpuARDevice
    from transformers import AutoTokenizer

    division = Division(model)
    wanted = set(taken(by_module(division.found, division.headers)))
    layers = blocks_of(config)

    class Bar:
        """Stands where AutoRound makes its progress bar, and tells us."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.n = 0

        def update(self, n: int = 1) -> None:
            self.n += n
            report(self.n, layers)

        def set_description(self, *_: Any) -> None:
            pass

        def close(self) -> None:
            pass

    def left(whole: Any) -> list[str]:
        """The linear layers that stay as they are; AutoRound asks when experts are taken apart."""
        linear = (n for n, part in whole.named_modules() if isinstance(part, torch.nn.Linear))
        return [name for name in linear if name not in wanted]

    orchestrator.tqdm = Bar
    # on a processor without the instructions it would make the whole model float32, twice its size;
    # products are float32 all the same (multiply_in_float32)
    CpuARDevice.supports_bf16 = lambda _: True
    # samples are of text alone: for a model that sees it would want a processor and pictures
    for module in (auto_round.utils.model, auto_round.context.model):
        module.is_mllm_model = lambda *_, **__: False
    base.get_predefined_ignore_layers = left
    # it is written as the model names it; renamed.write knows how the checkpoint does
    shard_writer.revert_name_with_weight_transforms = lambda name, _: name
    shard_writer.revert_checkpoint_conversion_mapping = lambda name, _: name
    freeze()
    ids = calibration.pack(model, **packing)
    length = len(ids[0])
    samples = [
        {
            "input_ids": torch.tensor([sample]),
            "attention_mask": torch.ones(1, length, dtype=torch.long),
        }
        for sample in ids
    ]
    loaded: Any = mapped(model, dtype)
    prefix = next(found[0] for name in wanted if (found := BLOCKS.match(name)))
    blocks = loaded.get_submodule(prefix)
    base.get_block_names = lambda *_, **__: [[f"{prefix}.{n}" for n in range(len(blocks))]]
    for name, part in loaded.named_modules():
        if name in wanted:
            part.__class__ = torch.nn.Linear  # AutoRound knows no subclasses, such as Falcon's
    block_arguments.keep(loaded, list(blocks), samples[0]["input_ids"])
    rounder: Any = AutoRound(
        loaded,
        AutoTokenizer.from_pretrained(model),
        scheme="W4A16",
        bits=bits,
        group_size=group_size,
        sym=sym,
        iters=iterations,
        nsamples=len(ids),
        seqlen=length,
        batch_size=min(batch_size, len(ids)),
        dataset=samples,
        device_map=0 if torch.cuda.is_available() else "cpu",
        low_gpu_mem_usage=True,
        enable_torch_compile=False,
    )
    rounder.quantize_and_save(f"{scratch}/saved", format=format)
    # it makes a folder named after model and scheme
    saved = next(path for path in Path(f"{scratch}/saved").iterdir() if path.is_dir())
    written = "awq" if "awq" in format else "gptq"
    division, names, other = renamed.write(str(saved), target, model, written)
    shutil.copyfile(saved / "config.json", f"{target}/config.json")
    keep_config(Path(target), config, renamed.exceptions(division, names, written))
    tidy(Path(target), model)
    return {**used(ids), "published names": other}


def taken(modules: Mapping[str, Part]) -> dict[str, Part]:
    """The matrices that AutoRound quantizes: it leaves those whose sides are no multiples of 32."""
    return {
        name: part for name, part in modules.items() if not any(side % 32 for side in part.shape)
    }
