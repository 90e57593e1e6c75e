"""A tokenizer as Gemma, Phi-3 and Mistral have it: SentencePiece's pieces in tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autoquant.core.bundled import CALIBRATION_TEXT

SPACE = "▁"
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
SIZE = 2048


def write(folder: Path, more: tuple[str, ...], *, space_before: bool) -> None:
    """Train pieces on the bundled text and write tokenizer.json and its config, without a
    tokenizer.model. ``more`` are special tokens after them; ``space_before``: a text begins with a
    space, as in Llama 2 and Phi-3.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", SPACE)
    trained.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    kept = [*SPECIAL, *BYTES]
    trainer: Any = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=kept, show_progress=False, limit_alphabet=200
    )
    trained.train_from_iterator(CALIBRATION_TEXT.read_text(encoding="utf-8").splitlines(), trainer)
    data = json.loads(trained.to_str())
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    listed = {**{name: i for i, name in enumerate(SPECIAL)}}
    listed |= {name: SIZE + i for i, name in enumerate(more)}
    data["added_tokens"] = [
        {"id": id, "content": name, "special": True, **plain} for name, id in listed.items()
    ]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    data["normalizer"] = (
        {"type": "Sequence", "normalizers": [prepend, replace]} if space_before else replace
    )
    data["pre_tokenizer"] = None
    data["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
