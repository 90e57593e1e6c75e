"""Whether the converter knows a model's tokenizer, and whether llama.cpp makes the same tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoquant.runtime import trace

# Digits, contractions, code, accents, scripts without spaces, emoji and runs of blanks: where
# pre-tokenizers differ.
TOKENIZER_SAMPLE = (
    "It was 1811, or 31415 days ago; they'd said: \"I'LL come, won't you?\"  He paid $3.50"
    " (50%)...\n\n\ndef f(x):\n\treturn {'a': x**2, \"b\": [1, 22, 333, 4444]}  # comment\n    if x"
    " != 0 && y >= 10:\nÇa coûte 12 €, naïve Übergröße, ağırlıklar, Ελληνικά, русский текст,"
    " हिन्दी, العربية, עברית\n日本語のテキストと中文字符 한국어 ภาษาไทย 🚀🦙 ½ x² — “quotes” … \t"
    " end \r\n"
)


def pre_tokenizers(base: Any) -> list[str]:
    """The pre-tokenizer names the converter knows."""
    import inspect

    return sorted(
        set(re.findall(r'res = "([^"]+)"', inspect.getsource(base.TextModel.get_vocab_base_pre)))
    )


def compare_tokens(model: str, header: str, text: str) -> str:
    """Compare the source tokenizer's ids with the GGUF file's on a text; "" if equal, else where
    they part.
    """
    from transformers import AutoTokenizer

    from autoquant.backends.llamacpp import library

    with trace.library("tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
        theirs = list(tokenizer.encode(text, add_special_tokens=False))
    ours = library.tokens_of(header, text)
    if ours == theirs:
        return ""
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    return (
        f"token ids differ from the source tokenizer's at token {at} of {len(theirs)}: after"
        f" {tokenizer.decode(theirs[max(0, at - 6) : at])!r} it has {theirs[at : at + 4]}, GGUF"
        f" {ours[at : at + 4]}"
    )


def end_generation(model: str, header: str, writer: Any, rewrite: Callable[[], None]) -> str:
    """Let every token that ends generation in the source do so in the GGUF file: where config.json
    or generation_config.json names several, gguf-py writes the tokenizer's one, and llama.cpp
    knows some others by name. Those that it does not know become end of turn and end of message in
    ``writer``, and ``rewrite`` writes the ``header`` anew. Returns "", or what could not be said.
    """
    from autoquant.backends.llamacpp import library

    missing, turn = library.not_ending(header, _ends(Path(model)))
    if not missing:
        return ""
    fields = [("eom", writer.add_eom_token_id)]
    if not turn:
        fields.insert(0, ("eot", writer.add_eot_token_id))
    for token, (_, add) in zip(missing, fields, strict=False):
        add(token)
    rewrite()
    left, _ = library.not_ending(header, missing)
    if not left:
        return ""
    return (
        f"tokens {', '.join(map(str, left))} end generation in the source, and GGUF has no field"
        " for so many: name them as stop tokens where you run it"
    )


def _ends(folder: Path) -> list[int]:
    """The ids of the tokens that end generation, as transformers reads them, where there are
    several.
    """
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for place in (config, config.get("text_config") or {}):
            ids = place.get("eos_token_id")
            found += ids if isinstance(ids, list) else []
    return [id for id in dict.fromkeys(found) if isinstance(id, int) and id >= 0]


def refuse_unknown_pre_tokenizer(model: str, name: str, known: list[str]) -> str:
    """Say in words that the converter does not know a tokenizer, and what to do."""
    path = Path(model) / "tokenizer.json"
    described = ""
    if path.is_file():
        spec = json.loads(path.read_text(encoding="utf-8")).get("pre_tokenizer") or {}
        parts = spec.get("pretokenizers") or [spec]
        described = (
            " (its tokenizer.json says: " + ", ".join(str(part.get("type")) for part in parts) + ")"
        )
    some = [
        one
        for one in ("gpt-2", "llama-bpe", "qwen2", "deepseek-llm", "smollm")
        if one in known or one == "gpt-2"
    ]
    return (
        f"llama.cpp does not know the pre-tokenizer of {name}{described}. If it splits text like a"
        f" known one, name that: pre_tokenizer={some[0]!r} (--pre-tokenizer {some[0]}), or"
        f" {', '.join(some[1:])} …; token ids are then compared before anything is written"
    )
