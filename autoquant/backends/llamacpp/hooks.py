"""What llama.cpp's converter is helped with: the config as it is written, a card that it cannot
read, and tensors that are no part of the model. Its classes are changed in this worker alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoquant.core import cards
from autoquant.runtime import trace

# what the converter reads under a name that transformers 5 no longer writes: its name -> where the
# value is now
MOVED: Mapping[str, tuple[str, ...]] = {
    "n_ctx": ("n_positions",),
    "rotary_pct": ("rope_parameters", "partial_rotary_factor"),
    "rotary_emb_base": ("rope_parameters", "rope_theta"),
}


@dataclass(frozen=True)
class Taking:
    """Which tensors the converter takes. ``drop`` are left out; ``prefix`` comes before the names
    of a checkpoint that was saved from the bare model; ``drafts`` are tensors of blocks for
    multi-token prediction: without any, none are looked for, even if config.json counts some.
    """

    drop: list[str] = field(default_factory=list)
    prefix: str = ""
    drafts: list[str] = field(default_factory=list)


def read_everything(base: Any, metadata: Any, taking: Taking) -> None:
    """Change the converter's classes: ``base`` is its module conversion.base, ``metadata`` the
    class of gguf-py.
    """
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
            return own((name if known else f"{taking.prefix}{name}", read))

        self.filter_tensors = take
        try:
            found = index(self, *arguments, **named)
        finally:
            del self.filter_tensors
        return found

    def load_model_card(folder: Path | None = None) -> dict[str, Any]:
        """No card can stop a conversion: gguf-py fails on front matter of other kinds."""
        return cards.read(folder)[0] if folder is not None else {}

    base.ModelBase.load_hparams = staticmethod(load_hparams)
    base.ModelBase.index_tensors = index_tensors
    metadata.load_model_card = staticmethod(load_model_card)
    if not taking.drafts:
        base.ModelBase.no_mtp = True


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
