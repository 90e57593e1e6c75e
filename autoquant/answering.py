"""result.answer(): what the unquantized model and the quantized ones say to one prompt."""

from __future__ import annotations

import functools
import html
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import converter as llama
from autoquant.core.cache import new_log
from autoquant.core.errors import AutoQuantError, InputError
from autoquant.core.language import say, told
from autoquant.core.machine import cores
from autoquant.core.progress import in_notebook
from autoquant.core.records import Artifact, RunRecord
from autoquant.display.tables import reference_name
from autoquant.methods import METHODS
from autoquant.runtime import environments, preload, process

PROMPT = "Write two sentences about the sea."
TOKENS, MOST = 64, 4096


@dataclass
class Answers:
    """What each model says to ``prompt`` in ``tokens`` at most: ``said`` by name, the unquantized
    one first; ``why`` one has said nothing. Prints one below the other; a notebook shows them side
    by side.
    """

    prompt: str
    tokens: int = TOKENS
    said: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def text_of(self, name: str) -> str:
        """What one has said so far, or why it says nothing."""
        return self.said.get(name) or f"({self.why.get(name, '…')})"

    def __str__(self) -> str:
        parts = (f"--- {told(name)}\n{self.text_of(name)}\n" for name in self.said)
        return "\n".join([f"{self.prompt}\n", *parts])

    __repr__ = __str__  # what a Python prompt shows

    def _repr_html_(self) -> str:
        columns = "".join(
            "<div style='flex:1 1 18em;min-width:15em;border-top:2px solid #2a6f97;padding:4px 0'>"
            f"<b>{html.escape(told(name))}</b><p style='white-space:pre-wrap;margin:4px 0'>"
            f"{html.escape(self.text_of(name).strip())}</p></div>"
            for name in self.said
        )
        return (
            f"<div><p><b>{html.escape(say('Prompt:'))}</b> {html.escape(self.prompt)}"
            f" ({html.escape(say('at most {n} tokens of each', n=self.tokens))})</p>"
            f"<div style='display:flex;flex-wrap:wrap;gap:1.5em'>{columns}</div></div>"
        )


@preload.kept()
def answer(asked: Sequence[tuple[str, RunRecord, Artifact]], prompt: str, tokens: int) -> Answers:
    """Let each unquantized model, once, and then its files answer a prompt, one after the other; in
    a notebook the words appear as they come. ``asked``: what a file is called, its run, and itself.
    Raises InputError.
    """
    if not prompt.strip():
        raise InputError("prompt: it is empty; write some words")
    if not 1 <= tokens <= MOST:
        raise InputError(f"tokens: {tokens} is not allowed; allowed: 1 to {MOST}")
    made = Answers(prompt, tokens)
    shown = _Shown(made)
    sources = {record.source.id: record for _, record, _ in asked}
    jobs: dict[str, Callable[..., dict[str, Any]]] = {
        reference_name(record.source)
        if len(sources) == 1
        else f"{record.source.id}, {told(reference_name(record.source))}": functools.partial(
            _source, record, prompt, tokens
        )
        for record in sources.values()
    }
    jobs |= {
        name: functools.partial(_artifact, record, artifact, prompt, tokens)
        for name, record, artifact in asked
    }
    made.said = dict.fromkeys(jobs, "")
    for name, job in jobs.items():

        def heard(text: str, name: str = name) -> None:
            made.said[name] = text
            shown.update()

        try:
            answered = job(heard)
            made.said[name] = answered["text"]
            if not answered["text"]:
                made.why[name] = say("it says nothing")
            if answered["lacking"]:
                made.why[name] = say(
                    "it needs {size} GB of memory to be run here",
                    size=f"{answered['lacking'] / 1e9:.1f}",
                )
        except AutoQuantError as error:
            made.why[name] = told(str(error))
        shown.update()
    shown.done()
    return made


class _Shown:
    """The answers on the page, where there is one, while they come."""

    def __init__(self, made: Answers) -> None:
        self._made, self._handle = made, None
        if in_notebook():
            display = importlib.import_module("IPython.display").display
            self._handle = display(made, display_id=True)

    def update(self) -> None:
        """Show what there is now."""
        if self._handle is not None:
            self._handle.update(self._made)

    def done(self) -> None:
        """Leave the page to what the cell itself shows."""
        if self._handle is not None:
            self._handle.update(importlib.import_module("IPython.display").HTML(""))


def _source(record: RunRecord, prompt: str, tokens: int, heard: Any) -> dict[str, Any]:
    source = record.source
    if source.remote:
        raise InputError(
            f"the weights of {source.id} stayed on the Hub, and are not here to be run"
        )
    if not source.at_hand or not _weights_at_hand(record):
        raise InputError("the unquantized model does not lie here any more")
    if source.gguf:
        return _gguf(source.folder / source.gguf, "", prompt, tokens, heard)
    return _folder(source.folder, {}, prompt, tokens, heard, quantized=False)


def _weights_at_hand(record: RunRecord) -> bool:
    return all((record.source.folder / name).is_file() for name in record.source.weights)


def _artifact(
    record: RunRecord, artifact: Artifact, prompt: str, tokens: int, heard: Any
) -> dict[str, Any]:
    if artifact.facts.get("deleted"):
        raise InputError(f"it was deleted here as it was uploaded to {artifact.facts['deleted']}")
    path = artifact.path_in(record.folder)
    if path.suffix == ".gguf":
        source = record.source
        folder = "" if source.gguf or not source.at_hand else str(source.folder)
        return _gguf(path, folder, prompt, tokens, heard)
    method = METHODS[record.method]
    env = method.environment(method.Options())
    return _folder(path, env, prompt, tokens, heard, quantized=True, extra=method.extra)


def _gguf(path: Path, tokenizer: str, prompt: str, tokens: int, heard: Any) -> dict[str, Any]:
    return dict(
        process.call(
            "autoquant.backends.llamacpp.answers:answer",
            log=new_log("answer"),
            env=llama.environment(llama.locate()),
            on_part=heard,
            path=str(path),
            prompt=prompt,
            tokens=tokens,
            tokenizer=tokenizer,
            threads=cores(),
        )
    )


def _folder(
    path: Path,
    env: dict[str, str],
    prompt: str,
    tokens: int,
    heard: Any,
    *,
    quantized: bool,
    extra: str = "",
) -> dict[str, Any]:
    log = new_log("answer")
    return dict(
        process.call(
            "autoquant.backends.answers:answer",
            log=log,
            python=environments.there(extra, log) if extra else "",
            env=env or {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            on_part=heard,
            folder=str(path),
            prompt=prompt,
            tokens=tokens,
            quantized=quantized,
        )
    )
