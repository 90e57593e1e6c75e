"""A SentencePiece tokenizer that lies there as tokenizer.json only, as the converter reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FILE = "tokenizer.model"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "▁"


def staged(model: str, folder: Path) -> tuple[Path, bool | None]:
    """The model's folder, or ``folder`` with links to its files and a tokenizer.model: for
    conversions of Gemma, Phi-3 and others read no other form of a SentencePiece tokenizer. Also
    whether that puts a space before a text; None if nothing was made.
    """
    source = Path(model)
    path = source / "tokenizer.json"
    if (source / FILE).is_file() or not path.is_file():
        return source, None
    data = json.loads(path.read_text(encoding="utf-8"))
    made = _proto(data, _rows(source))
    if made is None:
        return source, None
    for one in source.iterdir():
        (folder / one.name).symlink_to(one.resolve())
    (folder / FILE).write_bytes(made)
    return folder, _begins_with_space(data)


def _rows(folder: Path) -> int | None:
    """How many tokens a model has rows for, by its config."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows = (config.get("text_config") or config).get("vocab_size")
    return rows if isinstance(rows, int) else None


def _proto(data: dict[str, Any], rows: int | None) -> bytes | None:
    """tokenizer.json as a SentencePiece model; None if it is not of that kind: pairs of pieces that
    are merged, with bytes for what has no piece.

    SentencePiece merges the pair whose piece has the highest score, tokenizers the pair that comes
    first in its list, which was made by these scores: so a piece's score is minus the place where
    it first comes out of a merge, and those that come out of none follow.
    """
    model = data.get("model") or {}
    vocabulary, merges = model.get("vocab") or {}, model.get("merges") or []
    # where every byte has a token nothing is unknown, but SentencePiece wants a token for it
    unknown = model.get("unk_token") or "<unk>"
    if not (model.get("byte_fallback") and merges and unknown in vocabulary):
        return None
    from sentencepiece import sentencepiece_model_pb2

    added = {one["content"]: one for one in data.get("added_tokens") or ()}
    ids = {**vocabulary, **{name: one["id"] for name, one in added.items()}}
    if sorted(ids.values()) != list(range(len(ids))):
        return None
    first: dict[str, int] = {}
    for place, pair in enumerate(merges):
        first.setdefault("".join(pair if isinstance(pair, list) else pair.split(" ")), place)
    messages: Any = sentencepiece_model_pb2  # made when it is imported
    written = messages.ModelProto()
    kinds = written.SentencePiece
    for name, id in sorted(ids.items(), key=lambda item: item[1])[:rows]:
        if name == unknown:
            kind = kinds.UNKNOWN
        elif name in added:
            kind = kinds.CONTROL if added[name].get("special") else kinds.USER_DEFINED
        else:
            kind = kinds.BYTE if BYTE.fullmatch(name) else kinds.NORMAL
        score = -float(first.get(name, len(merges) + id))
        written.pieces.add(piece=name, score=score, type=kind)
    written.trainer_spec.model_type = written.trainer_spec.BPE
    written.trainer_spec.byte_fallback = True
    written.trainer_spec.vocab_size = len(written.pieces)
    written.trainer_spec.unk_id = ids[unknown]
    written.normalizer_spec.name = "identity"
    written.normalizer_spec.add_dummy_prefix = _begins_with_space(data)
    written.normalizer_spec.remove_extra_whitespaces = False
    return bytes(written.SerializeToString())


def _begins_with_space(data: dict[str, Any]) -> bool:
    """Whether a tokenizer puts a space before a text, by normalizer or pre-tokenizer."""
    normalizer, splitter = data.get("normalizer") or {}, data.get("pre_tokenizer") or {}
    for one in (normalizer, *normalizer.get("normalizers", ())):
        if one.get("type") == "Prepend" and one.get("prepend") == SPACE:
            return True
    return any(
        one.get("type") == "Metaspace" and one.get("prepend_scheme", "always") != "never"
        for one in (splitter, *splitter.get("pretokenizers", ()))
    )
