"""What the lesson says, in the language of its reader: English texts are the keys of one table.

The code of a notebook is the same in all languages (tools/sync_notebooks.py copies it, and puts
comments and the form into the language by this table too).
"""

from __future__ import annotations

from typing import Any

from autoquant.core.errors import InputError

TURKISH: dict[str, str] = {}
LANGUAGES: dict[str, dict[str, str]] = {"en": {}, "tr": TURKISH}
_chosen = ["en"]


def use(language: str) -> None:
    """Say everything from here on in this language: en or tr."""
    if language not in LANGUAGES:
        raise InputError(f"language: {language!r}: there are {', '.join(LANGUAGES)}")
    _chosen[0] = language


def say(english: str, **values: Any) -> str:
    """A text in the chosen language; ``values`` go where its {names} stand."""
    text = LANGUAGES[_chosen[0]].get(english, english)
    return text.format(**values) if values else text
