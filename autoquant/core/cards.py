"""The front matter of a model card as people write it, made into what the Hub defines: text where
text belongs, lists of text where lists do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoquant.core import licenses

FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.S | re.M)


def read(folder: Path) -> tuple[dict[str, Any], str]:
    """What a folder's README.md says of the model, cleaned (:func:`clean`), and why it could not be
    read (empty if it could, or if there is none).
    """
    import yaml

    path = folder / "README.md"
    if not path.is_file():
        return {}, ""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:  # an older encoding: what matters is ASCII
        text = raw.decode("latin-1")
    found = FRONT_MATTER.match(text)
    if not found:
        return {}, ""
    try:
        data = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError) as error:
        return {}, f"its front matter is no YAML ({type(error).__name__})"
    if data is None:
        return {}, ""
    if not isinstance(data, dict):
        return {}, "its front matter has no fields"
    return clean(data), ""


def clean(data: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields that are used, each of one type; what cannot be understood is left out.

    ``license`` is an identifier of the Hub, or "other" with ``license_name``; several licences are
    "other". ``language``, ``base_model`` and ``tags`` are lists of text.
    """
    cleaned: dict[str, Any] = {}
    named = [text.strip() for text in _texts(data.get("license")) if text.strip()]
    ids = [_identifier(name) for name in named]
    if len(ids) == 1 and ids[0]:
        cleaned["license"] = ids[0]
    elif named:
        cleaned["license"] = "other"
        cleaned["license_name"] = _slug("-and-".join(named))
    for name in ("license_name", "license_link", "pipeline_tag", "library_name"):
        value = data.get(name)
        if isinstance(value, str) and value.strip():
            cleaned[name] = value.strip()
    languages = data.get("language")
    given = languages if isinstance(languages, list) else [languages]
    plain = (one.strip().lower() if isinstance(one, str) else one for one in given)
    codes = licenses.languages(one for one in plain if isinstance(one, str) or one is False)
    if codes:
        cleaned["language"] = list(codes)
    bases = [_repository(text) for text in _texts(data.get("base_model"))]
    if any(bases):
        cleaned["base_model"] = [base for base in bases if base]
    tags = [text for text in _texts(data.get("tags")) if text.strip()]
    if tags:
        cleaned["tags"] = tags
    return cleaned


def _texts(value: Any) -> list[str]:
    """The texts in a field that holds one, a list, or something else; numbers count as text."""
    if isinstance(value, dict):
        value = value.get("name")
    many = value if isinstance(value, list) else [value]
    found = []
    for one in many:
        if isinstance(one, dict):
            one = one.get("name")
        if isinstance(one, str) or (isinstance(one, (int, float)) and not isinstance(one, bool)):
            found.append(str(one))
    return found


def _identifier(name: str) -> str:
    """The Hub's identifier of a licence that is written in some way; empty if it is none."""
    slug = re.sub(r"[\s_]+", "-", name.strip().lower())
    return slug if slug in licenses.IDENTIFIERS else ""


def _slug(name: str) -> str:
    """A name as ``license_name`` must be."""
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-")


def _repository(name: str) -> str:
    """owner/name from a name or an address; empty if it is neither."""
    match = re.fullmatch(r"(?:https?://(?:huggingface\.co|hf\.co)/)?([^/\s]+/[^/\s]+?)/?", name)
    return match[1] if match and licenses.is_repo_id(match[1]) else ""
