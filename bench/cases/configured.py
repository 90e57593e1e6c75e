"""Altered copies of the bundled model: configs and tokenizers (see sources.py)."""

from __future__ import annotations

import json
from pathlib import Path

from bench.cases.altered import case, config, mark


@case
def context_text(folder: Path) -> None:
    """A string where a number belongs."""
    config(folder, max_position_embeddings="256")


@case
def context_null(folder: Path) -> None:
    """Nothing where a number belongs."""
    config(folder, max_position_embeddings=None)


@case
def dtype_auto(folder: Path) -> None:
    """A dtype that is none."""
    config(folder, drop=("dtype",), torch_dtype="auto")


@case
def config_marked(folder: Path) -> None:
    """A byte order mark before config.json."""
    mark(folder / "config.json")


@case
def tokenizer_config_marked(folder: Path) -> None:
    """A byte order mark before tokenizer_config.json."""
    mark(folder / "tokenizer_config.json")


@case
def token_without_row(folder: Path) -> None:
    """A token was added and the embeddings were not resized."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    more = {"id": 2048, "content": "[PAD]", "special": True}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data["added_tokens"].append({**more, **plain})
    path.write_text(json.dumps(data), encoding="utf-8")


@case
def tokenizer_missing(folder: Path) -> None:
    """No tokenizer at all."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


@case
def tokenizer_of_its_own(folder: Path) -> None:
    """A tokenizer class that is code of the model's own, and no tokenizer.json."""
    (folder / "tokenizer.json").unlink()
    mapped = {"AutoTokenizer": ["own.OwnTokenizer", None]}
    config(folder, "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=mapped)
    (folder / "own.py").write_text("open('CODE_RAN', 'w').write('x')\n")


@case
def own_code_known(folder: Path) -> None:
    """Code of the model's own for an architecture that transformers has too."""
    config(folder, auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (folder / "own.py").write_text("open('CODE_RAN', 'w').write('x')\n")


@case
def own_code_unknown(folder: Path) -> None:
    """Code of the model's own for an architecture that transformers has not."""
    own_code_known(folder)
    config(folder, model_type="fancyllama", architectures=["FancyLlamaForCausalLM"])


@case
def several_templates(folder: Path) -> None:
    """A chat template beside the usual one."""
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("T {{ messages }}")


@case
def encoder(folder: Path) -> None:
    """BERT, which continues no text."""
    config(folder, model_type="bert", architectures=["BertModel"])


@case
def several_ends(folder: Path) -> None:
    """Several tokens end generation, and llama.cpp knows no name among them."""
    config(folder, eos_token_id=[2, 5])
    config(folder, "generation_config.json", eos_token_id=[2, 5], pad_token_id=2)
