"""What is said of GGUF files: in the card, and to Ollama."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import converter as llama
from autoquant.backends.llamacpp.types import file_type
from autoquant.core.files import write_atomically
from autoquant.core.records import TOWERS, Artifact, Check, RunRecord, Source, Stored
from autoquant.evaluate.scoring import CONTEXT
from autoquant.methods.gguf import requantize
from autoquant.methods.gguf.convert import fallback_note
from autoquant.methods.gguf.imatrix import Imatrix
from autoquant.methods.gguf.options import GgufOptions

log = logging.getLogger(__name__)


def provenance(
    source: Source,
    options: GgufOptions,
    whole: str,
    towers: str,
    imatrix: Imatrix | None,
    sensitivities: str,
) -> dict[str, Any]:
    """What the card says of how the files were made; ``whole`` is the type that the converter makes
    or the source has.
    """
    version = llama.installed_version()
    said: dict[str, Any] = {
        "llama.cpp": f"of llama-cpp-python {version}",
    }
    if source.gguf:
        lost = "; what that has lost stays lost" if requantize.note(source) else ""
        said["made of"] = f"{source.gguf} ({whole}{lost})"
    else:
        said["converted as"] = whole
    if towers:
        said[TOWERS] = towers
    if options.pre_tokenizer:
        said["pre-tokenizer"] = (
            f"{options.pre_tokenizer} (assumed; token ids equal to the source tokenizer's"
            " on a sample)"
        )
    if sensitivities:
        said["sensitivities"] = sensitivities
    if imatrix is not None:
        facts = imatrix.facts or {}
        length = facts.get("length", min(CONTEXT, source.context))
        unit = facts.get("unit", "chunks")
        length_in_words = (
            "" if facts["chunks"] == "given" else f", {facts['chunks']} {unit} of {length} tokens"
        )
        by = f", on the {facts['on']} file" if "on" in facts else ""
        by += ", by transformers, block by block" if "by" in facts else ""
        said["importance matrix"] = facts["text"] + length_in_words + by
        if "calibration sha256" in facts:
            said["calibration sha256"] = facts["calibration sha256"]
    return said


def artifact(
    answer: Mapping[str, Any],
    *,
    files: Iterable[Stored],
    imatrix: bool,
    uploaded: str,
    more: Mapping[str, Any],
) -> Artifact:
    """A verified file, by what its check answers. Where that names no files they are gone: then
    they are these ``files``, ``uploaded`` to a repository. ``more`` are facts of it.
    """
    name, note = answer["type"], fallback_note(answer["plan"])
    kind = file_type(name)
    return Artifact(
        type=name,
        files=tuple(Stored(*stored) for stored in answer["files"]) or tuple(files),
        bits_per_weight=answer["bits_per_weight"],
        notes=(note,) if note else (),
        checks=tuple(Check(*seen) for seen in answer["checks"]),
        facts={
            "imatrix": imatrix and kind.imatrix != "no",
            "nominal": kind.bits_per_weight,
            **more,
            **({} if answer["files"] else {"deleted": uploaded}),
        },
    )


def extras(
    options: GgufOptions, artifacts: tuple[Artifact, ...], mmproj: str, made_here: tuple[str, ...]
) -> tuple[str, ...]:
    """The files beside the artifacts; ``made_here``: of those that types are made by."""
    whole = [one for one in artifacts if options.modelfile and len(one.files) == 1]
    modelfiles = (f"{one.name.removesuffix('.gguf')}.Modelfile" for one in whole)
    own = [mmproj] if mmproj else []
    return (*own, *made_here, *modelfiles)


def write_modelfile(folder: Path, artifact: Artifact, mmproj: str) -> None:
    """What Ollama makes a model of a file by, beside it."""
    if len(artifact.files) > 1:
        log.warning("no Modelfile for %s: Ollama does not load split GGUF files", artifact.type)
        return
    name = artifact.name.removesuffix(".gguf")
    write_atomically(
        folder / f"{name}.Modelfile",
        f"# ollama create {name.lower()} -f {name}.Modelfile\n# Ollama takes the chat template and"
        f" the stop tokens from the file itself.\nFROM ./{artifact.name}\n"
        + (f"FROM ./{mmproj}\n" if mmproj else ""),
    )


def how_to_run(record: RunRecord) -> str:
    """The card's section on running the files."""
    offered = record.offered
    pick = next((a for a in offered if a.type == "Q4_K_M"), offered[0])
    name = record.source.name.lower()
    beside = next((name for name in record.extras if name.startswith("mmproj-")), "")
    tower = f"FROM ./{beside}\\n" if beside else ""
    ollama = f"""printf 'FROM ./{pick.name}\\n{tower}' > Modelfile
ollama create {name} -f Modelfile && ollama run {name}
ollama run hf.co/MODEL:{pick.type}    # the same, from the Hub"""
    if len(pick.files) > 1:
        ollama = "# takes one file: llama-gguf-split --merge (of llama.cpp) makes one of the shards"
    seeing = f"""
# with a picture or a sound; from the Hub it takes the mmproj file by itself
llama-mtmd-cli -m {pick.name} --mmproj {beside} --image picture.jpg -p "What is this?"
llama-mtmd-cli -hf MODEL:{pick.type} --image picture.jpg -p "What is this?"
"""
    return f"""Replace `MODEL` with the name of the repository that holds these files.

**llama.cpp**, in a terminal:

```bash
llama-cli -m {pick.name} -p "Once upon a time"
llama-cli -hf MODEL:{pick.type} -p "Once upon a time"    # the same, fetched from the Hub
{seeing if beside else ""}```

**Ollama**, in a terminal:

```bash
{ollama}
```

**LM Studio**, in a terminal: `lms import {pick.name}`

**Python** (`pip install llama-cpp-python`):

```python
from llama_cpp import Llama

llm = Llama("{pick.name}", n_ctx={min(record.source.context, 4096)})
print(llm("Once upon a time", max_tokens=32)["choices"][0]["text"])
```"""
