"""Functions that tests call in worker processes, where gguf-py, torch and transformers may be
imported.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.formats.tensors import Tensors


def tensor_types(path: str) -> dict[str, str]:
    from autoquant.formats.gguf import Header

    return {name: tensor.type for name, tensor in Header(path).tensors.items()}


def value(path: str, key: str) -> Any:
    from autoquant.formats.gguf import Header

    return Header(path).get(key)


def imatrix_layout(path: str) -> dict[str, Any]:
    """Read with gguf-py, not with our own code."""
    import gguf

    reader = gguf.GGUFReader(path)
    field = lambda key: reader.get_field(key).contents()  # noqa: E731
    return {
        "type": field("general.type"),
        "chunks": int(field("imatrix.chunk_count")),
        "chunk_size": int(field("imatrix.chunk_size")),
        "datasets": field("imatrix.datasets"),
        "tensors": {t.name: [int(n) for n in t.shape] for t in reader.tensors},
        "counts": {
            t.name: t.data.reshape(-1).tolist()
            for t in reader.tensors
            if t.name.endswith(".counts")
        },
    }


def _save(model: Any, folder: str) -> str:
    import torch

    model.to(torch.float16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_FOLDER / name, Path(folder) / name)
    return folder


def random_model(folder: str, hidden_size: int) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return _save(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=2048,
                hidden_size=hidden_size,
                intermediate_size=512,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        folder,
    )


def random_mixture(folder: str) -> str:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return _save(
        MixtralForCausalLM(
            MixtralConfig(
                vocab_size=2048,
                hidden_size=256,
                intermediate_size=512,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                num_local_experts=4,
                num_experts_per_tok=2,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        folder,
    )


def to_pickle(folder: str) -> None:
    import torch
    from safetensors.torch import load_file

    path = Path(folder) / "model.safetensors"
    torch.save(load_file(path), Path(folder) / "pytorch_model.bin")
    path.unlink()


def bits_of_llama_8b(path: str, types: list[str]) -> dict[str, tuple[float, bool]]:
    """A header-only, sparse GGUF with Llama-3.1-8B's shapes, dry-run to each type."""
    import os

    import gguf
    import numpy as np

    from autoquant.backends.llamacpp.quantize import dry_run

    width, inner, layers, vocabulary = 4096, 14336, 32, 128256
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(32)
    writer.add_head_count_kv(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(1)
    shapes = {
        "token_embd.weight": (vocabulary, width),
        "output.weight": (vocabulary, width),
        "output_norm.weight": (width,),
    }
    for i in range(layers):
        shapes |= {
            f"blk.{i}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (width,),
                "ffn_norm": (width,),
                "attn_q": (width, width),
                "attn_k": (1024, width),
                "attn_v": (1024, width),
                "attn_output": (width, width),
                "ffn_gate": (inner, width),
                "ffn_up": (inner, width),
                "ffn_down": (width, inner),
            }.items()
        }
    total = 0
    for name, shape in shapes.items():
        kind = np.dtype(np.float16 if len(shape) == 2 else np.float32)
        size = int(np.prod(shape)) * kind.itemsize
        writer.add_tensor_info(name, shape, kind, size)
        total += -(-size // 32) * 32
    writer.write_header_to_file(Path(path))
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-os.path.getsize(path) // 32) * 32 + total)
    return {
        plan["type"]: (plan["bits_per_weight"], plan["needs_imatrix"])
        for plan in dry_run(path, types)
    }


def imatrix_against_transformers(imatrix: str, chunks: int) -> dict[str, Any]:
    """The worst relative difference of a tensor's sums from those of forward hooks in transformers,
    float32.
    """
    import gguf
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from autoquant.core.bundled import CALIBRATION_TEXT

    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    model = AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(DEMO_FOLDER).encode(
        CALIBRATION_TEXT.read_text()[: chunks * 256 * 12], add_special_tokens=False
    )
    sums: dict[str, Any] = {}
    for i, layer in enumerate(model.model.layers):
        for path, name in names.items():
            key = f"blk.{i}.{name}.weight.in_sum2"

            def hook(module: Any, inputs: Any, output: Any, key: str = key) -> None:
                sums[key] = sums.get(key, 0) + (inputs[0][0].double() ** 2).sum(0)

            layer.get_submodule(path).register_forward_hook(hook)
    with torch.inference_mode():
        for i in range(chunks):
            model(input_ids=torch.tensor([ids[i * 256 : (i + 1) * 256]]))
    ours = {t.name: t.data.reshape(-1) for t in gguf.GGUFReader(imatrix).tensors}
    worst = max(
        float(np.abs(ours[key] - value.numpy()).sum() / value.numpy().sum())
        for key, value in sums.items()
    )
    return {"tensors": len(sums), "worst": worst}


def sleep_forever() -> None:
    import subprocess
    import time

    subprocess.Popen(["sleep", "600"])
    time.sleep(600)


def abort() -> None:
    import os

    os.abort()


def raise_enospc() -> None:
    raise OSError(28, "No space left on device", "/some/file")


def print_much_and_return(n: int) -> dict[str, int]:
    print("noise " * n)
    return json.loads(json.dumps({"n": n}))


def environment() -> list[str]:
    import os

    return sorted(os.environ)


def gptqmodel_in_little_memory(**kwargs: Any) -> None:
    """The real function, in a process that may have 3 GB of addresses."""
    import resource

    import torch  # noqa: F401 (its libraries first)

    from autoquant.backends import gptqmodel

    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    gptqmodel.quantize(**kwargs, report=lambda *_: None)


def format_against_library(folder: str, reader: str, bits: int) -> dict[str, Any]:
    """The largest difference between our reader's weights and those that GPTQModel's layers compute
    with, relative to the largest weight.
    """
    import numpy as np
    import torch
    from gptqmodel import BACKEND, GPTQModel

    from autoquant.formats import awq as awq_format
    from autoquant.formats import gptq as gptq_format

    model = GPTQModel.load(
        folder,
        device="cpu",
        backend=BACKEND.TORCH if reader == "gptq" else BACKEND.AWQ_TORCH,
        dtype=torch.float16 if reader == "gptq" else torch.bfloat16,
    )
    tensors, worst, layers = Tensors(folder), 0.0, 0
    for name, module in model.model.named_modules():
        if hasattr(module, "dequantize_weight") or type(module).__name__.startswith("Awq"):
            with torch.inference_mode():
                # AWQ's layers have no such method, but what they make of the unit vectors are their
                # weights
                weight = (
                    module.dequantize_weight()
                    if reader == "gptq"
                    else module(torch.eye(module.in_features, dtype=torch.bfloat16)).T
                )
            theirs = weight.float().numpy()
            ours = (
                gptq_format.dequantize(
                    {part: tensors.get(f"{name}.{part}") for part in gptq_format.PARTS}, bits
                )
                if reader == "gptq"
                else awq_format.dequantize(
                    {part: tensors.get(f"{name}.{part}") for part in awq_format.PARTS}
                )
            )
            theirs = (
                theirs
                if theirs.shape == ours.shape
                and np.abs(theirs - ours).max()
                < np.abs(theirs.T - ours if theirs.T.shape == ours.shape else np.inf).max()
                else theirs.T
            )
            worst, layers = (
                max(worst, float(np.abs(theirs - ours).max() / np.abs(ours).max())),
                layers + 1,
            )
    return {"layers": layers, "difference": worst}


def dequantized_against_transformers(folder: str) -> float:
    """Mean KL divergence between what transformers makes of a quantized folder and our own model of
    it in float32.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from autoquant.formats import dequantized

    ids = AutoTokenizer.from_pretrained(DEMO_FOLDER).encode(
        (DEMO_FOLDER.parent / "austen_persuasion_heldout.txt").read_text()[:3000],
        return_tensors="pt",
    )[:, :200]
    with torch.inference_mode():
        ours, theirs = (
            torch.log_softmax(model.eval()(input_ids=ids).logits.float(), -1)
            for model in (dequantized.load(folder), AutoModelForCausalLM.from_pretrained(folder))
        )
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def spoil(path: str, name: str) -> None:
    """Make one tensor of a safetensors file three times as large."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) * (3 if key == name else 1) for key in file.keys()}  # noqa: SIM118 (not a dict)
    save_file(tensors, path, metadata={"format": "pt"})


def instructions() -> list[Any]:
    """Whether arithmetic finds bfloat16 instructions on some processors, by who says that it has
    them.
    """
    import platform

    import torch

    from autoquant.backends import arithmetic

    found = []
    for machine, who in (
        ("x86_64", "oneDNN and AVX-512"),
        ("x86_64", "oneDNN"),
        ("x86_64", "neither"),
        ("aarch64", "oneDNN"),
    ):
        platform.machine = lambda machine=machine: machine  # type: ignore[misc]
        torch.ops.mkldnn._is_mkldnn_bf16_supported = lambda who=who: "oneDNN" in who  # type: ignore[misc]
        torch.cpu._is_avx512_bf16_supported = lambda who=who: "AVX" in who  # type: ignore[misc]
        found.append([machine, who, arithmetic.has_bfloat16_instructions()])
    return found


def products(instructions: bool) -> dict[str, Any]:
    """Linear layers and attention of 16 bits on a processor with bfloat16 instructions or not."""
    import torch

    from autoquant.backends import arithmetic

    torch.manual_seed(0)
    functional = torch.nn.functional
    plain, attention, multiply = (
        functional.linear,
        functional.scaled_dot_product_attention,
        torch.matmul,
    )
    arithmetic.has_bfloat16_instructions = lambda: instructions  # type: ignore[assignment]
    arithmetic.multiply_in_float32()
    layer, inputs, heads = (
        torch.nn.Linear(64, 48),
        torch.randn(5, 64),
        torch.randn(1, 2, 5, 16).bfloat16(),
    )
    exact = plain(inputs, layer.weight, layer.bias)
    rounded = plain(*(value.bfloat16().float() for value in (inputs, layer.weight, layer.bias)))
    found = {
        "replaced": functional.linear is not plain,
        "float32 as before": bool(
            torch.equal(functional.linear(inputs, layer.weight, layer.bias), exact)
        ),
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = functional.linear(inputs, layer.weight, bias=layer.bias)
    wide = heads.float()
    mask = torch.zeros(5, 5).bfloat16()
    return {
        **found,
        "mixed: rounded after the product only": (
            bool(torch.equal(mixed, exact.bfloat16()))
            and not torch.equal(mixed, rounded.bfloat16())
        ),
        "16 bits": bool(torch.equal(layer.bfloat16()(inputs.bfloat16()), rounded.bfloat16())),
        "attention": bool(
            torch.equal(
                functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask),
                attention(wide, wide, wide, attn_mask=mask.float()).bfloat16(),
            )
        ),
        "products": bool(
            torch.equal(torch.matmul(heads, heads.mT), multiply(wide, wide.mT).bfloat16())
        ),
    }


def widths_in_autoround(instructions: bool, model: str, folder: str) -> dict[str, Any]:
    """The dtypes a model has when AutoRound has done its first block, and whether products are
    replaced.
    """
    import auto_round
    import torch

    from autoquant.backends import arithmetic
    from autoquant.backends import auto_round as backend

    plain, real, held, seen = torch.nn.functional.linear, auto_round.AutoRound, [], {}
    # what it finds out by itself
    auto_round.utils.device.CpuInfo.bf16 = property(lambda _: instructions)
    torch.cuda.is_available = lambda: False
    arithmetic.has_bfloat16_instructions = lambda: instructions  # type: ignore[assignment]

    def given(model: Any, *args: Any, **more: Any) -> Any:
        held.append(model)
        return real(model, *args, **more)

    def report(done: int, total: int) -> None:
        if not seen:
            seen.update({str(weight.dtype): len(weight) for weight in held[0].parameters()})

    auto_round.AutoRound = given
    text = " ".join(str(i) for i in range(2000))
    backend.quantize(
        model,
        f"{folder}/out",
        {"texts": [text], "samples": 2, "length": 32, "seed": 0},
        format="auto_gptq",
        bits=4,
        group_size=32,
        sym=True,
        iterations=1,
        batch_size=2,
        scratch=f"{folder}/scratch",
        report=report,
    )
    return {"dtypes": sorted(seen), "products in float32": torch.nn.functional.linear is not plain}


def who(name: str) -> list[Any]:
    """This process, what it has for a variable, and its parent."""
    import os

    return [os.getpid(), os.environ.get(name), os.getppid()]


def loaded(names: list[str]) -> list[str]:
    import sys

    return [name for name in names if name in sys.modules]


def tiny(folder: str, architecture: str, **config: Any) -> str:
    """A random model of one block of an architecture, whose predictions differ from token to token;
    with the tokenizer of the bundled model.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    values = {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.1,
        **config,
    }
    model = kind(kind.config_class(**values))
    # where the head is tied to them, a model of one block would only repeat its input
    model.get_input_embeddings().weight.data *= 0.1
    return _save(model, folder)


def in_exllamav2(models: dict[str, dict[str, Any]], scratch: str) -> dict[str, Any]:
    """Tiny models (name -> architecture and config for :func:`tiny`) run by exllamav2, on the
    stand-in, beside transformers.
    """
    made = {}
    for name, config in models.items():
        folder = tiny(f"{scratch}/{name}", **config)
        made[name] = _beside_transformers(folder, f"{scratch}/{name}.staged")
    return made


def exllamav2_config(folder: str) -> dict[str, Any]:
    """What exllamav2 reads of a model's rotary embeddings."""
    from exllamav2 import ExLlamaV2Config

    config = ExLlamaV2Config()
    config.model_dir = folder
    config.prepare()
    return {
        "rope_theta": config.rotary_embedding_base,
        "scaling": config.alt_rope_method,
        "factor": getattr(config, "l3_rope_factor", None),
    }


def _beside_transformers(folder: str, staged: str) -> dict[str, Any]:
    """An unquantized model run by exllamav2's own modules, as its converter runs them, and by
    transformers.

    Returns how far logits are apart, relative to their size, and how far the states before a
    changed last token move.
    """
    import torch
    from exllamav2 import ExLlamaV2, ExLlamaV2Config
    from exllamav2.attn import ExLlamaV2Attention
    from exllamav2.parallel_decoder import ExLlamaV2ParallelDecoder
    from transformers import AutoModelForCausalLM

    from autoquant.backends.exllamav2 import converter

    config = ExLlamaV2Config()
    config.model_dir = str(converter.stage(Path(folder), Path(staged)))
    config.prepare()
    config.arch_compat_overrides()
    model = ExLlamaV2(config)
    model.load(lazy=True)
    torch.manual_seed(1)
    ids = torch.randint(3, 2048, (1, 48))

    @torch.inference_mode()
    def run(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, middle = tokens, tokens
        for module in model.modules:
            module.load()
            params = (
                ExLlamaV2Attention.Params(1, tokens.shape[1], 0, None, None)
                if isinstance(module, (ExLlamaV2Attention, ExLlamaV2ParallelDecoder))
                else None
            )
            states = module.forward(states, cache=None, attn_params=params)
            if module is model.modules[-2]:
                middle = states
        return states[:, :, :2048].float(), middle.float()

    logits, states = run(ids)
    other = ids.clone()
    other[0, -1] = 5 if ids[0, -1] != 5 else 6
    moved = float((run(other)[1][:, :-1] - states[:, :-1]).abs().max() / states.abs().max())
    with torch.inference_mode():
        theirs = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            .eval()(input_ids=ids)
            .logits
        )
    return {"apart": float((logits - theirs).norm() / theirs.norm()), "moved": moved}


def exl2_weights(folder: str, layers: list[str]) -> dict[str, Any]:
    """What exllamav2 itself (its make_q_matrix, on the stand-in for its kernels) makes of layers of
    an EXL2 folder: how tests/data/exl2/weights.json was made.
    """
    import hashlib

    import torch
    from exllamav2.ext import exllamav2_ext, make_q_matrix, none_tensor
    from safetensors.torch import load_file

    from autoquant.formats import exl2 as format

    tensors = load_file(f"{folder}/output.safetensors")
    made = {}
    for name in layers:
        parts = {part: tensors[f"{name}.{part}"] for part in format.PARTS}
        arrays = {part: value.numpy().copy() for part, value in parts.items()}
        weight = torch.empty(len(parts["q_invperm"]), parts["q_weight"].shape[1], dtype=torch.half)
        exllamav2_ext.reconstruct(
            make_q_matrix(
                {**parts, "q_perm": torch.argsort(parts["q_invperm"]).int()}, none_tensor
            ),
            weight,
        )
        weight = weight.T.contiguous()
        made[name] = {
            "shape": list(weight.shape),
            "sha256": hashlib.sha256(weight.numpy().tobytes()).hexdigest(),
            "bits": 8 * sum(one.nbytes for one in arrays.values()) / weight.numel(),
            "groups": format.groups(arrays),
        }
    return made


def _demo_logits(model: Any) -> Any:
    import torch
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(DEMO_FOLDER).encode(
        (DEMO_FOLDER.parent / "austen_persuasion_heldout.txt").read_text()[:800],
        return_tensors="pt",
    )[:, :100]
    with torch.inference_mode():
        return model.eval()(input_ids=ids).logits.float()


def hqq_grid(scratch: str) -> list[dict[str, Any]]:
    """Quantize the small bundled model in every way; our reader's largest difference from the
    library's weights in float32, the layers' mean error, and the bytes.
    """
    import numpy as np
    import torch

    from autoquant.backends import hqq
    from autoquant.core.bundled import MODELS as DEMOS
    from autoquant.formats import hqq as hqq_format
    from autoquant.formats.dequantized import weight

    original, out = Tensors(str(DEMOS["demo-small"])), []
    for bits in (1, 2, 3, 4, 8):
        for axis in (0, 1):
            for group_size in (-1, 16, 32, 64):
                folder = f"{scratch}/{bits}-{axis}-{group_size}"
                hqq.quantize(
                    str(DEMOS["demo-small"]),
                    folder,
                    bits=bits,
                    group_size=group_size,
                    axis=axis,
                    scratch=scratch,
                    report=lambda *_: None,
                )
                tensors, model = Tensors(folder), hqq_format.load(folder, dtype=torch.float32)
                layers = [
                    name.removesuffix(".W_q") for name in tensors.names() if name.endswith(".W_q")
                ]
                ours = {name: weight(tensors, name, {"quant_method": "hqq"}) for name in layers}
                theirs = {name: model.get_submodule(name).dequantize().numpy() for name in layers}
                before = {name: original.get(f"{name}.weight") for name in layers}
                out.append(
                    {
                        "bits": bits,
                        "axis": axis,
                        "group_size": group_size,
                        "bytes": tensors.bytes(),
                        "difference": max(
                            float(np.abs(ours[name] - theirs[name]).max()) for name in layers
                        ),
                        "error": float(
                            np.mean(
                                [
                                    np.linalg.norm(ours[name] - before[name])
                                    / np.linalg.norm(before[name])
                                    for name in layers
                                ]
                            )
                        ),
                    }
                )
                shutil.rmtree(folder)
    return out


def hqq_reloaded(folder: str, scratch: str) -> dict[str, Any]:
    """Logits of the library's own quantized model against those of the loaded folder, of one with
    code in a text, and of a model with tied embeddings.
    """
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from hqq.models.hf.base import AutoHQQHFModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    from autoquant.backends import folder as quantizers
    from autoquant.backends import hqq
    from autoquant.formats import hqq as hqq_format

    def by_library(path: str) -> Any:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float16)
        AutoHQQHFModel.quantize_model(
            model,
            BaseQuantizeConfig(nbits=4, group_size=64, axis=1),
            compute_dtype=torch.float16,
            device="cpu",
        )
        # the library has rounded its frequencies to float16
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
        return _demo_logits(model)

    def difference(one: Any, other: Any) -> float:
        return float((one - other).abs().max())

    theirs, model = by_library(str(DEMO_FOLDER)), hqq_format.load(folder)
    out = {
        "layers": sum(isinstance(module, HQQLinear) for module in model.modules()),
        "difference": difference(_demo_logits(model), theirs),
        "tokens": (
            model.generate(
                torch.tensor([[1, 5, 9]]), max_new_tokens=12, min_new_tokens=12, do_sample=False
            ).shape[1]
            - 3
        ),
    }
    shutil.copytree(folder, scratch, ignore=shutil.ignore_patterns(".autoquant"))
    path = Path(scratch) / "model.safetensors"
    tensors = load_file(path)
    evil = torch.tensor(list(b"__import__('os')._exit(7)"), dtype=torch.uint8)
    save_file(
        {
            name: evil.clone() if name.endswith(("compute_dtype", "unpack_view_dtype")) else tensor
            for name, tensor in tensors.items()
        },
        path,
        metadata={"format": "pt"},
    )
    out["spoiled difference"] = difference(_demo_logits(hqq_format.load(scratch)), theirs)
    tied = AutoModelForCausalLM.from_pretrained(DEMO_FOLDER)
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.half().save_pretrained(f"{scratch}-tied")
    quantizers.SHARD = "1MB"
    hqq.quantize(
        f"{scratch}-tied",
        f"{scratch}-quantized",
        bits=4,
        group_size=64,
        axis=1,
        scratch=scratch,
        report=lambda *_: None,
    )
    out["shards"] = len(list(Path(f"{scratch}-quantized").glob("model-0000*.safetensors")))
    out["tied difference"] = difference(
        _demo_logits(hqq_format.load(f"{scratch}-quantized")), by_library(f"{scratch}-tied")
    )
    return out


def hqq_incomplete(folder: str, scratch: str) -> None:
    """Load a folder that lacks a tensor and has one too many."""
    import torch
    from safetensors.torch import load_file, save_file

    from autoquant.formats import hqq as hqq_format

    shutil.copytree(folder, scratch, ignore=shutil.ignore_patterns(".autoquant"))
    tensors = load_file(Path(scratch) / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(
        {**tensors, "nobody": torch.zeros(3)},
        Path(scratch) / "model.safetensors",
        metadata={"format": "pt"},
    )
    hqq_format.load(scratch)


def bitsandbytes_grid(scratch: str) -> list[dict[str, Any]]:
    """Quantize the bundled model to every type: our reader's largest difference from the library's
    weights, and of logits from those before saving.
    """
    import bitsandbytes
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from autoquant.backends import bitsandbytes as backend
    from autoquant.formats import dequantized

    out = []
    for kind, double in (("nf4", True), ("nf4", False), ("fp4", True), ("int8", True)):
        folder = f"{scratch}/{kind}-{double}"
        backend.quantize(
            str(DEMO_FOLDER),
            folder,
            quant_type=kind,
            double_quant=double,
            threshold=6.0,
            scratch=scratch,
            report=lambda *_: None,
        )
        tensors, block, model = (
            Tensors(folder),
            dequantized.quantization(folder),
            AutoModelForCausalLM.from_pretrained(folder),
        )
        settings = (
            BitsAndBytesConfig(load_in_8bit=True)
            if kind == "int8"
            else BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=kind,
                bnb_4bit_use_double_quant=double,
                bnb_4bit_compute_dtype=torch.float16,
            )
        )
        unsaved = AutoModelForCausalLM.from_pretrained(
            DEMO_FOLDER, dtype=torch.float16, quantization_config=settings
        )
        worst, layers = 0.0, dequantized.format_of(block).layers(tensors)
        for name in layers:
            weight = model.get_submodule(name).weight
            if kind == "int8":
                theirs = bitsandbytes.functional.int8_vectorwise_dequant(weight.data, weight.SCB)
            else:
                weight.quant_state.dtype = torch.float32
                theirs = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
                weight.quant_state.dtype = torch.float16
            worst = max(
                worst,
                float(
                    np.abs(theirs.float().numpy() - dequantized.weight(tensors, name, block)).max()
                ),
            )
        out.append(
            {
                "type": kind + ("" if double else "-single"),
                "layers": len(layers),
                "difference": worst,
                "bytes": tensors.bytes(),
                "reloaded": float((_demo_logits(model) - _demo_logits(unsaved)).abs().max()),
            }
        )
    return out


def llm_int8_layer(folder: str) -> dict[str, Any]:
    """LLM.int8() of one layer by NumPy from its definition, against the library's layer and the
    model that is measured; and the whole model's logits.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from autoquant.formats import dequantized

    name = "model.layers.1.mlp.up_proj"
    tensors = Tensors(folder)
    codes, scale = (
        tensors.get(f"{name}.weight").astype(np.float64),
        tensors.get(f"{name}.SCB").astype(np.float64) / 127,
    )
    x = (
        np.random.default_rng(0)
        .standard_normal((7, codes.shape[1]))
        .astype(np.float16)
        .astype(np.float32)
    )
    x[2, 5], x[4, 9] = 8.5, -7.25
    plain = np.abs(x).max(0) < 6
    rows = np.abs(np.where(np.abs(x) >= 6, 0, x)).max(1).astype(np.float64) / 127
    rounded = np.round(x / rows[:, None])
    wanted = (rounded[:, plain] @ codes[:, plain].T) * rows[:, None] * scale + x[:, ~plain] @ (
        codes[:, ~plain] * scale[:, None]
    ).T
    models = {
        "measured": dequantized.load(folder),
        "weights only": dequantized.load(folder, activations=False),
        "library": AutoModelForCausalLM.from_pretrained(folder),
    }
    out: dict[str, Any] = {"outliers": int((~plain).sum())}
    for who, model in models.items():
        given = torch.from_numpy(x).to(torch.float16 if who == "library" else torch.float32)
        with torch.inference_mode():
            seen = model.eval().get_submodule(name)(given).double().numpy()
        out[f"{who} against numpy"] = float(np.linalg.norm(seen - wanted) / np.linalg.norm(wanted))
    return {**out, **layers_on_real_inputs(models)}


def layers_on_real_inputs(models: dict[str, Any]) -> dict[str, float]:
    """Every quantized layer of the library's model on a text: the largest relative difference of
    its outputs from what the layer that is measured makes of the same inputs, and the smallest from
    what it would make with its activations left alone.
    """
    import torch

    met: dict[str, tuple[Any, Any]] = {}
    for name, module in models["library"].named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(
                lambda _, inputs, output, name=name: met.update(
                    {name: (inputs[0].detach().float(), output.detach().float())}
                )
            )
    _demo_logits(models["library"])
    off: dict[str, list[float]] = {"measured": [], "weights only": []}
    for name, (inputs, output) in met.items():
        for who in off:
            with torch.inference_mode():
                off[who].append(
                    float((models[who].get_submodule(name)(inputs) - output).norm() / output.norm())
                )
    return {
        "layers": len(met),
        "measured, worst layer": max(off["measured"]),
        "weights only, best layer": min(off["weights only"]),
    }


def e4m3(x: Any) -> Any:
    """Round to the nearest number of float8 E4M3, by its definition: 3 bits of fraction, exponents
    from -6 on, at most 448.
    """
    import numpy as np

    step = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(x), 2.0**-6))) - 3)
    return np.clip(np.round(x / step) * step, -448, 448)


def w8a8_layer(folder: str) -> dict[str, Any]:
    """A layer with activations quantized by NumPy from the definition of the folder's scheme,
    against the library's layer and the model that is measured; then all layers.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from autoquant.formats import dequantized

    name = "model.layers.1.mlp.up_proj"
    tensors, block = Tensors(folder), dequantized.quantization(folder)
    codes, scale = (
        tensors.get(f"{name}.weight").astype(np.float64),
        tensors.get(f"{name}.weight_scale").astype(np.float64)[:, 0],
    )
    x = np.float32(0.1) * np.random.default_rng(0).standard_normal((7, codes.shape[1])).astype(
        np.float32
    )
    # of float32, as the scale: the largest input lies on the edge between two codes
    largest = np.abs(x).max(1, keepdims=True)
    if block["format"] == "float-quantized":
        steps = largest / np.float32(448)
        rounded = e4m3(x / steps)
        assert np.array_equal(codes, e4m3(codes)), "weights are numbers of E4M3"
    else:
        steps = (
            tensors.get(f"{name}.input_scale")[0]
            if f"{name}.input_scale" in tensors
            else largest / np.float32(127.5)
        )
        rounded = np.clip(np.round(x / steps), -128, 127)
        assert np.array_equal(codes, np.round(codes)), "weights are whole numbers"
    wanted = (rounded.astype(np.float64) @ codes.T) * steps * scale
    models = {
        "measured": dequantized.load(folder),
        "weights only": dequantized.load(folder, activations=False),
        "library": AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    }
    _demo_logits(models["library"])  # it dequantizes its weights when it first runs
    out: dict[str, Any] = {}
    for who, model in models.items():
        with torch.inference_mode():
            # the library knows tokens by the second dimension
            seen = model.eval().get_submodule(name)(torch.from_numpy(x)[None])[0].double().numpy()
        out[f"{who} against numpy"] = float(np.linalg.norm(seen - wanted) / np.linalg.norm(wanted))
    return {**out, **layers_on_real_inputs(models)}


def found_on_path(name: str) -> str:
    return shutil.which(name) or ""
