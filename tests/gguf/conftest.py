"""GGUF end to end on the bundled model, with the real converter and the real llama.cpp: what its
tests have in common.
"""

from __future__ import annotations

from typing import Any

QUICK: dict[str, Any] = {"pre_tokenizer": "gpt-2", "evaluate": "off"}
