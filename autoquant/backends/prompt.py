"""The prompt that every finished file continues before it counts as done."""

from __future__ import annotations

PROMPT = "Once upon a time, there was a"
GENERATED = 12  # tokens


def in_words(text: str) -> str:
    """What a model has said after PROMPT, in one line."""
    return f"{PROMPT} … {' '.join(text.split())}"
