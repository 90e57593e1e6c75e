"""How to run a folder: the parts of cards that several methods share."""

from __future__ import annotations

from autoquant.core.records import RunRecord

INTRODUCED = (
    "Replace `MODEL` with the name of the repository that holds these files, or with this folder."
)


def with_transformers(record: RunRecord, install: str, more: str = "") -> str:
    """With transformers; ``install`` is what that needs from PyPI, ``more`` what else is to be
    said.
    """
    if record.experts:
        return (
            "transformers 5 does not load quantized experts; vLLM and SGLang load such files, for"
            " the mixtures of experts that they know."
        )
    kind, read, wrapped = "AutoModelForCausalLM", "AutoTokenizer", "tokenizer"
    if record.sees:
        kind, read, wrapped = "AutoModelForImageTextToText", "AutoProcessor", "processor"
    text = 'text="Once upon a time"' if record.sees else '"Once upon a time"'
    return f"""**transformers** (`pip install {install}`){more}:

```python
from transformers import {kind}, {read}

model = {kind}.from_pretrained("MODEL", device_map="auto")
{wrapped} = {read}.from_pretrained("MODEL")
inputs = {wrapped}({text}, return_tensors="pt").to(model.device)
print({wrapped}.decode(model.generate(**inputs, max_new_tokens=32)[0]))
```"""


def with_vllm(record: RunRecord, more: str = "", options: str = "") -> str:
    """Served by vLLM; ``options`` are further ones of its command."""
    return f"""**vLLM**, on a GPU{more}, in a terminal:

```bash
vllm serve MODEL --max-model-len {min(record.source.context, 4096)}{options}
```"""


WITH_GPTQMODEL = """**GPTQModel** (`pip install gptqmodel`):

```python
from gptqmodel import GPTQModel

model = GPTQModel.load("MODEL")
print(model.tokenizer.decode(model.generate("Once upon a time")[0]))
```"""
