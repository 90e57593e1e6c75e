"""Models that tests make, and what the bundled text gives through one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from autoquant.core.bundled import MODEL as DEMO_FOLDER


def save(model: Any, folder: str) -> str:
    """Write a model in 16 bits, with the tokenizer of the bundled one; returns the folder."""
    import torch

    model.to(torch.float16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_FOLDER / name, Path(folder) / name)
    return folder


def random_model(folder: str, hidden_size: int) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return save(
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
    return save(
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
    return save(model, folder)


def demo_logits(model: Any) -> Any:
    """A model's logits on the beginning of the bundled held-out text."""
    import torch
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(DEMO_FOLDER).encode(
        (DEMO_FOLDER.parent / "austen_persuasion_heldout.txt").read_text()[:800],
        return_tensors="pt",
    )[:, :100]
    with torch.inference_mode():
        return model.eval()(input_ids=ids).logits.float()


def dequantized_by_transformers(folder: str, form: str) -> float:
    """The largest difference between the weights that transformers makes of a quantized folder and
    those of our 16-bit form of it.
    """
    import torch
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

    method = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
    kind = FineGrainedFP8Config if method["quant_method"] == "fp8" else Mxfp4Config
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=kind(dequantize=True)
    ).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(form, dtype=torch.bfloat16).state_dict()
    return max(
        float((ours[name].float() - one.float()).abs().max()) for name, one in theirs.items()
    )


def templated(source: str) -> tuple[str, str, str]:
    """A conversation with a system message in a template that takes none; a built-in one, and what
    is said of another, in a template that takes nothing. Runs in a worker.
    """
    from transformers import AutoTokenizer

    from autoquant.calibration import rendered
    from autoquant.core import bundled, texts
    from autoquant.core.errors import InputError

    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    own: texts.Document = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    ]
    without = rendered(tokenizer, own)
    tokenizer.chat_template = "{{ messages + 1 }}"
    kind = "conversations"
    builtin = rendered(tokenizer, texts.parts(kind, "x", bundled.EVALUATION)[kind][0])
    try:
        return without, builtin, rendered(tokenizer, own)
    except InputError as error:
        return without, builtin, str(error)


def of_case(folder: str, name: str) -> str:
    """One of the small models of bench.cases, with the tokenizer of the bundled one."""
    from bench.cases.architectures import make

    make(name, folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_FOLDER / file, Path(folder) / file)
    return folder
