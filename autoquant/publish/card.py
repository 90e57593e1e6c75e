"""The model card: README.md of a run folder, through huggingface_hub's ModelCard."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from autoquant.core import licenses
from autoquant.core.bundled import MODELS
from autoquant.core.errors import InputError
from autoquant.core.files import sha256_of, write_atomically
from autoquant.core.records import COMPARED, LLAMA_CPP, WEIGHTS, Artifact, RunRecord
from autoquant.core.version import __version__
from autoquant.display import gains, plot, tables
from autoquant.methods import METHODS

PROJECT = "AutoQuant"
RUNNING = "\n## How to run\n"


def base_model(result: RunRecord) -> str | None:
    """The unquantized model's repository: as the user says, or where it came from; None for a
    folder of unknown origin.
    """
    name = result.base_model or result.source.id
    if result.adapter_alone and (adapted := result.source.adapted) is not None:
        name = result.base_model or (adapted.id if adapted.revision else "")
    return name if licenses.is_repo_id(name) else None


def data(result: RunRecord) -> ModelCardData:
    """The card's metadata. Licence and language are the source's; where the source names none, none
    is invented.

    A licence that is none of the Hub's identifiers becomes "other" with its name, as the Hub wants
    it.
    """
    source, base = result.source, base_model(result)
    known = source.license is None or source.license in licenses.IDENTIFIERS
    name = source.license_name or (None if known else str(source.license))
    name = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") if name else None
    return ModelCardData(
        base_model=base,
        base_model_relation=_relation(result) if base else None,
        license=source.license if known else "other",
        license_name=name,
        license_link=source.license_link,
        language=list(source.language) or None,
        library_name=METHODS[result.method].library_name,
        pipeline_tag="image-text-to-text" if result.sees else "text-generation",
        quantized_by=PROJECT,
        tags=[
            result.method,
            {"adapter": "lora"}.get(_relation(result), "quantized"),
            "autoquant",
            *(["imatrix"] if any(a.facts.get("imatrix") for a in result.artifacts) else []),
        ],
    )


def _relation(result: RunRecord) -> str:
    """What the files are to the base model, in the Hub's words."""
    return "adapter" if result.adapter_alone else "quantized"


def command(result: RunRecord) -> str:
    """The command line that makes the same files."""
    source = result.source
    embedded = next((name for name, folder in MODELS.items() if folder == source.folder), "")
    named = source.where if source.revision else source.gguf or source.id
    words = ["autoquant", "quantize", result.method, embedded or named]
    if result.base_model:
        words += ["--base-model", result.base_model]
    for name, value in result.provenance["options"].items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, ",".join(value) if isinstance(value, (list, tuple)) else str(value)]
    return shlex.join(words)


def metadata(text: str) -> dict[str, Any]:
    """A card's front matter as plain values. Raises InputError if it is no YAML."""
    try:
        return dict(ModelCard(text, ignore_metadata_errors=True).data.to_dict())  # type: ignore[no-untyped-call]
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(
            "README.md: the lines between --- cannot be read as YAML"
            f" ({' '.join(str(error).split())[:160]})"
        ) from None


def with_base_model(text: str, name: str) -> str:
    """A card that names this base model, otherwise as it is."""
    card = ModelCard(text, ignore_metadata_errors=True)
    relation = card.data.get("base_model_relation")
    adapter = relation == "adapter" or "lora" in (card.data.get("tags") or ())
    card.data["base_model"] = name
    card.data["base_model_relation"] = "adapter" if adapter else "quantized"
    return str(card)


def at(text: str, repo: str) -> str:
    """A card with the name of the repository it goes to where its section on running says MODEL.
    The rest stays, so also what somebody has edited.
    """
    before, heading, after = text.partition(RUNNING)
    section, following, rest = after.partition("\n## ")
    section = re.sub(
        r"\bMODEL\b",
        repo,
        re.sub(r" ?Replace `MODEL` with the name of the repository[^\n]*\.", "", section),
    )
    return before + heading + re.sub(r"\n{3,}", "\n\n", section) + following + rest


def text(result: RunRecord, *, links: Mapping[str, str] | None = None) -> str:
    """The whole card as Markdown with its YAML front matter. ``links`` are where each type's files
    lie, if not beside the card.
    """
    method, source = METHODS[result.method], result.source
    ordered = sorted(result.artifacts, key=lambda a: -a.bytes)
    head = (
        "file",
        "type",
        "bits/weight",
        "size",
        "perplexity",
        "KL mean",
        "top-1 agreement",
        "when to use it",
    )
    body = []
    for artifact in ordered:
        quality = tables.quality(artifact.evaluation)
        more = len(artifact.files) - 1
        shards = f" (+ {more} more {'files' if artifact.is_folder else 'shards'})" if more else ""
        link = f"[{artifact.name}]({(links or {}).get(artifact.type, './')}{artifact.name})"
        if COMPARED in artifact.facts:
            link = "(not here: made to compare with)"
        body.append(
            (
                f"{link}{shards}",
                artifact.type,
                f"{artifact.bits_per_weight:.2f}",
                tables.size(artifact.bytes),
                quality[0],
                quality[1],
                quality[4],
                method.describe_type(artifact),
            )
        )
    base = base_model(result)
    alone = result.adapter_alone
    unnamed = f"**{(source.adapted or source).id if alone else source.id}**"
    named = f"[{base}](https://huggingface.co/{base})" if base else unnamed
    parts = [
        f"# {source.name}: {method.title}",
        "",
        f"The LoRA adapter **{source.id}** of {named}, as a file that is loaded beside the model's."
        if alone
        else (
            f"Quantized versions of {named} ({source.architecture}, {source.parameters / 1e6:,.1f}"
            " million parameters), each"
            f" opened{', checked and measured' if result.reference else ' and checked'} after it"
            " was made."
        ),
        "",
        tables.markdown(head, body, left=2, words=1),
        "",
    ]
    if result.reference is not None:
        reference, text_name = result.reference, result.provenance.get("measured on", "")
        parts += [
            (
                "Perplexity ± one standard error, and KL divergence in nats per token against the"
                f" {tables.reference_model(source)} (perplexity {reference.perplexity:.3f} ±"
                f" {reference.perplexity_error:.3f}, {reference.engine}), all on the same"
                f' {reference.tokens:,} predictions of one text ({text_name}). "Top-1 agreement" is'
                " the share of positions where both models rank the same token first."
                f"{_run_by(ordered)} Compare rows with each other; perplexities on another text or"
                " tokenizer are not comparable."
            ),
            "",
        ]
        if plot.PLOT in result.extras or sum(a.evaluation is not None for a in ordered) > 1:
            seen = plot.described({source.id: result})
            parts += [f"![{seen}](./{plot.PLOT})", ""]
    kinds_head, kinds = tables.by_kind(result)
    if kinds:
        parts += ["Mean KL divergence by kind of text:", "", tables.markdown(kinds_head, kinds), ""]
    if gained := gains.of(result):
        parts += [*(f"**{one}.**\n" for one in gained)]
    notes = [f"- {artifact.type}: {note}." for artifact in ordered for note in artifact.notes]
    if notes:
        parts += ["Worth knowing:", "", *notes, ""]
    recipe_head, recipes = gains.recipes(result)
    if recipes:
        chosen = tables.markdown(recipe_head, recipes, left=len(recipe_head))
        parts += [method.chosen, "", chosen, ""]
    parts += [
        RUNNING.strip(),
        "",
        method.how_to_run(result),
        "",
        "## How these files were made",
        "",
    ]
    provenance = [(name, _in_words(value)) for name, value in result.provenance.items()]
    parts += [
        tables.markdown(
            ("", ""),
            [
                (name, f"`{value}`" if name in ("source sha256",) else value or "defaults")
                for name, value in provenance
            ],
            left=2,
        ),
        "",
        "```bash",
        command(result),
        "```",
        "",
        "sha256 of the files:",
        "",
        "```",
        *(
            f"{stored.sha256}  {stored.name}"
            for artifact in ordered
            if COMPARED not in artifact.facts
            for stored in artifact.files
        ),
        *(f"{sha256_of(path)}  {path.name}" for path in _towers(result)),
        "```",
        "",
        f"Made with {PROJECT} {__version__}.",
        "",
    ]
    if source.license is None:
        parts.insert(
            4, "The source names no licence in its card: look it up before you share these files.\n"
        )
    return str(ModelCard(f"---\n{data(result).to_yaml()}\n---\n\n" + "\n".join(parts)))


def _towers(result: RunRecord) -> list[Path]:
    """The files of what a model sees or hears with, beside the artifacts."""
    beside = [result.folder / name for name in result.extras if name.startswith("mmproj-")]
    return [path for path in beside if path.is_file()]


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_in_words(one)}" for name, one in value.items())
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def write(result: RunRecord) -> Path:
    """Write README.md and the plot into the run folder, each all or nothing."""
    plot.write(result, result.folder / plot.PLOT)
    path = result.folder / "README.md"
    write_atomically(path, text(result))
    return path


def _run_by(artifacts: Sequence[Artifact]) -> str:
    """What ran the files, in a sentence."""
    engines = {one.evaluation.engine for one in artifacts if one.evaluation is not None}
    if WEIGHTS in engines:
        return (
            " The files were measured by their weights, which transformers ran in float32;"
            " llama.cpp rounds activations too, which adds a little to the KL divergence."
        )
    return " llama.cpp ran the files." if LLAMA_CPP in engines else ""
