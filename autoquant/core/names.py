"""Names in letters that every system and command takes in a file name."""

from __future__ import annotations

import re
import unicodedata

# letters that Unicode does not take apart
LETTERS = dict(zip("ıßøØłŁđæœ", ("i", "ss", "o", "O", "l", "L", "d", "ae", "oe"), strict=True))


def plain(name: str) -> str:
    """A name without accents and other scripts' letters; "model" if nothing is left."""
    own = "".join(LETTERS.get(letter, letter) for letter in name)
    ascii_only = unicodedata.normalize("NFKD", own).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_only).strip("-.") or "model"
