"""The model card: README.md of a run folder, through huggingface_hub's ModelCard."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from autoquant import __version__, report
from autoquant.journal import write_atomically
from autoquant.methods import METHODS
from autoquant.results import Result
from autoquant.source import DEMO, DEMO_FOLDER

PROJECT = "AutoQuant"


def data(result: Result) -> ModelCardData:
    """The card's metadata. The licence is the source's; where the source names none, none is invented."""
    source = result.source
    return ModelCardData(
        base_model=source.id, base_model_relation="quantized", license=source.license, language=list(source.language) or None,
        library_name=METHODS[result.method].library_name, pipeline_tag="text-generation", quantized_by=PROJECT,
        tags=[result.method, "quantized", "autoquant", *(["imatrix"] if any(a.facts.get("imatrix") for a in result.artifacts) else [])])


def command(result: Result) -> str:
    """The command line that makes the same files."""
    words = ["autoquant", "quantize", result.method, DEMO if result.source.folder == DEMO_FOLDER else result.source.id]
    for name, value in result.provenance["options"].items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, ",".join(value) if isinstance(value, (list, tuple)) else str(value)]
    return " ".join(words)


def text(result: Result) -> str:
    """The whole card as Markdown with its YAML front matter."""
    method, source = METHODS[result.method], result.source
    ordered = sorted(result.artifacts, key=lambda a: -a.bytes)
    head = ("file", "type", "bits/weight", "size", "perplexity", "KL mean", "same top token", "who it is for")
    body = []
    for artifact in ordered:
        quality = report.quality(artifact.evaluation)
        shards = f" (+ {len(artifact.files) - 1} more shards)" if len(artifact.files) > 1 else ""
        body.append((f"[{artifact.name}](./{artifact.name}){shards}", artifact.type, f"{artifact.bits_per_weight:.2f}", report.size(artifact.bytes),
                     quality[0], quality[1], quality[4], method.who_for(artifact.type)))
    parts = [f"# {source.name}: {method.title}", "",
             f"Quantized versions of **{source.id}** ({source.architecture}, {source.parameters / 1e6:,.1f} million parameters), "
             f"each opened, checked{' and measured' if result.reference else ''} after it was made.", "", report.markdown(head, body, left=2), ""]
    if result.reference is not None:
        reference = result.reference
        parts += [f"Perplexity ± one standard error, and KL divergence in nats a token against the unquantized model (perplexity {reference.perplexity:.3f} "
                  f"± {reference.perplexity_error:.3f}, {reference.engine}), all on the same {reference.tokens:,} predictions of a held-out text. "
                  "\"Same top token\" is the share of positions where both models rank the same token first. Compare rows with each other; "
                  "perplexities on another text or tokenizer are not comparable.", "", f"![Size against quality](./{report.PLOT})", ""]
    notes = [f"- {artifact.type}: {note}." for artifact in ordered for note in artifact.notes]
    if notes:
        parts += ["Worth knowing:", "", *notes, ""]
    parts += ["## How to run", "", method.how_to_run(result), "", "## How these files were made", ""]
    provenance = [(name, _in_words(value)) for name, value in result.provenance.items()]
    parts += [report.markdown(("", ""), [(name, f"`{value}`" if name in ("source sha256",) else value or "defaults") for name, value in provenance], left=2), "",
              "```bash", command(result), "```", "", "sha256 of the files:", "", "```",
              *(f"{stored.sha256}  {stored.name}" for artifact in ordered for stored in artifact.files), "```", "",
              f"Made with {PROJECT} {__version__}.", ""]
    if source.license is None:
        parts.insert(4, "The source names no licence in its card: look it up before you share these files.\n")
    return str(ModelCard(f"---\n{data(result).to_yaml()}\n---\n\n" + "\n".join(parts)))


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_in_words(one)}" for name, one in value.items())
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def write(result: Result) -> Path:
    """Write README.md and the plot into the run folder, each all or nothing."""
    report.plot(result, result.folder / report.PLOT)
    path = result.folder / "README.md"
    write_atomically(path, text(result))
    return path
