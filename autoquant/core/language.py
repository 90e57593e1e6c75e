"""What people read, in their language: English sentences are the keys of a table, and
``languages/tr.toml`` has what each is in Turkish. Another language is one more file.

Errors, logs, the command line, and what goes to the Hub (card, plot) are English in all languages.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoquant.core.errors import InputError

log = logging.getLogger(__name__)
FOLDER = Path(__file__).resolve().parent.parent / "languages"
ENGLISH = "en"
HOLE = re.compile(r"\{(\w+)\}")
LEAST = 5  # letters that a finished sentence is recognized by: "{one} and {other}" has too few
_chosen = [ENGLISH]


def languages() -> tuple[str, ...]:
    """The languages that there are, by their codes."""
    return (ENGLISH, *sorted(one.stem for one in FOLDER.glob("*.toml")))


@functools.cache
def table(language: str) -> dict[str, str]:
    """English sentence -> the same in a language; empty for English. ``{names}`` in both stand for
    what is put in.
    """
    if language == ENGLISH:
        return {}
    return tomllib.loads((FOLDER / f"{language}.toml").read_text(encoding="utf-8"))


def use(language: str) -> None:
    """Say everything from here on in a language, by its code. Raises InputError for one that there
    is not.
    """
    if language not in languages():
        raise InputError(f"language: {language!r}: there are {', '.join(languages())}")
    _chosen[0] = language


def chosen() -> str:
    """The language that is spoken now."""
    return _chosen[0]


@contextlib.contextmanager
def spoken(language: str) -> Iterator[None]:
    """Speak a language for a while. Raises InputError as :func:`use` does."""
    before = chosen()
    use(language)
    try:
        yield
    finally:
        _chosen[0] = before


def say(english: str, **values: Any) -> str:
    """A sentence in the chosen language, English where it has none; ``values`` go where its {names}
    stand.
    """
    text = table(chosen()).get(english, english)
    return text.format(**values) if values else text


def told(text: str) -> str:
    """A finished English sentence in the chosen language: one that was written where no reader is
    known (by a worker, in a journal). What stood in its {names} is told too; a sentence that is not
    in the table stays as it is.
    """
    if chosen() == ENGLISH or not text:
        return text
    same = table(chosen()).get(text)
    if same is not None and not HOLE.search(text):
        return same
    for pattern, other in _patterns(chosen()):
        found = pattern.fullmatch(text)
        if found:
            return other.format(**{name: told(one) for name, one in found.groupdict().items()})
    log.debug("no translation: %s", text)
    return text


@functools.cache
def _patterns(language: str) -> list[tuple[re.Pattern[str], str]]:
    """What finished sentences look like; those that leave the least open come first."""
    fixed = {one: len("".join(HOLE.sub("", one).split())) for one in table(language)}
    holed = [one for one, count in fixed.items() if HOLE.search(one) and count >= LEAST]
    made = []
    for english in sorted(holed, key=lambda one: -fixed[one]):
        parts = HOLE.split(english)  # text, name, text …
        pattern = "".join(
            f"(?P<{part}>.+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts)
        )
        made.append((re.compile(pattern, re.DOTALL), table(language)[english]))
    return made
