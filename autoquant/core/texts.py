"""Texts as people have them, recognized by their content: plain, JSON in any layout, CSV, Parquet,
compressed, with byte order marks; conversations too.
"""

from __future__ import annotations

import codecs
import csv
import functools
import gzip
import io
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from autoquant.core import bundled
from autoquant.core.errors import InputError

log = logging.getLogger(__name__)
Document: TypeAlias = "str | list[dict[str, str]]"
"""A text, or a conversation: messages with ``role`` and ``content``."""
CONVERSATIONS = ("messages", "conversations", "conversation", "chat")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
TABLES, JSON = (".csv", ".tsv"), (".json", ".jsonl", ".ndjson")
# of a token, more than any tokenizer takes: no library is tokenized for 20 chunks
CHARACTERS = 12
PIECE = 2000  # characters of a built-in text that are one document
TEXT = "text"  # the column that is looked for unless another is named
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def documents(path: Path, option: str, column: str = TEXT) -> list[Document]:
    """The documents in a file; empty ones are left out. ``option`` is what errors begin with.

    Raises InputError for a file that cannot be read, is damaged (with the line), or has no such
    column.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be read ({error.strerror})") from None
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as error:
            raise InputError(f"{option}: {path} is no complete gzip file ({error})") from None
    if path.suffix.lower() == ".parquet" and raw[:4] != b"PAR1":
        raise InputError(f"{option}: {path} is no parquet file")
    if raw[:4] == b"PAR1":
        rows: Iterator[Any] = iter(_parquet(path, column, option))
    else:
        text = _decoded(raw, path, option)
        kind = path.suffixes[0].lower() if path.suffixes else ""
        if kind in TABLES:
            delimiter = "\t" if kind == ".tsv" else ","
            rows = iter(csv.DictReader(io.StringIO(text), delimiter=delimiter))
        elif text.lstrip()[:1] in ("{", "[") or kind in JSON:
            rows = _json(text, path, option)
        else:
            return [text]
    found = (_document(row, column, path, option) for row in rows)
    return [one for one in found if one]


def parts(name: str, option: str, part: str) -> dict[str, list[Document]]:
    """The documents of a text by kind: of "builtin" every kind, of a kind's name that one (see
    core.bundled; ``part`` is which part of it), else those of a file. Raises InputError.
    """
    if name in (bundled.BUILTIN, *bundled.KINDS) and Path(name).is_file():
        log.warning("%s: %s is a built-in text; write ./%s for the file", option, name, name)
    if name == bundled.BUILTIN:
        return {kind: cut(_builtin(kind, part)) for kind in bundled.KINDS}
    if name in bundled.KINDS:
        return {name: _builtin(name, part)}
    path = expanded(name, option)
    if not path.is_file():
        said = "is a folder" if path.is_dir() else "no such file"
        known = ", ".join((bundled.BUILTIN, *bundled.KINDS))
        raise InputError(f"{option}: {said}: {name}; give a UTF-8 text file, or one of {known}")
    found = documents(path, option)
    if not any(plain(one).strip() for one in found):
        raise InputError(f"{option}: {name} is empty")
    return {"": found}


def enough(by_kind: Mapping[str, Sequence[Document]], tokens: int) -> dict[str, list[Document]]:
    """Of each kind the first documents, with as many ``tokens`` if there are."""
    found: dict[str, list[Document]] = {}
    for kind, documents in by_kind.items():
        left, found[kind] = tokens * CHARACTERS, []
        for one in documents:
            if left <= 0:
                break
            found[kind].append(one[:left] if isinstance(one, str) else one)
            left -= len(plain(one))
    return found


def evened(by_kind: Mapping[str, Sequence[Document]], characters: int) -> dict[str, list[Document]]:
    """Of each kind about as much as of the second longest, unless more ``characters`` are needed
    than that leaves.
    """
    sizes = {kind: sum(len(plain(one)) for one in every) for kind, every in by_kind.items()}
    if len(sizes) < 2:
        return {kind: list(every) for kind, every in by_kind.items()}
    most = sorted(sizes.values())[-2]
    if sum(min(most, size) for size in sizes.values()) < characters:
        most = max(sizes.values())
    return {
        kind: list(every[: max(1, len(every) * min(most, sizes[kind]) // sizes[kind])])
        for kind, every in by_kind.items()
    }


def in_turn(by_kind: Mapping[str, Sequence[Document]]) -> list[Document]:
    """Documents of all kinds, one of each after the other."""
    rounds = itertools.zip_longest(*by_kind.values())
    return [one for every in rounds for one in every if one is not None]


def read_text(name: str, option: str, part: str) -> str:
    """A text by its option's value, see :func:`parts`; documents are joined. Raises InputError."""
    return "\n\n".join(map(plain, in_turn(parts(name, option, part))))


@functools.cache
def _builtin(kind: str, part: str) -> list[Document]:
    """The documents of a built-in text: a novel as one, other texts in pieces."""
    path = bundled.text_of(kind, part)
    if path.suffix == ".jsonl":
        return documents(path, "builtin")
    found: list[Document] = [path.read_text(encoding="utf-8")]  # code may look like JSON
    return found if kind == bundled.PROSE else cut(found)


def is_builtin(document: Document) -> bool:
    """Whether a conversation is one of the built-in ones."""
    parts_ = (bundled.CALIBRATION, bundled.EVALUATION, bundled.SENSITIVITY)
    return any(document in _builtin("conversations", part) for part in parts_)


def cut(documents: Sequence[Document]) -> list[Document]:
    """Long texts in pieces, between paragraphs."""
    found: list[Document] = []
    for one in documents:
        if not isinstance(one, str) or len(one) < 4 * PIECE:
            found.append(one)
            continue
        piece = ""
        for paragraph in one.split("\n\n"):
            piece += f"{paragraph}\n\n"
            if len(piece) > PIECE:
                found.append(piece.rstrip())
                piece = ""
        found += [piece.rstrip()] * bool(piece.strip())
    return found


def expanded(name: str, option: str) -> Path:
    """A path with its home folder filled in. Raises InputError where there is none."""
    try:
        path = Path(name).expanduser()
        path.exists()  # a name may be too long, or have a character that none may have
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(
            f"{option}: {name[:80]}: this is not a usable file name ({error})"
        ) from None
    return path


def plain(document: Document) -> str:
    """A document as one text; of a conversation what is said."""
    if isinstance(document, str):
        return document
    return "\n".join(message["content"] for message in document)


def columns_matter(path: Path) -> bool:
    """Whether a file has columns, one of which can be named."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    table = bool(path.suffixes) and path.suffixes[0].lower() in TABLES
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    return table or head[:4] == b"PAR1" or head[:2] == b"\x1f\x8b" or text[:1] in (b"{", b"[")


def _decoded(raw: bytes, path: Path, option: str) -> str:
    encoding = next((name for mark, name in MARKS if raw.startswith(mark)), "utf-8")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            f"{option}: {path} cannot be read as UTF-8 text (line {line} has the byte"
            f" {raw[error.start]:#04x}). Save it as UTF-8, or convert it: iconv -f latin1 -t utf-8"
        ) from None


def _json(text: str, path: Path, option: str) -> Iterator[Any]:
    """The rows of JSON: a list, an object that holds one, one object, or a value on every line."""
    try:
        whole = json.loads(text)
    except ValueError:
        # splitlines would also cut at U+2028
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                if number == 1 and not line.rstrip().endswith(("}", "]")):
                    raise InputError(f"{option}: {path} is no valid JSON ({error})") from None
                raise InputError(
                    f"{option}: line {number} of {path} is no valid JSON ({error}); it may be cut"
                    " off"
                ) from None
        return
    if isinstance(whole, dict):
        lists = [value for value in whole.values() if isinstance(value, list)]
        rows_inside = [one for one in lists if one and isinstance(one[0], (dict, str))]
        own = any(name in whole for name in (TEXT, *CONVERSATIONS))
        yield from rows_inside[0] if rows_inside and not own else [whole]
    else:
        yield from whole if isinstance(whole, list) else [whole]


def _document(row: Any, column: str, path: Path, option: str) -> Document:
    """The text of a row, or its conversation."""
    if isinstance(row, str):
        return row
    if isinstance(row, list) and all(isinstance(one, dict) for one in row):
        return _messages(row)
    if isinstance(row, dict):
        value = row.get(column)
        if isinstance(value, str):
            return value if value.strip() else ""
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            return "\n".join(value)
        chat = value if isinstance(value, list) else None
        if chat is None and column == TEXT:
            lists = (row[name] for name in CONVERSATIONS if isinstance(row.get(name), list))
            chat = next(lists, None)
        if chat and all(isinstance(one, dict) for one in chat):
            return _messages(chat)
        if value is None and (column in row or not row):
            return ""
    names = ", ".join(map(str, row)) if isinstance(row, dict) else "no columns"
    raise InputError(
        f"{option}: a line of {path} has no text in column {column!r}; it has: {names}. Name one"
        f" with {'calibration_column' if option == 'calibration' else 'a file that has it'}"
    )


def _messages(chat: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A conversation's messages, whichever of the usual names they have."""
    messages = []
    for one in chat:
        role = str(one.get("role", one.get("from", "user")))
        content = one.get("content", one.get("value", one.get("text", "")))
        if isinstance(content, list):  # of parts, of which some may be images
            content = "\n".join(str(part.get("text", "")) for part in content)
        if isinstance(content, str) and content:
            messages.append({"role": ROLES.get(role, role), "content": content})
    return messages


def _parquet(path: Path, column: str, option: str) -> list[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"{option}: {path} is read with the pyarrow library: pip install pyarrow"
        ) from None
    try:
        table = pyarrow.parquet.ParquetFile(path)
        names = table.schema_arrow.names
        wanted = column
        if column == TEXT and TEXT not in names:
            wanted = next((name for name in CONVERSATIONS if name in names), column)
        if wanted not in names:
            raise InputError(
                f"{option}: {path} has no column {column!r}; it has: {', '.join(names)}. Name one"
                " with calibration_column"
            )
        values = table.read([wanted]).column(wanted).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{option}: {path} is no parquet file ({error})") from None
    if any(value is not None and not isinstance(value, (str, list)) for value in values):
        raise InputError(
            f"{option}: column {wanted!r} of {path} holds no text. Name one with"
            f" calibration_column; it has: {', '.join(names)}"
        )
    return [{column: value} for value in values]
