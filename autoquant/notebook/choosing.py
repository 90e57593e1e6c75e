"""Which methods a notebook runs: those that its form names, or what is best for its device; and
which of them cannot run here, so that the others do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import html
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp.types import TYPES
from autoquant.core import options
from autoquant.core.errors import AutoQuantError, InputError, Stopped
from autoquant.core.language import say, told
from autoquant.core.progress import in_notebook
from autoquant.display import tables
from autoquant.methods import METHODS
from autoquant.notebook.page import Note
from autoquant.runtime import preload
from autoquant.sizing import advice, devices
from autoquant.sizing.advice import Advice
from autoquant.sizing.choices import LLAMA, Choice
from autoquant.source import resolve

HERE = "this machine"
BETTER = "imatrix"  # an option that makes a better file, not another one


def is_here(name: str) -> bool:
    """Whether a form names this machine."""
    return name.strip().lower() in ("", HERE)


def device(name: str) -> devices.Device:
    """The device that a form names; nothing, or "this machine", is this one. Raises InputError."""
    try:
        return devices.here() if is_here(name) else devices.device(name)
    except InputError as error:
        raise InputError(f"device: {str(error).removeprefix('fits: ')}") from None


def advised(model: str, name: str, context: int) -> Advice:
    """What of a model fits on a device; ``context`` in tokens, 0 as ``autoquant advise`` has it.
    Raises InputError.
    """
    return _advised(model, device(name), context)


@functools.lru_cache(maxsize=16)
@preload.kept()
def _advised(model: str, on: devices.Device, context: int) -> Advice:
    return advice.advise(resolve(model), on, context or None)


def own(said: Advice, name: str) -> tuple[Advice, str]:
    """An advice with the choices of one method alone, and in words what that method has for the
    device.
    """
    found = tuple(one for one in said.choices if name == one.method)
    mine = dataclasses.replace(said, choices=found)
    if METHODS[name].many_types:
        return mine, f"{told(said.verdict)}."
    device, title = told(said.device.name), METHODS[name].title
    fitting = next((one for one in found if one.fits == "whole"), None)
    if fitting is not None:
        return mine, say(
            "{title} {type} fits on {device}.", title=title, type=fitting.type, device=device
        )
    why = (
        say("No usual type of {title} fits on {device}.", title=title, device=device)
        if found
        else say("{title} is for NVIDIA GPUs, and {device} has none.", title=title, device=device)
    )
    runs = next((one for one in said.choices if one.runs == LLAMA and one.fits != "no"), None)
    if runs is None:
        return mine, why
    instead = say("For it take gguf {type}, which 00_AutoQuant makes.", type=runs.type)
    return mine, f"{why} {instead}"


def looked_up(name: str, model: str, asked: Any) -> tuple[Any, ...]:
    """What a method has for the device that its form asks for, to be shown: where there are no
    buttons.
    """
    try:
        said, verdict = own(advised(model, asked.device, asked.context), name)
    except AutoQuantError as error:  # such as a model that cannot be had: the next cell stops there
        return (Note(told(str(error))),)
    return (Note(verdict), said) if said.choices else (Note(verdict),)


def best(said: Advice) -> Choice:
    """What a form makes that names no method: the best GGUF type, which everything runs. Raises
    InputError where none fits.
    """
    found = next((one for one in said.choices if one.runs == LLAMA and one.fits != "no"), None)
    if found is None:
        raise InputError(
            f"device: no GGUF type of {said.model} fits on {said.device.name} with a context of"
            f" {said.context:,} tokens. Ask for a shorter context, take a smaller model or a larger"
            " device, or name the methods yourself"
        )
    return found


def made_by(choice: Choice) -> dict[str, Any]:
    """The options that make a choice."""
    if choice.runs == LLAMA:
        return {
            "types": (choice.type,),
            # some minutes for a better file
            **({BETTER: "builtin"} if TYPES[choice.type].imatrix != "no" else {}),
        }
    usual = METHODS[choice.method].usual_types
    return dict(next((one.options for one in usual if one.type == choice.type), {}))


def said_of(said: Advice, taken: Choice) -> Note:
    """Why that is taken."""
    size = tables.size
    partly = say("; {layers} layers of it on the card", layers=taken.layers)
    why = say(
        "{model} on {device}, for {context} tokens: gguf {type} ({size}; with cache and buffers"
        " {memory} of the {usable} that can be used{partly}). {quality}",
        model=said.model,
        device=told(said.device.name),
        context=f"{said.context:,}",
        type=taken.type,
        size=size(taken.weights),
        memory=size(taken.memory),
        usable=size(said.device.usable),
        partly=partly if taken.fits == "partly" else "",
        quality=told(taken.quality),
    )
    return Note(
        why.rstrip(),
        say(
            "To make something else, name methods and types in the form, and run again from there."
        ),
    )


def impossible(method: str, model: str, values: Mapping[str, Any]) -> str:
    """Why a method cannot make what is asked for of a model on this machine; empty if it can, as
    far as can be told before a weight is read.
    """
    entry = METHODS[method]
    try:
        asked = options.build(entry.Options, values)
        source = resolve(model, allow_pickle=asked.pickled, base=asked.base)
        if source.gguf and not entry.reads_gguf:
            return f"{source.id} is a GGUF file; {entry.title} begins with a checkpoint"
        complete = entry.resolve_defaults(source, asked)
        entry.check(source, complete)
        entry.check_hardware(complete, Path(f"{source.name}-{entry.folder_suffix(complete)}"))
    except InputError as error:
        return str(error)
    return ""


def possible(model: str, asked: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Those of some methods, with their options, that can be made here; of the others it is said
    why not. Raises InputError if none can.
    """
    reasons = {method: impossible(method, model, values) for method, values in asked.items()}
    left = tuple(method for method in asked if not reasons[method])
    if not left:
        raise InputError(next(iter(reasons.values())))
    for method, reason in reasons.items():
        if reason:
            title, why = METHODS[method].title, told(reason)
            show(Refusal(say("{method} is left out: {why}", method=title, why=why)))
    return left


def show(note: Note) -> None:
    """Show lines where a cell's output goes."""
    if in_notebook():
        importlib.import_module("IPython.display").display(note)


class OthersGoOn:
    """Methods one after the other, of which a failed one does not stop the others."""

    def __init__(self, asked: int) -> None:
        self.asked, self.left, self.done = asked, asked, 0

    @contextlib.contextmanager
    def __call__(self, method: str) -> Iterator[None]:
        """Around the work of one method. What it cannot do is said in a line, and raised only if
        no method has ended well.
        """
        if not self.left:  # the cell runs again
            self.left, self.done = self.asked, 0
        self.left -= 1
        try:
            yield
            self.done += 1
        except Stopped:
            raise
        except AutoQuantError as error:
            if not self.left and not self.done:
                raise
            show(Refusal(say("{method} failed: {why}", method=METHODS[method].title, why=error)))


class Refusal(Note):
    """Lines that say what cannot be."""

    def _repr_html_(self) -> str:
        said = "<br>".join(html.escape(line) for line in self.lines)
        return f'<p role="alert" style="color:#b00020">✗ {said}</p>'
