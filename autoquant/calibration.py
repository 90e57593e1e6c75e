"""Calibration sets: a text from a file or the Hub, joined, tokenized, cut into samples of one
length, chosen by seed, hashed.

Samples are packed: the documents are joined with the tokenizer's end token and cut every ``length``
tokens, so that no token is padding and no document's end is discarded. The same samples serve
every method that calibrates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from autoquant.core import bundled, licenses
from autoquant.core import texts as texts_of
from autoquant.core.errors import InputError
from autoquant.core.options import MethodOptions, option
from autoquant.core.texts import Document

# a token, generously; a dataset on the Hub is read until it has four times what the samples need
CHARACTERS = 6
DEFAULT_SPLIT = "train"


class CalibrationOptions(MethodOptions):
    """The options of methods that calibrate."""

    calibrated_by: ClassVar[str] = "calibration"

    calibration: str = option(
        "builtin",
        "text to calibrate on: builtin (English prose, other languages, code and conversations; or"
        " one of them: prose, languages, code, conversations), a file (text, JSON, CSV or Parquet,"
        " by its content; conversations go through the chat template), or a"
        " dataset on the Hugging Face Hub as owner/name or owner/name@revision; a text like what"
        " the model will be used for is better",
        metavar="builtin|FILE|OWNER/NAME",
    )
    calibration_column: str = option(
        "text",
        "column of a JSON, CSV or Parquet file or a dataset that holds the text",
        metavar="NAME",
    )
    calibration_split: str = option(DEFAULT_SPLIT, "split of a dataset on the Hub", metavar="NAME")
    calibration_subset: str = option(
        "", "subset (configuration) of a dataset on the Hub, if it has several", metavar="NAME"
    )
    calibration_samples: int = option(
        128,
        "how many samples to calibrate on; fewer are faster, 128 (as in GPTQ's paper) are better",
        unit="samples",
        ge=1,
        le=100_000,
    )
    calibration_length: int = option(
        512,
        "tokens per sample, at most the model's context; longer ones take more memory",
        unit="tokens",
        ge=16,
        le=131_072,
    )
    calibration_seed: int = option(
        0, "which samples are taken, if the text has more than enough", ge=0, le=2**31 - 1
    )


@dataclass(frozen=True)
class Calibration:
    """A calibration set to give to any method: ``autoquant.gptq(…, calibration=it)``, the same for
    ``awq``, ``exl2``, ``exl3`` and ``w8a8``, and ``autoquant.gguf(…, imatrix=it)``.

    The fields are the options of the same names (``calibration_column`` is ``column`` and so on),
    with the same defaults. With one tokenizer the same set gives every method the very same tokens;
    EXL2 nearly the same, for exllamav2 takes them as text and tokenizes it again.
    """

    text: str | Path = "builtin"
    column: str = "text"
    split: str = DEFAULT_SPLIT
    subset: str = ""
    samples: int = 128
    length: int = 512
    seed: int = 0

    def as_options(self, name: str) -> dict[str, Any]:
        """The options it stands for, when it is given for the option ``name`` ("calibration", or
        GGUF's "imatrix").
        """
        values = {
            f"calibration_{part}": getattr(self, part)
            for part in ("column", "split", "subset", "samples", "length", "seed")
        }
        return {
            **values,
            "calibration": str(self.text),
            **({name: "calibration"} if name != "calibration" else {}),
        }


@dataclass(frozen=True)
class Documents:
    """A calibration text: its documents, and what it is in words (with the commit, if it came from
    the Hub).
    """

    texts: Sequence[Document]
    name: str


def check(options: CalibrationOptions) -> None:
    """Refuse a calibration text that is not there or cannot be read. Of a dataset on the Hub only
    the name is looked at: nothing is sent.
    """
    path = _file(options)
    if path is None:
        _dataset(options)
        return
    idle = {"calibration_split": "datasets on the Hub", "calibration_subset": "datasets on the Hub"}
    if not texts_of.columns_matter(path):
        idle["calibration_column"] = "datasets, and files with columns (JSON, CSV, Parquet)"
    for name, kinds in idle.items():
        if getattr(options, name) != CalibrationOptions.model_fields[name].default:
            raise InputError(
                f"{name}: applies to {kinds} only, but calibration is {options.calibration}; leave"
                " it out"
            )
    documents(options)


def documents(options: CalibrationOptions, model: Path | None = None) -> Documents:
    """The documents of the calibration text for the model in a folder; those of a dataset on the
    Hub are fetched, and kept in the cache folder.

    Raises InputError for a text that is missing, empty, unreadable, of another kind, or without the
    column; HubFailed if the Hub cannot be reached.
    """
    path = _file(options)
    if path is None:
        from autoquant.hub import datasets

        id, revision = _dataset(options)
        texts: list[Document] = []
        rows, commit = datasets.documents(
            id,
            revision,
            subset=options.calibration_subset,
            split=options.calibration_split,
            column=options.calibration_column,
            characters=4 * CHARACTERS * options.calibration_samples * options.calibration_length,
        )
        texts += rows
        name = " ".join(
            part
            for part in (
                f"{id}@{commit[:10]}",
                options.calibration_subset,
                options.calibration_split,
            )
            if part
        )
    elif options.calibration in (bundled.BUILTIN, *bundled.KINDS):
        text = bundled.suited(options.calibration, model or Path())
        by_kind = texts_of.parts(text, "calibration", bundled.CALIBRATION)
        needed = CHARACTERS * options.calibration_samples * options.calibration_length
        texts = texts_of.in_turn(texts_of.evened(by_kind, needed))
        name = builtin_in_words(text)
    else:
        texts = texts_of.documents(path, "calibration", options.calibration_column)
        name = path.name
    if not any(texts_of.plain(text).strip() for text in texts):
        raise InputError(f"calibration: {name} is empty")
    return Documents(texts, name)


def builtin_in_words(text: str) -> str:
    """A built-in text, for cards."""
    words = bundled.IN_WORDS if text == bundled.BUILTIN else text
    return f"the built-in text ({'English novels' if text == bundled.PROSE else words})"


def is_file(options: CalibrationOptions) -> bool:
    """Whether the text is a file of the user's own."""
    own = options.calibration not in (bundled.BUILTIN, *bundled.KINDS)
    return own and _file(options) is not None


def _file(options: CalibrationOptions) -> Path | None:
    """The file the option names; None if it names a dataset on the Hub."""
    if options.calibration in (bundled.BUILTIN, *bundled.KINDS):
        return bundled.CALIBRATION_TEXT
    path = texts_of.expanded(options.calibration, "calibration")
    return path if path.is_file() else None


def _dataset(options: CalibrationOptions) -> tuple[str, str | None]:
    """Dataset and revision. Raises InputError if the option can be neither a dataset nor a file."""
    id, _, revision = options.calibration.removeprefix(
        "https://huggingface.co/datasets/"
    ).partition("@")
    looks_like_a_file = id.endswith((".txt", ".jsonl", ".json", ".parquet", ".csv", ".md"))
    if (
        looks_like_a_file
        or not licenses.is_repo_id(id)
        or texts_of.expanded(options.calibration, "calibration").exists()
    ):
        raise InputError(
            f"calibration: no such file: {options.calibration}; give a text, JSON, CSV or Parquet"
            " file, a dataset on the Hub as owner/name, or builtin"
        )
    import importlib.util

    if importlib.util.find_spec("datasets") is None:
        raise InputError(
            f"calibration: {id} is read with the datasets library: pip install 'datasets>=4'"
        )
    return id, revision or None


def pack(
    folder: str, texts: Sequence[Document], *, samples: int, length: int, seed: int
) -> list[list[int]]:
    """At most ``samples`` lists of ``length`` token ids by the model's own tokenizer, drawn without
    repetition by ``seed``. Runs in a worker.

    Raises InputError if the text is shorter than one sample.
    """
    import random

    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    enough = 4 * samples * length  # a library need not be tokenized whole
    stream: list[int] = []
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    for i in order:
        text = rendered(tokenizer, texts[i])
        # tokenizers take time and memory that grow with one text's length
        for start in range(0, len(text), 1 << 20):
            stream += tokenizer.encode(text[start : start + (1 << 20)], add_special_tokens=False)
        stream += end
        if len(stream) > enough:
            break
    n = len(stream) // length
    if n < 1:
        raise InputError(
            f"calibration: the text has {len(stream)} tokens; one sample needs {length}. Give a"
            " longer text or a smaller calibration_length"
        )
    picked = sorted(random.Random(seed).sample(range(n), min(samples, n)))
    return [stream[i * length : (i + 1) * length] for i in picked]


def count(folder: str, texts: Sequence[Document], *, special: bool) -> int:
    """How many tokens a text has by a model's own tokenizer: a conversation in its template, and
    with what the tokenizer puts around a text where that is ``special``, else with an end after
    each document, as :func:`pack` has them. Runs in a worker.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    end = 0 if special or tokenizer.eos_token_id is None else len(texts)
    texts_read = (rendered(tokenizer, text) for text in texts)
    return end + sum(len(tokenizer.encode(text, add_special_tokens=special)) for text in texts_read)


def rendered(tokenizer: Any, document: Document) -> str:
    """A document as the model reads it: a conversation in its chat template, if it has one."""
    if isinstance(document, str) or not getattr(tokenizer, "chat_template", None):
        return texts_of.plain(document)
    refused: Exception | None = None
    for messages in (document, _without_system(document)):  # which some templates do not take
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:  # noqa: BLE001
            # a template is a program of whoever made the model: it raises what it likes
            refused = refused or error
    if texts_of.is_builtin(document):  # which nobody has asked to go through it
        return texts_of.plain(document)
    raise InputError(f"calibration: the model's chat template refuses a conversation ({refused})")


def _without_system(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A conversation whose system message begins the user's first one."""
    system = "\n\n".join(one["content"] for one in messages if one["role"] == "system")
    rest = [dict(one) for one in messages if one["role"] != "system"]
    if system and rest:
        rest[0]["content"] = f"{system}\n\n{rest[0]['content']}"
    return rest


def fewer(samples: int, asked: int, length: int) -> str:
    """What to say if a text gave fewer samples than were asked for."""
    return (
        f"calibrated on {samples} samples of {length} tokens, because the text has no more ({asked}"
        " were asked for): a longer text may give a better model"
    )


def digest(ids: list[list[int]]) -> str:
    """The sha256 of the samples, for the journal and the card."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()
