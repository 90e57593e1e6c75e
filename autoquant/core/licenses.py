"""The Hub's rules for a card's metadata, checked here because the Hub's own check needs the
network; and what licences ask.

Identifiers: https://huggingface.co/docs/hub/repositories-licenses (read 2026-11). Fields:
https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

IDENTIFIERS = frozenset(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1
llama3.2 llama3.3 llama4 grok2-community gemma unknown other""".split()
)
RELATIONS = ("adapter", "merge", "quantized", "finetune")
# carried along with the quantized files
FILES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_repo_id(name: str) -> bool:
    """Whether a text has the shape of a Hub repository: owner/name."""
    return (
        bool(_REPO_ID.fullmatch(name))
        and len(name) <= 96
        and "--" not in name
        and ".." not in name
        and not name.endswith((".git", "."))
    )


def languages(given: Iterable[Any]) -> tuple[str, ...]:
    """The valid language codes among a card's; YAML reads Norwegian's "no" as false."""
    named = ("no" if one is False else str(one) for one in given)
    return tuple(one for one in named if _LANGUAGE.fullmatch(one))


def card_problems(data: Mapping[str, Any]) -> list[str]:
    """What the Hub would refuse or ignore in a card's metadata, one line each; empty if it is
    right.
    """
    problems: list[str] = []
    licence = data.get("license")
    if licence is not None and licence not in IDENTIFIERS:
        problems.append(
            f"license: {licence!r} is none of the Hub's identifiers; use 'other' with license_name"
            " and license_link"
        )
    if licence == "other" and not data.get("license_name"):
        problems.append("license: 'other' needs a license_name")
    name = data.get("license_name")
    if name is not None and not re.fullmatch(r"[a-z0-9-.]+", str(name)):
        problems.append(f"license_name: {name!r} must be lower case letters, digits, - and .")
    for language in _listed(data.get("language")):
        if not _LANGUAGE.fullmatch(str(language)):
            problems.append(f"language: {language!r} is no ISO 639 code (en, tr, …)")
    for base in _listed(data.get("base_model")):
        if not is_repo_id(str(base)):
            problems.append(f"base_model: {base!r} is no Hub repository (owner/name)")
    relation = data.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        problems.append(f"base_model_relation: {relation!r} is none of {', '.join(RELATIONS)}")
    tags = data.get("tags")
    if tags is not None and not (
        isinstance(tags, list) and all(isinstance(tag, str) and tag for tag in tags)
    ):
        problems.append("tags: must be a list of texts")
    for field in ("library_name", "pipeline_tag"):
        value = data.get(field)
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_.-]+", str(value)):
            problems.append(f"{field}: {value!r} is no identifier")
    return problems


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def advice(licence: str | None, *, gated: bool, name: str | None = None) -> list[str]:
    """What to know before sharing quantized files of a model under this licence, one line each."""
    out = []
    shown = f"{name} ({licence})" if name else licence
    if gated:
        out.append(
            "the source is gated: its owner shares it only with people who accept terms. Files made"
            " from it fall under the same terms"
        )
    if licence in (None, "unknown"):
        out.append(
            "the source names no licence: without one you have no right to share files made from"
            " it. Look it up or ask its owner"
        )
    elif licence == "other" or (licence or "").startswith(
        ("llama", "gemma", "deepfloyd", "grok", "apple-", "intel-", "h-research")
    ):
        out.append(
            f"licence {shown}: has conditions for passing the model on (such as a copy of the"
            " licence, a notice, a name, uses it forbids); read it first"
        )
    elif licence and ("-nc" in licence or "noncommercial" in licence):
        out.append(f"licence {shown}: not for commercial use; the quantized files inherit that")
    if licence and "-nd" in licence:
        out.append(f"licence {shown}: forbids sharing derivatives, which quantized files may be")
    if licence and "rail" in licence:
        out.append(f"licence {shown}: its use restrictions must be passed on with the files")
    return out
