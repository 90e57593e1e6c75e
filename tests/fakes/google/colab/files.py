"""Stands in for Colab's module: what would be downloaded is noted."""

from __future__ import annotations

DOWNLOADED: list[str] = []


def download(name: str) -> None:
    """Note a download."""
    DOWNLOADED.append(name)
