"""What llama.cpp's converter is helped with: the config as it is written, a card that it cannot
read, and tensors that are no part of the model. Its classes are changed in this worker alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import pieces
from autoquant.core import cards
from autoquant.runtime import trace

# what the converter reads under a name that transformers 5 no longer writes: its name -> where the
# value is now
MOVED: Mapping[str, tuple[str, ...]] = {
    "n_ctx": ("n_positions",),
    "rotary_pct": ("rope_parameters", "partial_rotary_factor"),
    "rotary_emb_base": ("rope_parameters", "rope_theta"),
}
SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"  # llama.cpp takes true where it is not given
# what stands for a token where the embeddings have a row and the tokenizer none: as the converter
# does for other kinds of tokenizers (5: unused)
PADDING = {
    "tokenizer.ggml.scores": -10000.0,
    "tokenizer.ggml.token_type": 5,
}
TOKENS = "tokenizer.ggml.tokens"
# transformers 5 saves a SigLIP or CLIP tower without the name of its inner model
SIGLIP = re.compile(r"\bvision_tower\.(?=(?:embeddings|encoder|post_layernorm|pre_layrnorm)\.)")
KEYS_AND_VALUES = re.compile(r"\.layers\.(\d+)\.self_attn\.(?:k_proj|v_proj|k_norm)\.weight$")
PHI3_TOKENS = (b"</s>", b"<unk>", b"<s>", b"<|endoftext|>")


@dataclass(frozen=True)
class Taking:
    """Which tensors the converter takes. ``drop`` are left out; ``prefix`` comes before the names
    of a checkpoint that was saved from the bare model; ``drafts`` are tensors of blocks for
    multi-token prediction: without any, none are looked for, even if config.json counts some.
    """

    drop: list[str] = field(default_factory=list)
    prefix: str = ""
    drafts: list[str] = field(default_factory=list)


def read_everything(base: Any, metadata: Any, taking: Taking, name: str = "") -> None:
    """Change the converter's classes: ``base`` is its module conversion.base, ``metadata`` the
    class of gguf-py. What that guesses of a folder's name it guesses of the model's ``name``: a
    folder may be called by a hash.
    """
    guess = metadata.apply_metadata_heuristic

    def apply_metadata_heuristic(found: Any, card: Any, config: Any, path: Any, total: int) -> Any:
        return guess(found, card, config, Path(name) if name and path else path, total)

    metadata.apply_metadata_heuristic = staticmethod(apply_metadata_heuristic)
    load, index = base.ModelBase.load_hparams, base.ModelBase.index_tensors
    drop, drafts = frozenset(taking.drop), frozenset(taking.drafts)

    def load_hparams(folder: Path, *arguments: Any, **named: Any) -> dict[str, Any]:
        with trace.library("convert: config"):  # imports most of transformers
            config = dict(load(folder, *arguments, **named))
        return complete(config, Path(folder) / "config.json")

    def index_tensors(self: Any, *arguments: Any, **named: Any) -> Any:
        own = self.filter_tensors

        def take(item: tuple[str, Any]) -> Any:
            name, read = item
            named_so = name in drafts and name.startswith("mtp.")
            if name in drop or (named_so and not type(self).supports_mtp_export):
                return None
            known = name.startswith((taking.prefix, "lm_head."))
            whole = name if known else f"{taking.prefix}{name}"
            return own((SIGLIP.sub("vision_tower.vision_model.", whole), read))

        self.filter_tensors = take
        try:
            found = index(self, *arguments, **named)
        finally:
            del self.filter_tensors
        return {**found, **shared(found, self.hparams)}

    def load_model_card(folder: Path | None = None) -> dict[str, Any]:
        """No card can stop a conversion: gguf-py fails on front matter of other kinds."""
        return cards.read(folder)[0] if folder is not None else {}

    base.ModelBase.load_hparams = staticmethod(load_hparams)
    base.ModelBase.index_tensors = index_tensors
    metadata.load_model_card = staticmethod(load_model_card)
    if not taking.drafts:
        base.ModelBase.no_mtp = True


def shared(found: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values of Gemma 3n's last layers, which take those of an earlier layer: llama.cpp
    asks for tensors of their own, as the published files have them, and uses none. transformers 5
    does not save them; the earlier layer's stand for them.
    """
    inner = config.get("text_config") or config
    sharing, kinds = inner.get("num_kv_shared_layers") or 0, inner.get("layer_types") or []
    if not str(inner.get("model_type")).startswith("gemma3n") or not sharing:
        return {}
    first = len(kinds) - sharing
    more = {}
    for name, read in found.items():
        layer = KEYS_AND_VALUES.search(name)
        if layer is None or int(layer[1]) >= first:
            continue
        for later in range(first, len(kinds)):
            own = name.replace(f".{layer[1]}.", f".{later}.", 1)
            if own not in found and kinds[later] == kinds[int(layer[1])]:
                more[own] = read
    return more


def complete_fields(writer: Any, space: bool | None) -> None:
    """Fields without which llama.cpp would read the file otherwise, or not at all: ``space`` says
    whether the tokenizer puts a space before a text (None: the converter knows). There is a token
    for every row of the embeddings. llama.cpp looks for Phi-3's tokens in every model of that name,
    and fails where they are not.
    """
    fields = writer.kv_data[0]
    if space is False and SPACE_PREFIX not in fields:
        writer.add_add_space_prefix(False)
    listed: Any = fields[TOKENS].value if TOKENS in fields else ()
    embeddings = writer.tensors[0].get("token_embd.weight")
    rows = range(len(listed), embeddings.shape[0] if embeddings and listed else 0)
    for key, value in PADDING.items():
        if key in fields:
            fields[key].value = [*fields[key].value, *(value for _ in rows)]
    if rows:
        bare = [f"[PAD{row}]" for row in rows]
        same = [one.encode() for one in bare] if isinstance(listed[0], bytes) else bare
        fields[TOKENS].value = [*listed, *same]
    tokens = {one.encode() if isinstance(one, str) else bytes(one) for one in listed}
    name = fields.get("general.name")
    if name and not tokens.issuperset(PHI3_TOKENS):
        name.value = re.sub(r"(?i)(phi)(-?)3", r"\1_3", name.value)


def vocabulary(converter: Any) -> Callable[[], None]:
    """A converter's own set_vocab; where that looks for a tokenizer.model and there is none, the
    tokenizer is of the other kind: of bytes, in tokenizer.json.
    """
    own = converter.set_vocab

    def set_vocab() -> None:
        try:
            own()
        except (FileNotFoundError, ValueError) as error:
            if pieces.FILE not in str(error):
                raise
            converter._set_vocab_gpt2()

    return set_vocab


def complete(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """A config as transformers reads it, with the fields of config.json that it has renamed or
    dropped, and those that the converter has other names for.
    """
    written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for data, raw in ((config, written), *_inner(config, written)):
        for name, value in raw.items():
            data.setdefault(name, value)
        for name, place in MOVED.items():
            value = data
            for part in place:
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                data.setdefault(name, value)
    return config


def _inner(config: dict[str, Any], written: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The configs inside a config, beside those of the file."""
    return [
        (value, written[name])
        for name, value in config.items()
        if isinstance(value, dict) and isinstance(written.get(name), dict)
        if name.endswith("_config")
    ]
