"""The libraries that quantize, each behind one function that turns a folder into another. All run
in worker processes: these libraries patch others on import.

Each takes ``model`` and ``target`` (folders), ``scratch`` (a folder of its own) and ``report``;
those that calibrate also ``packing`` (calibration.pack's arguments without the folder), GPTQ, AWQ
and AutoRound ``batch_size``. Each raises InputError for an architecture it does not know, weights
that are not finite and a text that is too short. Those that calibrate return how many samples there
were, and their hash.
"""

from __future__ import annotations

import difflib
import gc
import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from autoquant import calibration, hqq_format
from autoquant.auto_gptq import BESIDE, weight_files
from autoquant.core.errors import InputError
from autoquant.worker import Report

BLOCKS = re.compile(r"(^|\.)layers\.\d+\.")
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SHARD = "4GB"  # the most in one file


def _begin(model: str, scratch: str) -> tuple[dict[str, Any], Any]:
    """Refuse damaged weights, move to the scratch folder (GPTQModel writes a logs folder wherever
    it is started).

    Returns the model's config, and the 16-bit dtype to work in. On a GPU the source's own, bfloat16
    for one in float32 if the GPU has it. On a CPU bfloat16, GPTQModel's own choice there: float16
    took 1.2 times as long (embedded model, the quantizing alone, two rounds; with AVX-512); what is
    not quantized is the source's again in the end.
    """
    import torch

    os.makedirs(scratch, exist_ok=True)
    os.chdir(scratch)
    sizes = refuse_damaged(model)
    config: dict[str, Any] = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    own = sizes.most_common(1)[0][0]
    if not torch.cuda.is_available():
        _multiply_in_float32()
        return config, torch.bfloat16
    if own != torch.float16:
        own = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return config, own


def _bfloat16_instructions() -> bool:
    """Whether the processor has them. oneDNN says yes for any AVX-512, where it emulates them."""
    import platform

    import torch

    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return platform.machine() not in ("x86_64", "AMD64") or bool(
        torch.cpu._is_avx512_bf16_supported()
    )


def _multiply_in_float32() -> None:
    """On a processor without bfloat16 instructions, let a model's products of 16 bits (linear
    layers, attention) be made in float32, in this process: torch's own are slow there, and so are
    those that oneDNN emulates with AVX-512.

    With AVX2 a product took torch 7 times as long in bfloat16 as in float32, and 6 times in float16
    (512 by 2048 by 2048, one thread); on the embedded model GPTQ took 12.4 and 6.4 s, AWQ 93 and 37
    s. Results are rounded to 16 bits as before; weights and memory stay 16 bits wide.
    """
    import torch

    if _bfloat16_instructions():
        return

    def wide(value: Any) -> Any:
        return (
            value.float()
            if isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
            else value
        )

    def widened(plain: Any) -> Any:
        def product(*values: Any, **named: Any) -> Any:
            first, mixed = (*values, *named.values())[0], torch.is_autocast_enabled("cpu")
            if (
                first.device.type != "cpu"
                or first.dtype == torch.float64
                or "out" in named
                or (not mixed and first.dtype not in (torch.bfloat16, torch.float16))
            ):
                return plain(*values, **named)
            with torch.autocast("cpu", enabled=False):  # which would make 16 bits of them again
                made = plain(
                    *map(wide, values), **{name: wide(value) for name, value in named.items()}
                )
            return made.to(torch.get_autocast_dtype("cpu") if mixed else first.dtype)

        return product

    torch.nn.functional.linear = widened(torch.nn.functional.linear)
    torch.nn.functional.scaled_dot_product_attention = widened(
        torch.nn.functional.scaled_dot_product_attention
    )
    # attention of models that transformers does not run with the one above
    torch.matmul = widened(torch.matmul)


def _freeze() -> None:
    """Take what was imported out of garbage collection, in this process: AutoRound and GPTQModel
    collect after every layer, and went through half a million objects of modules each time. Called
    before a model is loaded, whose parts are to be found by it. Whole runs on the embedded model,
    two rounds by hand, on a processor without bfloat16 instructions: AutoRound with 50 steps 49 and
    45 s before, 36 and 37 s since; AWQ 59 and 57, 53 and 51; GPTQ alike.
    """
    gc.collect()
    gc.freeze()


def refuse_damaged(model: str) -> Counter[Any]:
    """Refuse weights that are not finite; how many weights there are of each torch dtype."""
    import torch
    from safetensors import safe_open

    sizes = Counter[Any]()
    for path in weight_files(Path(model)):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                if not torch.isfinite(tensor).all():
                    raise InputError(
                        f"{path.name}: {name} has NaN or Inf values; the model is damaged"
                    )
                sizes[tensor.dtype] += tensor.numel()
    return sizes


def finite(model: str) -> bool:
    """True, or InputError for weights that are not finite. Runs in a worker."""
    return bool(refuse_damaged(model))


def _blocks(config: dict[str, Any]) -> int:
    return int((config.get("text_config") or config).get("num_hidden_layers") or 1)


def _used(ids: list[list[int]]) -> dict[str, Any]:
    return {"samples": len(ids), "calibration sha256": calibration.digest(ids)}


def gptqmodel(
    model: str,
    target: str,
    packing: dict[str, Any],
    *,
    algorithm: str,
    bits: int,
    group_size: int,
    sym: bool,
    batch_size: int,
    scratch: str,
    report: Report,
    desc_act: bool = False,
    damp_percent: float = 0.05,
) -> dict[str, Any]:
    """GPTQ or AWQ (``algorithm`` "gptq", "awq") with GPTQModel, on a GPU if there is one.

    The samples must all have one length (as calibration.pack makes them): of samples that differ,
    GPTQModel 7.6's AWQ looks at the last batch only, and on a CPU it then scales the inputs that q,
    k and v share three times over, because it keeps them without a copy (KL 0.15 instead of 0.06 on
    four layers of SmolLM2-135M).
    """
    config, dtype = _begin(model, scratch)

    import torch
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.models.auto import SUPPORTED_MODELS
    from gptqmodel.quantization.config import AWQConfig, GPTQConfig

    if config.get("model_type") not in SUPPORTED_MODELS:
        raise InputError(
            f"GPTQModel does not know the architecture {config.get('model_type')!r}; it knows:"
            f" {', '.join(sorted(SUPPORTED_MODELS))}"
        )
    _freeze()
    ids = calibration.pack(model, **packing)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    settings: Any
    backend = BACKEND.AUTO
    if algorithm == "awq":
        settings = AWQConfig(
            bits=bits, group_size=group_size, sym=sym, offload_to_disk_path=scratch
        )
        if device == "cpu":
            backend = BACKEND.AWQ_TORCH  # what it packs with; the default one needs CUDA
    else:
        settings = GPTQConfig(
            bits=bits,
            group_size=group_size,
            desc_act=desc_act,
            sym=sym,
            damp_percent=damp_percent,
            offload_to_disk_path=scratch,
            # the library's default, which it refuses for whole rows
            act_group_aware=not desc_act and group_size > 0,
        )
    loaded: Any = GPTQModel.load(model, settings, device=device, dtype=dtype)
    layers = _blocks(config)
    loaded.layer_callback = lambda *, layer_idx, submodule_finalized: report(layer_idx + 1, layers)
    loaded.quantize(
        [{"input_ids": sample, "attention_mask": [1] * len(sample)} for sample in ids],
        batch_size=batch_size,
        backend=backend,
    )
    loaded.save(target)
    _keep_rest(Path(target), model)
    _keep_config(Path(target), config)
    _tidy(Path(target), model)
    return _used(ids)


def autoround(
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
    config, dtype = _begin(model, scratch)
    _supported(config, "AutoRound")

    import torch
    from auto_round import AutoRound
    from auto_round.compressors import orchestrator
    from auto_round.utils.device_manager import CpuARDevice
    from transformers import AutoModelForCausalLM, AutoTokenizer

    layers = _blocks(config)

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

    orchestrator.tqdm = Bar
    # on a processor without the instructions it would make the whole model float32, twice its size;
    # products are float32 all the same (_multiply_in_float32)
    CpuARDevice.supports_bf16 = lambda _: True
    _freeze()
    ids = calibration.pack(model, **packing)
    length = len(ids[0])
    samples = [
        {
            "input_ids": torch.tensor([sample]),
            "attention_mask": torch.ones(1, length, dtype=torch.long),
        }
        for sample in ids
    ]
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
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
    rounder.quantize_and_save(target, format=format)
    # it makes a folder named after model and scheme
    inner = [path for path in Path(target).iterdir() if path.is_dir()]
    for folder in inner:
        for path in folder.iterdir():
            os.replace(path, Path(target) / path.name)
        folder.rmdir()
    _keep_rest(Path(target), model)
    _keep_config(Path(target), config)
    _tidy(Path(target), model)
    return _used(ids)


def _supported(config: dict[str, Any], who: str) -> None:
    """Refuse an architecture that transformers does not load."""
    known(str(config.get("model_type")), who)


def known(model_type: str, who: str) -> None:
    """The same, by the name alone. Runs in a worker too."""
    from transformers import CONFIG_MAPPING
    from transformers import __version__ as version

    kind = model_type
    if kind not in CONFIG_MAPPING:
        near = (
            ", ".join(difflib.get_close_matches(kind, list(CONFIG_MAPPING), n=5, cutoff=0.4))
            or "none"
        )
        raise InputError(
            f"transformers {version}, with which {who} loads models, does not know the architecture"
            f" {kind!r}; nearest of {len(CONFIG_MAPPING)} it knows: {near}"
        )


def _linears(model: Any) -> tuple[dict[str, Any], list[str]]:
    """The linear layers of the blocks by name, and the names of the other linear layers, which stay
    as they are (lm_head).
    """
    import torch

    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    inside = {name: module for name, module in found.items() if BLOCKS.search(name)}
    return inside, sorted(name for name in found if name not in inside)


def hqq(
    model: str, target: str, *, bits: int, group_size: int, axis: int, scratch: str, report: Report
) -> dict[str, Any]:
    """HQQ (Badri and Shaji 2023: zero points found by half-quadratic optimization, without data),
    layer by layer, on a GPU if there is one; saved as safetensors.

    Scales and zero points are float16, hqq's default: bfloat16 has too few digits for zero points.
    The rest of the model is float16 too. The layers are replaced here: hqq's own ``quantize_model``
    also rounds the rotary frequencies to float16.
    """
    config, _ = _begin(model, scratch)
    _supported(config, "hqq")

    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float16)
    inside, outside = _linears(loaded)
    # vLLM compares each part of a name
    skipped = sorted({name.rpartition(".")[2] for name in outside})
    size = None if group_size == -1 else group_size
    for i, (name, linear) in enumerate(inside.items(), 1):
        made = HQQLinear(
            linear,
            BaseQuantizeConfig(nbits=bits, group_size=size, axis=axis),
            compute_dtype=torch.float16,
            device=device,
        )
        loaded.set_submodule(name, made)
        report(i, len(inside))
    # with encoded_state_dict left on, which its save_quantized turns off, the library itself gives
    # tensors only
    _write(
        target,
        model,
        {**config, "dtype": "float16"},
        loaded.state_dict(),
        hqq_format.block(bits, size, axis, skipped),
    )
    return {}


def _half(model: str) -> Any:
    """The 16-bit dtype of a model that is quantized without looking at data: its own, bfloat16 for
    one in float32.
    """
    import torch

    return torch.float16 if _dtype(Path(model)) == "float16" else torch.bfloat16


def w8a8(
    model: str,
    target: str,
    *,
    scheme: str,
    scratch: str,
    report: Report,
    packing: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Weights and activations of 8 bits (``scheme`` "int8-dynamic", "int8-static" or "fp8-dynamic")
    with compressed-tensors: plain rounding, a scale for each output.

    "int8-static" looks at the samples of ``packing`` for the largest input of each layer, in the
    unquantized model; the others look at no data. On a GPU if there is one.
    """
    config, _ = _begin(model, scratch)
    _supported(config, "compressed-tensors")

    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM

    ids = calibration.pack(model, **packing) if packing else []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=_half(model)).to(device).eval()
    inside, outside = _linears(loaded)
    largest = {name: torch.zeros((), device=device) for name in inside}

    def watch(name: str) -> Any:
        def hook(_: Any, inputs: Any) -> None:
            largest[name] = torch.maximum(largest[name], inputs[0].abs().amax().float())

        return hook

    hooks = [linear.register_forward_pre_hook(watch(name)) for name, linear in inside.items()]
    with torch.inference_mode():
        for i, sample in enumerate(ids, 1):
            loaded(input_ids=torch.tensor([sample], device=device), logits_to_keep=1)
            report(i, len(ids) + 1)
    for one in hooks:
        one.remove()
    common: dict[str, Any] = {
        "num_bits": 8,
        "type": "float" if scheme.startswith("fp8") else "int",
        "symmetric": True,
    }
    weights, inputs = (
        QuantizationArgs(strategy="channel", dynamic=False, **common),
        QuantizationArgs(strategy="tensor" if ids else "token", dynamic=not ids, **common),
    )
    group = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
    apply_quantization_config(
        loaded, QuantizationConfig(config_groups={"group_0": group}, ignore=outside)
    )
    for name, linear in inside.items():
        linear.weight_scale.data.copy_(
            calculate_qparams(
                linear.weight.data.amin(1, keepdim=True),
                linear.weight.data.amax(1, keepdim=True),
                weights,
            )[0]
        )
        if ids:
            linear.input_scale.data.copy_(
                calculate_qparams(-largest[name], largest[name], inputs)[0]
            )
    compressor = ModelCompressor.from_pretrained_model(loaded)
    compressor.compress_model(loaded)
    report(1, 1)
    loaded.save_pretrained(target, max_shard_size=SHARD)
    compressor.update_config(target)
    _keep_config(Path(target), config)
    _tidy(Path(target), model)
    return _used(ids) if ids else {}


def bitsandbytes(
    model: str,
    target: str,
    *,
    quant_type: str,
    double_quant: bool,
    threshold: float,
    scratch: str,
    report: Report,
) -> dict[str, Any]:
    """NF4, FP4 (4 bits) or LLM.int8() (``quant_type`` "nf4", "fp4", "int8") with bitsandbytes
    through transformers, on a GPU if there is one.

    4 bits are computed with in the dtype of the rest: the source's own, bfloat16 for one in
    float32.
    """
    config, _ = _begin(model, scratch)
    _supported(config, "bitsandbytes")

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    dtype = _half(model)
    with torch.device("meta"):
        inside, skipped = _linears(
            AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
        )
    settings: Any = (
        BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=threshold, llm_int8_skip_modules=skipped
        )
        if quant_type == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quant_type,
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skipped,
        )
    )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=dtype,
        quantization_config=settings,
        device_map="cuda" if torch.cuda.is_available() else "cpu",
    )
    report(len(inside), len(inside))
    loaded.save_pretrained(target, max_shard_size=SHARD)
    _keep_config(Path(target), config)
    _tidy(Path(target), model)
    return {}


def _keep_config(folder: Path, config: dict[str, Any]) -> None:
    """Put the source's own config in place of what transformers 5 made of it, with the quantization
    block that was written: release 4 finds no ``rope_theta`` in the newer form and silently takes
    10000. Whether the output head is tied is as it was written, for a library may have untied it.
    """
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    kept = {
        name: written[name]
        for name in ("quantization_config", "tie_word_embeddings")
        if name in written
    }
    path.write_text(json.dumps({**config, **kept}, indent=2) + "\n", encoding="utf-8")


def _keep_rest(folder: Path, model: str) -> None:
    """On a CPU, put the source's own values in place of weights that were not quantized but
    converted: libraries work there in bfloat16, and write all in it. What an algorithm has changed
    gets the source's dtype; a source in float32 becomes bfloat16.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    if torch.cuda.is_available():  # there the source's dtype is worked in
        return
    opened: Any = safe_open  # untyped
    source = {
        name: file
        for file in (opened(path, framework="pt") for path in weight_files(Path(model)))
        for name in file.keys()  # noqa: SIM118 (not a dict)
    }
    wanted = _half(model)
    for path in sorted(folder.glob("*.safetensors")):
        with opened(path, framework="pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata()
        kept = {}
        for name, tensor in held.items():
            # a tied head that a library writes out is a weight without a source of its name
            if (
                (name in source or name.endswith(".weight"))
                and tensor.is_floating_point()
                and tensor.dtype != wanted
            ):
                own = source[name].get_tensor(name) if name in source else tensor
                same = own.shape == tensor.shape and torch.equal(
                    own.to(torch.bfloat16).to(tensor.dtype), tensor
                )
                kept[name] = (own if same else tensor).to(wanted)
        if kept:
            part = path.with_suffix(".part")
            save_file({**held, **kept}, part, metadata=metadata)
            os.replace(part, path)


def _write(
    target: str, model: str, config: dict[str, Any], state: dict[str, Any], block: dict[str, Any]
) -> None:
    """Write a model folder: tensors in shards, each once (tied ones are tied again by who loads
    them), the source's config with the quantization block.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    folder = Path(target)
    folder.mkdir(parents=True)
    seen: dict[tuple[int, Any], str] = {}
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if seen.setdefault((tensor.data_ptr(), tensor.shape), name) == name
    }
    shards = split_torch_state_dict_into_shards(tensors, max_shard_size=SHARD)
    for file, names in shards.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2) + "\n", encoding="utf-8"
        )
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": block}, indent=2) + "\n", encoding="utf-8"
    )
    _tidy(folder, model)


def _dtype(folder: Path) -> str:
    """The dtype most of the unquantized weights have."""
    from safetensors import safe_open

    sizes = Counter[str]()
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                if name.endswith(".weight") and part.get_dtype() in FLOATS:
                    sizes[part.get_dtype()] += math.prod(part.get_shape())
    return FLOATS[sizes.most_common(1)[0][0]]


def _tidy(folder: Path, model: str) -> None:
    """Make one clean model folder: no paths of this machine, no logs; the block that loaders look
    for is the same whoever wrote it.
    """
    (folder / "quant_log.csv").unlink(missing_ok=True)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    block = config["quantization_config"]
    (block.get("meta") or {}).pop("offload_to_disk_path", None)
    if block["quant_method"] == "gptq":
        block.setdefault("checkpoint_format", "gptq")
    # a path; what dtype says; code of the model, which is not here
    for name in ("_name_or_path", "torch_dtype", "auto_map"):
        config.pop(name, None)
    config["dtype"] = _dtype(folder)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("quantize_config.json", "quantization_config.json"):
        (folder / name).unlink(missing_ok=True)
    if block["quant_method"] in ("gptq", "awq"):
        # where older loaders look
        (folder / "quantize_config.json").write_text(
            json.dumps(block, indent=2) + "\n", encoding="utf-8"
        )
    # the source's own: the libraries write them anew, with names of classes that other releases do
    # not know
    for name in BESIDE:
        if (Path(model) / name).is_file():
            (folder / name).write_bytes((Path(model) / name).read_bytes())
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():  # the safetensors library writes for the owner only
        path.chmod(0o666 & ~mask)
