"""What a result shows of itself beside its table: its model card and its checks."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoquant.core.records import RunRecord
from autoquant.display import html, tables


class Card(str):
    """A model card's text."""

    folder: Path | None = None

    def beside(self, folder: Path) -> Card:
        """The same card, which knows the folder where its picture lies."""
        self.folder = folder
        return self

    def _repr_markdown_(self) -> str:
        # the metadata is for the Hub
        shown = str(self).split("\n---\n", 1)[-1] if self.startswith("---\n") else str(self)

        def inside(source: re.Match[str]) -> str:  # a notebook looks for pictures beside itself
            picture = self.folder / source[1] if self.folder is not None else None
            return (
                f"](data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()})"
                if picture is not None and picture.is_file()
                else source[0]
            )

        return below_a_notebooks(re.sub(r"\]\((?:\./)?([\w-]+\.png)\)", inside, shown))


def below_a_notebooks(text: str) -> str:
    """A page in Markdown with headings two steps lower: a notebook's own stand above them. Code,
    which has lines with # too, stays as it is.
    """
    parts = text.split("```")
    parts[::2] = [re.sub(r"^#", "###", part, flags=re.MULTILINE) for part in parts[::2]]
    return "```".join(parts)


@dataclass(frozen=True, repr=False)
class Checks:
    """The checks of one result, or of several by name, to be shown."""

    results: Mapping[str, RunRecord]

    def __str__(self) -> str:
        several = len(self.results) > 1
        return "\n\n".join(
            f"{name}\n{tables.checks(one)}" if several else tables.checks(one)
            for name, one in self.results.items()
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        several = len(self.results) > 1
        return "".join(
            html.checks(one, name if several else "") for name, one in self.results.items()
        )
